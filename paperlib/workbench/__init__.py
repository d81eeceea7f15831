"""The steps train, prune, distil and evaluate, and Algorithm 1 written in them."""
