"""The same on pictures."""
