"""What is known of a user's model: its classes, wrappers and hooks."""
