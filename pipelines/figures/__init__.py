"""Pictures of what a model sees between the words of a text and the frames of a video."""
