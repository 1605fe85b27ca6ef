"""Pictures of the interaction that a model finds between the words of a text and the frames of a video."""
