"""What an adapter is: its factors, what families share, and the set of adapters of a file."""
