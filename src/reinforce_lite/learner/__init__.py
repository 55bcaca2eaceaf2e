"""From rewards to an updated policy."""
