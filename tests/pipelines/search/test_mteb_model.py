"""MTEB runs a task made of generated clips, and finds what the model itself finds; where MTEB is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hbi_models.metrics import RetrievalMetrics, text_to_video_ranks, video_to_text_ranks
from pipelines.models.encoding import encode_texts
from pipelines.models.one_video import read_video
from pipelines.search.mteb_model import MtebSearch
from pipelines.video.frame_store import decode_images, stack_frames
from tests.search_index import write_model, write_videos

mteb = pytest.importorskip("mteb", reason="the extra mteb is not installed")
datasets = pytest.importorskip("datasets")

CAPTIONS = ["a red circle moves left", "a blue square grows", "a white ring", "two stars", "a green cross falls"]


def task_of(videos: list[Path], queries: str) -> Any:
    """A task in the form of MTEB's own ones: caption i belongs to video i."""
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.task_metadata import TaskMetadata

    ids = [str(number) for number in range(len(videos))]
    texts = datasets.Dataset.from_dict({"id": ids, "text": CAPTIONS})
    clips = datasets.Dataset.from_dict({"id": ids, "video": [str(video) for video in videos]})
    clips = clips.cast_column("video", datasets.Video(decode=False))

    class GeneratedClips(AbsTaskRetrieval):  # type: ignore[misc]
        metadata = TaskMetadata(
            name=f"GeneratedClips{queries.title()}",
            description="Generated clips.",
            dataset={"path": "none", "revision": "1"},
            type="Any2AnyRetrieval",
            eval_langs=["eng-Latn"],
            eval_splits=["test"],
            main_score="hit_rate_at_1",
            reference=None,
            category="t2v" if queries == "text" else "v2t",
            modalities=["text", "video"],
            date=None,
            domains=None,
            task_subtypes=[],
            license=None,
            annotations_creators=None,
            dialect=[],
            sample_creation=None,
            bibtex_citation=None,
        )

        def load_data(self, **unused: Any) -> None:
            asked, answers = (texts, clips) if queries == "text" else (clips, texts)
            relevant = {each: {each: 1} for each in ids}
            split = {"queries": asked, "corpus": answers, "relevant_docs": relevant, "top_ranked": None}
            self.dataset = {"default": {"test": split}}
            self.data_loaded = True

    return GeneratedClips()


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return sorted(write_videos(tmp_path_factory.mktemp("clips"), len(CAPTIONS)).iterdir())


def own_scores(search: MtebSearch, clips: list[Path]) -> torch.Tensor:
    model, frames = search._model, search._frames
    batch = stack_frames(
        [decode_images(read_video(str(clip), frames)["frames"]) for clip in clips],
        image_size_px=model.clip.image_size_px,
        max_frames=model.config.max_frames,
    )
    with torch.inference_mode():
        videos = model.encode_video(model.video_batch(batch.frames, batch.mask))
        return model.similarity(encode_texts(model, CAPTIONS, device=model.device, batch_size=2), videos)


@pytest.mark.parametrize("queries", ["text", "video"])
def test_a_task_of_generated_clips_has_the_models_own_figures(tmp_path: Path, clips: list[Path], queries: str) -> None:
    search = MtebSearch(str(write_model(tmp_path)), batch_size=2)
    (result,) = mteb.evaluate(search, task_of(clips, queries), cache=None).task_results
    (found,) = result.scores["test"]
    scores, owners = own_scores(search, clips), torch.arange(len(clips))
    ranks = text_to_video_ranks(scores, owners) if queries == "text" else video_to_text_ranks(scores, owners)
    metrics = RetrievalMetrics.from_ranks(ranks)
    assert found["recall_at_1"] == pytest.approx(metrics.recall_at_1 / 100, abs=1e-5)
    assert found["recall_at_5"] == pytest.approx(metrics.recall_at_5 / 100, abs=1e-5)
    assert found["ndcg_at_10"] == pytest.approx((1 / torch.log2(ranks + 1)).mean().item(), abs=1e-5)


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    search = MtebSearch(str(write_model(tmp_path)))
    texts = datasets.Dataset.from_dict({"id": ["0"], "text": ["a circle"]})
    search.index(texts)
    with pytest.raises(ValueError, match="both texts"):
        search.search(texts, top_k=1)
    with pytest.raises(ValueError, match="have the columns id, image; this model needs id, and text or video"):
        search.index(datasets.Dataset.from_dict({"id": ["0"], "image": ["x"]}))
