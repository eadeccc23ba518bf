"""The parts of `benchmarks/gpu.py`, each of which yields the rows of a table."""
