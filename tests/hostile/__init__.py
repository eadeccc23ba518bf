"""Hostile adapter files: valid ones, ways to spoil them, and what is done with the result."""
