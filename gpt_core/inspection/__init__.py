"""What a model computes on the way, as plain values for people."""
