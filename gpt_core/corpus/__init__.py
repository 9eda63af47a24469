"""The tokenized corpus: how shards are made, proved, read, ordered for training and traced back."""
