"""The parts of `benchmarks/fold.py`."""
