"""Everything that draws, and tables."""
