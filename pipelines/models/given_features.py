"""Features that another model made, checked and brought into shards: the work of the features stage with them."""

from __future__ import annotations

import pyarrow as pa

from hbi_models.configs import RetrievalConfig, TokensConfig
from pipelines.datasets.features_file import GivenFeatures, Place
from pipelines.models.features import as_row
from pipelines.recipe.features import FeatureType
from pipelines.resources.sharded_work import SUMMARY
from pipelines.workspace.shards import ShardPool


class StoreGivenFeatures:
    """Brings the features of the videos of one shard into the pool; the callable class of the features stage.

    Args:
        model: how many words and frames it takes, and how many channels they have.
        tokens: channels of the given words and frames.
        dtype: how numbers are stored.
        pool: where the features go.
        generation: the pool's generation that they belong to.
    """

    def __init__(
        self, model: RetrievalConfig, tokens: TokensConfig, dtype: FeatureType, pool: ShardPool, generation: int = 0
    ) -> None:
        self._model, self._dtype, self._pool, self._generation = model, dtype, pool, generation
        self._read = GivenFeatures(word_dim=tokens.word_dim, frame_dim=tokens.frame_dim)

    def __call__(self, videos: pa.Table) -> pa.Table:
        """Reads ``video_id``, ``key``, ``texts`` and where the ``frames`` and ``words`` lie; returns a summary row.

        Raises:
            ValueError: the features of a row cannot be used; the message says which and why.
        """
        rows = []
        for video in videos.to_pylist():
            name = f"the video {video['video_id']}"
            frames = self._read("frames", Place(**video["frames"]), name=name, most=self._model.max_frames)
            words = [
                self._read(
                    "words", Place(**place), name=f"the caption {text!r:.60} of {name}", most=self._model.max_words
                )
                for text, place in zip(video["texts"], video["words"], strict=True)
            ]
            # 0 = not cut: the token store then finds a text for any ``max_words`` of the model.
            rows.append(as_row({**video, "max_words": [0] * len(words)}, [frames], words, self._dtype))
        size = self._pool.commit(rows, generation=self._generation)
        units = sum(row["num_frames"] for row in rows)
        return pa.Table.from_pylist([{"rows": len(rows), "errors": 0, "units": units, "bytes": size}], schema=SUMMARY)
