"""The page at the end of a run: what was done, what came out, and what it looks like."""
