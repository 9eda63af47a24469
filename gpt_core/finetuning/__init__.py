"""Supervised examples: read, put through a template, packed, and read back as masked windows."""
