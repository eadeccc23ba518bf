"""What inductor has compiled, kept in a file between processes."""
