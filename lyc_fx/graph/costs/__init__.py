"""What operators cost: arithmetic and memory traffic, as expressions in a program's symbolic sizes."""
