"""What `benchmarks/forward.py` times: nets, adapters for them, and ways to run the two together."""
