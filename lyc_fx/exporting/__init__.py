"""Programs as files that run without lyc-fx, and without the model's code."""
