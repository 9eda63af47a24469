"""Held-out loss and task scores, in pieces that any process can compute."""
