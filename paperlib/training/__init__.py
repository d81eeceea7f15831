"""One training: the recipe, the loop and its state on disk."""
