"""CLIP backbones of any open_clip architecture, their tokens and their pixels."""
