"""Rewards to advantages to loss to weights."""
