"""Will it fit? Memory by part, before a weight is loaded."""
