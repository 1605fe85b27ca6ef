"""Training on Ray Train: the loop, what it reads, how ranks gather, how it saves itself."""
