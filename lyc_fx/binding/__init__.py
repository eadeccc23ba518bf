"""Which adapter goes to which rows of which weight, and what finds none."""
