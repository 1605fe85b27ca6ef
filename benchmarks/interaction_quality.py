"""How well does the interaction of a word and a frame tell when the word is to be seen?

    python -m benchmarks.interaction_quality [--workspace workspace/quality] [--seeds 1 2 3] [--output quality]

Runs the demo's recipe for each seed (what is done is skipped), or takes ``--checkpoints`` of the demo's
recipe and the generated data that ``--shapes`` names. The data's ``truth.jsonl`` says in which frames of
a test clip each colour, shape and motion of its captions is to be seen. Every such word, or words of a
motion, that is visible in some of the sampled frames and not in others gives an AUC: the probability that
a frame that shows it has a higher value than one that does not; equal values count half, chance is 50.

A value of a merged phrase and clip stands for all of its words and frames, so that the levels are judged
by the same words: where a level has a single clip, it says nothing about time and scores 50.

Maps: ``exact`` interaction; ``published label``, the expectation of the published sampling;
``estimator``, the network that taught the model; ``predictor``, the model's own; ``similarity``, the cosine;
``attention``, the softmax of the cosines over frames times that over words, at CLIP's temperature.
Intervals are Student's over seeds, and with one checkpoint by resampling the clips 1,000 times (95%).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from hbi_models.axes import TokenLevel, VideoBatch
from hbi_models.banzhaf.exact import exact_interaction
from hbi_models.banzhaf.published import published_labels
from hbi_models.clip.preprocessing import normalize_pixels
from hbi_models.configs import LEVELS
from hbi_models.retrieval import RetrievalModel, hierarchy_members
from hbi_models.similarity import token_cosines, token_weights
from jobs.settings import read_recipe, recipe_parser
from pipelines.figures.reading import load_pair_reader
from pipelines.graph import make_graph
from pipelines.models.folder import MODEL
from pipelines.models.one_video import read_video
from pipelines.recipe.frames import FramesConfig
from pipelines.recipe.recipe import Recipe
from pipelines.run import run_plan
from pipelines.shapes.data_set import VIDEOS_FOLDER
from pipelines.video.frame_store import decode_images, stack_frames
from pipelines.workspace.storage import Storage

RECIPE = "jobs/recipes/demo.yaml"
AHEAD = "all, less similarity"
ATTRIBUTES = ("colour", "shape", "motion")
RESAMPLES = 1000
LABEL_SUBSETS = 1024

Scores = dict[tuple[str, str, str], list[list[float]]]
"""AUCs of every level, map and attribute, clip by clip."""


def exact(model: RetrievalModel, level: str, cosines: Tensor, words: TokenLevel, frames: TokenLevel) -> Tensor:
    return exact_interaction(cosines, words.logits, frames.logits, words.mask, frames.mask)


def published(model: RetrievalModel, level: str, cosines: Tensor, words: TokenLevel, frames: TokenLevel) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    weights = token_weights(words), token_weights(frames)
    masks = words.mask, frames.mask
    return published_labels(cosines, *weights, *masks, most_subsets=LABEL_SUBSETS, generator=generator)


def estimator(model: RetrievalModel, level: str, cosines: Tensor, words: TokenLevel, frames: TokenLevel) -> Tensor:
    if model.teacher is None:
        raise ValueError("the model was trained without an estimator; give one of the teacher estimator")
    estimate: Tensor = model.teacher(cosines)
    return estimate


def predictor(model: RetrievalModel, level: str, cosines: Tensor, words: TokenLevel, frames: TokenLevel) -> Tensor:
    prediction: Tensor = model.predictors[level](cosines)
    return prediction


def similarity(model: RetrievalModel, level: str, cosines: Tensor, words: TokenLevel, frames: TokenLevel) -> Tensor:
    return cosines


def attention(model: RetrievalModel, level: str, cosines: Tensor, words: TokenLevel, frames: TokenLevel) -> Tensor:
    logits = model.clip.logit_scale.exp() * cosines
    over_frames = logits.masked_fill(~frames.mask[:, None, :], -torch.inf).softmax(dim=2)
    over_words = logits.masked_fill(~words.mask[:, :, None], -torch.inf).softmax(dim=1)
    return over_frames * over_words


MAPS: dict[str, Callable[[RetrievalModel, str, Tensor, TokenLevel, TokenLevel], Tensor]] = {
    "exact": exact,
    "published label": published,
    "estimator": estimator,
    "predictor": predictor,
    "similarity": similarity,
    "attention": attention,
}


@dataclass(frozen=True)
class Clip:
    """A test clip as the truth describes it, and its sampled frames."""

    captions: Sequence[Mapping[str, object]]
    images: Sequence[Tensor]
    frame_index: Sequence[int]


def read_clips(shapes: Storage, frames: FramesConfig) -> Iterator[Clip]:
    """The test clips that show different things at different times; the others have nothing to tell apart."""
    for line in shapes.read_bytes("truth.jsonl").decode().splitlines():
        truth = json.loads(line)
        whole = [0, truth["num_frames"]]
        if truth["split"] != "test" or all(
            word["frames"] == whole for caption in truth["captions"] for word in caption["words"]
        ):
            continue
        row = read_video(shapes.path(VIDEOS_FOLDER, f"{truth['video_id']}.mp4"), frames)
        yield Clip(truth["captions"], decode_images(row["frames"]), row["frame_index"])


def auc(values: np.ndarray, shown: np.ndarray) -> float:
    """In percent, the probability that a value of what is shown lies above one of what is not."""
    differences = values[shown][:, None] - values[~shown][None, :]
    return 100 * float(((differences > 0) + 0.5 * (differences == 0)).mean())


@torch.inference_mode()
def score_clip(model: RetrievalModel, clip: Clip) -> dict[tuple[str, str, str], list[float]]:
    """The AUCs of all captions of a clip by level, map and attribute."""
    stacked = stack_frames([clip.images], image_size_px=model.clip.image_size_px, max_frames=model.config.max_frames)
    texts = model.tokenizer.batch([caption["caption"] for caption in clip.captions])
    words = model.encode_text(texts)
    one = model.encode_video(VideoBatch(normalize_pixels(stacked.frames), stacked.mask))
    frames = tuple(level.map(lambda tensor: tensor.expand(len(texts.mask), *tensor.shape[1:])) for level in one)
    members = zip(
        hierarchy_members(words, model.text_merges), hierarchy_members(frames, model.video_merges), strict=True
    )
    found: dict[tuple[str, str, str], list[float]] = {}
    for level, text, video, (word_members, frame_members) in zip(LEVELS, words, frames, members, strict=True):
        cosines = token_cosines(text, video)
        for name, make in MAPS.items():
            values = make(model, level, cosines, text, video)
            # Of a phrase and a clip to their words and frames.
            # Each finest token belongs to one token of this level; padding to none, and argmax makes that 0.
            row, column = word_members.long().argmax(dim=2), frame_members.long().argmax(dim=2)
            pairs = torch.arange(len(values))[:, None, None]
            spread = values[pairs, row[:, :, None], column[:, None, :]].numpy()
            for number, caption in enumerate(clip.captions):
                for attribute, score in score_words(caption["words"], spread[number], clip.frame_index):
                    found.setdefault((level, name, attribute), []).append(score)
    return found


def score_words(
    words: Iterable[Mapping[str, Any]], values: np.ndarray, frame_index: Sequence[int]
) -> Iterator[tuple[str, float]]:
    """The AUC of each named attribute of a caption that only some frames show."""
    places = np.asarray(frame_index)
    for word in words:
        shown = (places >= word["frames"][0]) & (places < word["frames"][1])
        if shown.any() and not shown.all():
            # Every word is one token, and the first token is the start.
            first, last = (place + 1 for place in word["span"])
            yield word["attribute"], auc(values[first:last, : len(places)].mean(axis=0), shown)


def score_checkpoint(checkpoint: str, recipe: Recipe, clips: Sequence[Clip]) -> Scores:
    """The AUCs of one model."""
    model = load_pair_reader(checkpoint, recipe).model
    scores: Scores = {(level, name, kind): [] for level in LEVELS for name in MAPS for kind in ATTRIBUTES}
    for clip in clips:
        found = score_clip(model, clip)
        for key, values in scores.items():
            values.append(found.get(key, []))
    return scores


def summarise(runs: Sequence[Scores]) -> list[dict[str, Any]]:
    """Mean and interval of every level and map, over all words and by attribute.

    With several models also by how much a map is ahead of the similarities of the same model.
    """
    rows = []
    for level in LEVELS:
        for name in MAPS:
            row: dict[str, Any] = {"level": level, "map": name}
            for kind in ("all", *ATTRIBUTES):
                kinds = ATTRIBUTES if kind == "all" else (kind,)
                row[kind] = interval([_by_clip([scores[level, name, part] for part in kinds]) for scores in runs])
            rows.append(row)
    if len(runs) > 1:
        plain = {row["level"]: row["all"]["by_seed"] for row in rows if row["map"] == "similarity"}
        for row in rows:
            pairs = zip(row["all"]["by_seed"], plain[row["level"]], strict=True)
            row[AHEAD] = over_seeds([own - similar for own, similar in pairs])
    return rows


def _by_clip(attributes: Sequence[Sequence[Sequence[float]]]) -> list[list[float]]:
    """The AUCs of all attributes together, clip by clip."""
    return [list(chain.from_iterable(clip)) for clip in zip(*attributes, strict=True)]


def interval(runs: Sequence[Sequence[Sequence[float]]]) -> dict[str, Any]:
    """Mean, bounds and number of AUCs, given clip by clip for every run."""
    means = [float(np.mean([score for clip in run for score in clip])) for run in runs]
    count = sum(map(len, runs[0]))
    if len(runs) > 1:
        return {**over_seeds(means), "words": count, "by_seed": means}
    scored = [clip for clip in runs[0] if clip]
    # Clips are resampled with all their words, because words of one clip are not independent.
    sums, sizes = (np.array([measure(clip) for clip in scored]) for measure in (sum, len))
    drawn = np.random.default_rng(0).integers(len(sums), size=(RESAMPLES, len(sums)))
    low, high = np.quantile(sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1), (0.025, 0.975))
    return {"value": means[0], "low": float(low), "high": float(high), "words": count}


def over_seeds(values: Sequence[float]) -> dict[str, float]:
    """Mean and Student's interval."""
    mean = float(np.mean(values))
    half = float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return {"value": mean, "low": mean - half, "high": mean + half}


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The summary as a table."""
    columns = [name for name in ("all", *ATTRIBUTES, AHEAD) if name in rows[0]]
    lines = [f"| level | map | {' | '.join(columns)} |", "|---" * (2 + len(columns)) + "|"]
    for row in rows:
        shown = [f"{cell['value']:.1f} ({cell['low']:.1f} to {cell['high']:.1f})" for cell in map(row.get, columns)]
        lines.append(f"| {row['level']} | {row['map']} | {' | '.join(shown)} |")
    return "\n".join(lines)


def train(recipe: Recipe, seed: int) -> tuple[str, str]:
    """The model of the recipe with this seed and its generated data; made first, if they are not there."""
    graph = make_graph(replace(recipe, seed=seed))
    run_plan(graph, graph.plan(until_stage="retrieval"), replace(recipe, seed=seed))
    model, shapes = graph.artifact("retrieval"), graph.artifact("shapes")
    assert model is not None and shapes is not None
    return model.storage.folder(MODEL).uri, shapes.storage.uri


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", default=str(Path("workspace") / "quality"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--checkpoints", nargs="+", help="models of the demo's recipe, instead of training some")
    parser.add_argument("--shapes", help="their generated data: the folder with truth.jsonl")
    parser.add_argument("--output", default="quality", help="folder of interaction_quality.md and .json")
    options = parser.parse_args()
    arguments = ["--config", RECIPE, "--workspace", options.workspace, "--tasks", "[retrieval]"]
    recipe, _ = read_recipe(recipe_parser("The demo."), arguments)
    if options.checkpoints:
        if options.shapes is None:
            parser.error("--checkpoints needs --shapes: the folder with the truth.jsonl of their generated data")
        checkpoints, shapes = options.checkpoints, options.shapes
    else:
        trained = [train(recipe, seed) for seed in options.seeds]
        checkpoints, shapes = [model for model, _ in trained], trained[0][1]
    clips = list(read_clips(Storage(shapes), recipe.frames))
    rows = summarise([score_checkpoint(checkpoint, recipe, clips) for checkpoint in checkpoints])
    document = {"clips": len(clips), "checkpoints": checkpoints, "rows": rows}
    output = Storage(options.output)
    output.write_json("interaction_quality.json", document)
    output.write_bytes("interaction_quality.md", f"{markdown(rows)}\n".encode())
    words = rows[0]["all"]["words"]
    print(f"{words:,} words in the captions of {len(clips)} clips, {len(checkpoints)} models; AUC in percent\n")
    print(markdown(rows))


if __name__ == "__main__":
    main()
