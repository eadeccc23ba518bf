"""The parts of `benchmarks/gpu_code.py`."""
