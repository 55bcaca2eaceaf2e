"""The loop, and what surrounds one run."""
