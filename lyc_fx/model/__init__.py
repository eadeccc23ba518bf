"""The live road: adapters merged into a model in memory, and swapped."""
