"""The parts of `benchmarks/second_start.py`."""
