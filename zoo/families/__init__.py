"""Block families: one file registers the builders of one family of blocks."""
