"""A checkpoint or an index as a model of MTEB, so that its tasks of video retrieval run on it (extra ``mteb``).

MTEB takes models either as encoders with one vector per item or as searches (``mteb.models.SearchProtocol``). This is a
search, because the similarity compares words with frames, not two vectors. This project decodes and samples the videos,
not MTEB's decoder, so that the model gets the same frames as in training.

    import mteb
    from pipelines.search.mteb_model import MtebSearch

    mteb.evaluate(MtebSearch("workspace/demo/retrieval/FINGERPRINT/model"), mteb.get_tasks(tasks=["MSRVTTT2V"]))
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from hbi_models.config_fields import require
from pipelines.models.encoding import Levels, concatenate, encode_texts, on_device, on_host
from pipelines.models.folder import MODEL, model_folder
from pipelines.models.one_video import read_video
from pipelines.models.weights import load_model
from pipelines.recipe.recipe import Recipe
from pipelines.resources.device import compute_device
from pipelines.search.index_folder import CURRENT, read_current
from pipelines.search.search_model import read_search_model
from pipelines.video.frame_store import decode_images, stack_frames
from pipelines.workspace.artifact import versions
from pipelines.workspace.storage import Storage

_VIDEOS_AT_ONCE = 16


class MtebSearch:
    """A search in the sense of MTEB, over texts or videos.

    Args:
        place: folder of a retrieval model of this project, or of an index, whose model is taken.
        name: ``organization/model``, as MTEB files its results.
        batch_size: videos or texts encoded at once.

    Raises:
        FileNotFoundError: there is no model.
    """

    def __init__(self, place: str, *, name: str = "hbi/retrieval", batch_size: int = _VIDEOS_AT_ONCE) -> None:
        root = Storage(place)
        folder = root.folder(read_current(root)["artifact"], MODEL) if root.exists(CURRENT) else model_folder(place)
        with TemporaryDirectory() as scratch:
            self._model = load_model(folder, Path(scratch)).to(compute_device()).eval()
        found = read_search_model(folder.uri, Recipe())
        self._revision, self._frames = found.digest, found.frames
        self._name, self._batch_size = name, batch_size
        self._ids: list[str] = []
        self._corpus: Levels = ()
        self._corpus_is_text = False

    @cached_property
    def mteb_model_meta(self) -> Any:
        """The description that MTEB stores beside the results."""
        from mteb.models import ModelMeta

        return ModelMeta(
            loader=None,
            name=self._name,
            revision=self._revision,
            release_date=None,
            languages=["eng-Latn"],
            n_parameters=sum(weights.numel() for weights in self._model.parameters()),
            memory_usage_mb=None,
            max_tokens=self._model.config.max_words,
            embed_dim=None,
            license=None,
            open_weights=None,
            public_training_code=None,
            public_training_data=None,
            framework=["PyTorch"],
            similarity_fn_name=None,
            use_instructions=False,
            training_datasets=None,
            modalities=["text", "video"],
            model_type=["late-interaction"],
            experiment_kwargs={"frames": self._frames.max_frames, "hbi_on_ray": versions()["hbi-on-ray"]},
        )

    def index(self, corpus: Any, **unused: Any) -> None:
        """Encodes the corpus: a dataset with ``id`` and ``video`` or ``text``."""
        self._ids, self._corpus, self._corpus_is_text = self._encoded(corpus, "corpus")

    @torch.inference_mode()
    def search(
        self,
        queries: Any,
        *,
        top_k: int,
        top_ranked: Mapping[str, Sequence[str]] | None = None,
        **unused: Any,
    ) -> dict[str, dict[str, float]]:
        """The scores of the ``top_k`` best documents of each query; of ``top_ranked`` ones alone, where given.

        Raises:
            ValueError: corpus and queries are not one of texts and one of videos.
        """
        ids, levels, is_text = self._encoded(queries, "queries")
        require(
            is_text != self._corpus_is_text,
            f"queries and corpus are both {'texts' if is_text else 'videos'}; this model compares texts with videos",
        )
        scores = self._similarity(levels, self._corpus) if is_text else self._similarity(self._corpus, levels).T
        found = {}
        for query, row in zip(ids, scores, strict=True):
            listed = None if top_ranked is None else set(top_ranked[query])
            # Stable, so that equal scores stay in the order of the corpus.
            order = row.argsort(descending=True, stable=True).tolist()
            kept = [place for place in order if listed is None or self._ids[place] in listed][:top_k]
            found[query] = {self._ids[place]: float(row[place]) for place in kept}
        return found

    def _similarity(self, texts: Levels, videos: Levels) -> torch.Tensor:
        device = self._model.device
        return self._model.similarity(on_device(texts, device), on_device(videos, device)).float().cpu()

    @torch.inference_mode()
    def _encoded(self, dataset: Any, what: str) -> tuple[list[str], Levels, bool]:
        columns = set(dataset.column_names)
        kinds = columns & {"text", "video"}
        require(
            "id" in columns and len(kinds) == 1,
            f"the {what} have the columns {', '.join(sorted(columns))}; this model needs id, and text or video",
        )
        require(len(dataset) > 0, f"the {what} are empty")
        ids = [str(each) for each in dataset["id"]]
        if "text" in kinds:
            texts = [str(each) for each in dataset["text"]]
            device = self._model.device
            return ids, encode_texts(self._model, texts, device=device, batch_size=self._batch_size), True
        return ids, concatenate(list(self._videos(dataset))), False

    def _videos(self, dataset: Any) -> Iterator[Levels]:
        from datasets import Video

        # The bytes of the files, so that the decoder of the training videos decodes them.
        dataset = dataset.cast_column("video", Video(decode=False))
        for start in range(0, len(dataset), self._batch_size):
            rows = dataset[start : start + self._batch_size]["video"]
            clips = [decode_images(self._images(row)) for row in rows]
            batch = stack_frames(
                clips, image_size_px=self._model.clip.image_size_px, max_frames=self._model.config.max_frames
            )
            levels = self._model.encode_video(self._model.video_batch(batch.frames, batch.mask))
            yield on_host(levels)

    def _images(self, row: Mapping[str, Any]) -> list[bytes]:
        with TemporaryDirectory() as scratch:
            file = row["path"]
            if row["bytes"] is not None:
                # The name comes from the data set, so only its ending becomes a part of a path.
                file = f"{scratch}/video{Path(file or 'x.mp4').suffix}"
                Path(file).write_bytes(row["bytes"])
            images: list[bytes] = read_video(str(file), self._frames)["frames"]
        return images
