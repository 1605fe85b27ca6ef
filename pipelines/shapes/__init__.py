"""The generated data set: scripts of events, their captions, their pictures."""
