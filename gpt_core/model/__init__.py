"""The GPT itself: sizes, layers, loss, and what a device can compute."""
