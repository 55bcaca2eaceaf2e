"""What listens to a run: console and trackers."""
