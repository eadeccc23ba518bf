"""Numbers: rounding once and correctly, wider dtypes, what is finite."""
