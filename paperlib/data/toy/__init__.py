"""toy-aerial: aerial scenes drawn from a seed."""
