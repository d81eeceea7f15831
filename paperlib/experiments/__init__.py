"""The papers' experiments, and what a notebook needs to run them."""
