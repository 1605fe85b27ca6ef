"""Annotation files to annotated videos: an adapter per data set, the user's own files, collections."""
