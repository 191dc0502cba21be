"""Somebody else's model files, read without running anything that they contain."""
