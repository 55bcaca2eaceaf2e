"""Weights, and how tokens pass through them."""
