"""A data set of the user's own that grows and shrinks: copies of a few small clips, and a captions file."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from pipelines.recipe.data import ShapesConfig
from pipelines.shapes.data_set import VIDEOS_FOLDER, write_clips
from pipelines.workspace.storage import Storage

DISTINCT = 6


class ClipsFile:
    """A captions file in ``folder`` over videos in ``videos``, by default a folder beside it.

    Every tenth video is a test video.
    """

    def __init__(self, folder: Path, videos: Storage | None = None) -> None:
        self.file = folder / "captions.csv"
        self.videos = videos or Storage(str(folder / "videos"))
        clips = Storage(str(folder / "clips"))
        config = ShapesConfig(train_videos=DISTINCT, test_videos=1, image_size_px=32, duration_s=2.0)
        write_clips(config, range(DISTINCT), clips)
        self._clips = [clips.read_bytes(f"{VIDEOS_FOLDER}/{name}") for name in clips.files(VIDEOS_FOLDER)]
        self._captions: dict[str, list[str]] = {}
        self._removed: set[str] = set()

    @property
    def settings(self) -> dict[str, Any]:
        """The section ``data`` of a recipe."""
        return {"dataset": "captions_file", "annotations": str(self.file), "videos": self.videos.uri}

    def add(self, count: int, *, captions: int = 1) -> list[str]:
        """Adds videos with so many captions each; returns their names."""
        first = len(self._captions)
        names = {number: f"{number:05}.mp4" for number in range(first, first + count)}
        for number, name in names.items():
            self.videos.write_bytes(name, self._clips[number % DISTINCT])
            self._captions[name] = [f"caption {text} of number {number}" for text in range(captions)]
        self._write()
        return list(names.values())

    def caption(self, name: str, text: str) -> None:
        """Adds a caption to a video."""
        self._captions[name].append(text)
        self._write()

    def remove(self, name: str) -> None:
        """Strikes a video off the captions file."""
        self._removed.add(name)
        self._write()

    def restore(self, name: str) -> None:
        """Puts a video back where it was."""
        self._removed.remove(name)
        self._write()

    def _write(self) -> None:
        rows = [
            [name, text, "test" if int(Path(name).stem) % 10 == 0 else "train"]
            for name, texts in self._captions.items()
            if name not in self._removed
            for text in texts
        ]
        with self.file.open("w", newline="") as file:
            csv.writer(file).writerows([["path", "caption", "split"], *rows])
