"""Finished steps, what makes one stale, and where results come from."""
