"""Input files, how they are cut into shard plans, and the documents read out of them."""
