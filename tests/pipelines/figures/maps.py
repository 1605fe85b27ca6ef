"""Interactions of any size, without a model."""

from __future__ import annotations

import numpy as np

from pipelines.figures.maps import InteractionMaps, LevelMap, Members

TEXT = (
    "a man in a $5 <blue> shirt & a woman with an umbrella walk along the crowded street -- while two dogs run after a "
    "skateboarder who jumps over a low fence and then falls down into the grass near an old wooden bench where a child "
    "sits quietly eating an ice cream and laughing at the funny birds above the big green tree today"
)


def maps_of(words: int, frames: int) -> InteractionMaps:
    """Random interactions of so many words, start and end among them, and so many frames."""
    random = np.random.default_rng(0)
    said = TEXT.split()[: words - 2]
    levels, sizes = [], [(words, frames), (words // 4 or 1, frames // 4 or 1), (words // 8 or 1, 1)]
    for name, (rows, columns) in zip(("entity", "action", "event"), sizes, strict=True):
        values = random.standard_t(3, size=(rows, columns)).astype(np.float32)
        levels.append(
            LevelMap(
                name=name,
                words=_interleaved(words, rows),
                frames=_interleaved(frames, columns),
                word_weights=np.full(rows, 1 / rows, np.float32),
                frame_weights=np.full(columns, 1 / columns, np.float32),
                similarity=0.3,
                cosines=values,
                interactions={"exact": values, "difference": -values},
            )
        )
    return InteractionMaps(
        text=" ".join(said),
        tokens=("⟨start⟩", *said, "⟨end⟩"),
        video="clip.mp4",
        times_s=tuple(np.arange(frames) / 2),
        images=list(random.integers(256, size=(frames, 32, 32, 3), dtype=np.uint8)),
        levels=tuple(levels),
    )


def _interleaved(members: int, groups: int) -> Members:
    """Neighbours together, but for the first and the last member of neighbouring groups, which change places."""
    parts = [list(map(int, part)) for part in np.array_split(np.arange(members), groups)]
    for left, right in zip(parts[::2], parts[1::2], strict=False):
        if len(left) > 1 and len(right) > 1:
            left[-1], right[0] = right[0], left[-1]
    return tuple(sorted(tuple(sorted(part)) for part in parts))
