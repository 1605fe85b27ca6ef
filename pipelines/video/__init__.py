"""From a video file to stored frames: decoders in a process that can be killed, sampling, storing, augmentation."""
