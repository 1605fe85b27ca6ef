"""The cooperative game of words and frames: its exact interaction, its published labels, its estimator."""
