"""From a problem to a scored group of completions."""
