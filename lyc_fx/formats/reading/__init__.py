"""What the formats share: keys, factors, layouts and configurations."""
