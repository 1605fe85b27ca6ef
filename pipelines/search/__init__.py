"""Search over any collection of videos: an index that grows with it, and queries against the index."""
