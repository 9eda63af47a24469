"""Text to token ids and back: vocabularies, their fast and their reference encoders, music's events."""
