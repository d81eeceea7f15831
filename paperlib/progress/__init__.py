"""Progress of long work, and the child processes that do it."""
