"""Audits feature visualizations: how far can each be believed, with statistics."""
