"""The run directory; imports no torch."""
