"""`paperlib compress`: Algorithm 1 on your own data, and its report."""
