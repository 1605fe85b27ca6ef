"""The page at the end of a run: what was done, the results, and pictures of them."""
