"""The graph road: capture, splice, lower, fold, export."""
