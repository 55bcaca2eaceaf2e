"""Knows nothing of the method."""
