"""The engine: activation maximization."""
