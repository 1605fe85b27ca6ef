"""Every caption and every video of a split has a rank, or there is no evaluation."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from hbi_models.clip.tokenizer import CaptionTokenizer
from hbi_models.retrieval import RetrievalModel
from pipelines.evaluate.documents import METRICS_FILE, RANKS_FILE, VARIANTS_FILE
from pipelines.evaluate.retrieval import evaluate_retrieval
from pipelines.evaluate.variants import Bank
from pipelines.models.weights import save_model
from pipelines.recipe.evaluation import EvaluationConfig
from pipelines.recipe.resources import ActorResources
from pipelines.splits import SplitView
from pipelines.tracker import StageTracker
from pipelines.workspace.storage import Storage
from tests.tiny_retrieval import MAX_WORDS, retrieval_config, write_split_data

pytestmark = pytest.mark.slow

BANK = ["a red square", "small and blue"]


def test_a_query_without_a_rank_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = write_split_data(tmp_path, {"test": [2, 1, 3], "val": [1, 1]})
    view, validation = (
        SplitView(data.folder("manifest"), data.folder("frames"), data.folder("pool"), split)
        for split in ("test", "val")
    )
    captions = [caption for video in range(len(view)) for caption in view.texts(video)]
    config = retrieval_config(tmp_path)
    settings = EvaluationConfig(
        split="test", bootstrap_samples=10, batch_size=2, post_processing=("dual_softmax", "qb_norm", "nnn")
    )
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
            resources=ActorResources(max_actors=0),
            seed=0,
            dataset="random videos",
            missing_videos=4,
            validation=validation,
            bank=Bank(view.store, [(0, text) for text in BANK]),
        )

    (tmp_path / "model").mkdir()
    evaluate(data.folder("whole"))
    ranks = data.read_table(f"whole/{RANKS_FILE}")
    assert ranks.column("direction").to_pylist() == ["text_to_video"] * len(captions) + ["video_to_text"] * len(view)

    protocol = data.read_json(f"whole/{METRICS_FILE}")["protocol"]
    assert {name: protocol[name] for name in ("dataset", "split", "gallery_videos", "text_queries")} == {
        "dataset": "random videos",
        "split": "test",
        "gallery_videos": 3,
        "text_queries": 6,
    }
    assert protocol["captions_per_video"] == {"least": 1, "mean": 2.0, "most": 3}
    assert (protocol["missing_videos"], protocol["videos_without_caption"]) == (4, 0)
    assert protocol["checkpoint"] == {"chosen": "not recorded"}

    rows = data.read_table(f"whole/{VARIANTS_FILE}").to_pylist()
    methods = [*settings.post_processing]
    variants = data.read_json(f"whole/{METRICS_FILE}")["variants"]
    assert set(variants) == {"caption_max", "caption_mean", "one_caption", *methods}
    assert [variants[name]["protocol"]["post_processing"] for name in methods] == methods
    assert [variants[name]["bank"] for name in methods] == [0, 2, 2]
    counts = Counter((row["variant"], row["direction"]) for row in rows)
    assert counts["nnn", "text_to_video"] == 6 and counts["nnn", "video_to_text"] == 0
    assert counts["one_caption", "text_to_video"] == counts["one_caption", "video_to_text"] == 3
    for name, values in variants.items():
        for direction in {"text_to_video", "video_to_text"} & set(values):
            ranks_of = [row["rank"] for row in rows if (row["variant"], row["direction"]) == (name, direction)]
            assert values[direction]["mean_rank"]["value"] == pytest.approx(sum(ranks_of) / len(ranks_of))

    # A training that diverged at one word: the others can still be ranked.
    (word,) = {word for caption in captions for word in caption.split()} & {"circle"}
    ids, _ = CaptionTokenizer(MAX_WORDS)([word])
    with torch.no_grad():
        (embedding,) = (weight for name, weight in model.named_parameters() if "token_embedding" in name)
        embedding[int(ids[0, 1])] = torch.nan
    hit = [caption for caption in captions if word in caption.split()]
    assert 0 < len(hit) < len(captions)
    with pytest.raises(
        ValueError, match=f"{len(hit)} of {len(captions) + 2} captions and 3 of 3 videos cannot"
    ) as error:
        evaluate(data.folder("broken"))
    assert repr(hit[0]) in str(error.value)
    assert data.files("broken") == []
