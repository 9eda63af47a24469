"""The training loop and everything a step needs, from the recipe to the checkpoint."""
