"""The parts of `benchmarks/swaps.py`."""
