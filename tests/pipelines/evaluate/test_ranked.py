"""Every caption and every video of a split has a rank, or there is no evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hbi_models.clip.tokenizer import CaptionTokenizer
from hbi_models.retrieval import RetrievalModel
from pipelines.evaluate.documents import RANKS_FILE
from pipelines.evaluate.retrieval import evaluate_retrieval
from pipelines.models.weights import save_model
from pipelines.recipe.evaluation import EvaluationConfig
from pipelines.recipe.resources import ActorResources
from pipelines.splits import SplitView
from pipelines.tracker import StageTracker
from pipelines.workspace.storage import Storage
from tests.tiny_retrieval import MAX_WORDS, retrieval_config, write_split_data


def test_a_query_without_a_rank_is_named_and_nothing_is_written(tmp_path: Path, ray_local: Any) -> None:
    torch.manual_seed(0)
    data = write_split_data(tmp_path, {"test": [2, 1, 3]})
    view = SplitView(data.folder("manifest"), data.folder("frames"), data.folder("pool"), "test")
    captions = [caption for video in range(len(view)) for caption in view.texts(video)]
    config = retrieval_config(tmp_path)
    settings = EvaluationConfig(split="test", bootstrap_samples=10, batch_size=2)
    model = RetrievalModel(config)

    def evaluate(output: Storage) -> None:
        save_model(tmp_path / "model", model, kind="retrieval", config=config)
        evaluate_retrieval(
            output,
            StageTracker(),
            view,
            checkpoint=str(tmp_path / "model"),
            config=config,
            settings=settings,
            resources=ActorResources(max_actors=1),
            seed=0,
        )

    (tmp_path / "model").mkdir()
    evaluate(data.folder("whole"))
    ranks = data.read_table(f"whole/{RANKS_FILE}")
    assert ranks.column("direction").to_pylist() == ["text_to_video"] * len(captions) + ["video_to_text"] * len(view)

    # A training that diverged at one word: the others can still be ranked.
    (word,) = {word for caption in captions for word in caption.split()} & {"circle"}
    ids, _ = CaptionTokenizer(MAX_WORDS)([word])
    with torch.no_grad():
        (embedding,) = (weight for name, weight in model.named_parameters() if "token_embedding" in name)
        embedding[int(ids[0, 1])] = torch.nan
    hit = [caption for caption in captions if word in caption.split()]
    assert 0 < len(hit) < len(captions)
    with pytest.raises(ValueError, match=f"{len(hit)} of {len(captions)} captions and 3 of 3 videos cannot") as error:
        evaluate(data.folder("broken"))
    assert repr(hit[0]) in str(error.value)
    assert data.files("broken") == []
