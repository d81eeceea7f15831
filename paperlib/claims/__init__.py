"""Verdicts on the papers' claims, and where they are shown."""
