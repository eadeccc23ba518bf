"""What a file would do to a model, without doing it."""
