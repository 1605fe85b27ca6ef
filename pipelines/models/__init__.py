"""A trained model in use: its folder, its weights, encoding many texts and videos, one video file, answers."""
