"""Heads above frozen features: adapters, temporal encoder, importance, merges and predictors, trained anew."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.interaction_quality import score_words
from benchmarks.study.arms import Arm
from benchmarks.study.features import Split, take
from hbi_models.axes import TokenFeatures, TokenLevel
from hbi_models.banzhaf.exact import exact_interaction
from hbi_models.configs import LEVELS, RetrievalConfig
from hbi_models.entropies import normalized_entropy
from hbi_models.losses import contrastive_loss, retrieval_loss
from hbi_models.metrics import RetrievalMetrics, text_to_video_ranks, video_to_text_ranks
from hbi_models.optimizer import clamp_logit_scale_, make_optimizer
from hbi_models.optimizer_config import OptimizerConfig
from hbi_models.retrieval import RetrievalModel, level_interaction
from hbi_models.similarity import level_similarity, token_cosines
from pipelines.models.encoding import concatenate
from pipelines.train.collapse import game_figures
from pipelines.train.sampling import epoch_batches

ESTIMATOR_STEPS = 100
"""About the demo's three epochs."""
_ESTIMATOR = OptimizerConfig(lr=2e-3)
_ENCODED_AT_ONCE = 256

Levels = tuple[TokenLevel, ...]


@dataclass(frozen=True)
class Training:
    """How heads are trained."""

    steps: int = 300
    batch_size: int = 64
    lr: float = 1e-3
    validate_every: int | None = None
    """Steps between validations, of which the best decides which weights are kept; None = the last weights are kept."""
    choose_by: str = "r1"
    """The figure by which the best validation is chosen."""
    channels: int | None = None
    """Channels of the predictors; None = those of the encoder. Predictors take most of the time of a step with a
    teacher."""


class Adapter(nn.Module):
    """Adds the output of a small network to each token; at the start that output is 0."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(dim, dim), nn.Linear(dim, dim)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, features: Tensor) -> Tensor:
        return features + self.outer(F.relu(self.inner(features)))


class Heads(nn.Module):
    """A retrieval model with frozen towers, which reads their stored features.

    The initial weights are a function of the seed and the settings that all arms share.
    """

    def __init__(self, arm: Arm, config: RetrievalConfig, encoder: RetrievalModel, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        dim = encoder.clip.embedding_dim
        self.arm = arm
        self.word_adapter, self.frame_adapter = Adapter(dim), Adapter(dim)
        # After the adapters, so that these begin alike whatever the settings of an arm.
        self.model = RetrievalModel(config)
        self.model.clip.load_state_dict(encoder.clip.state_dict())
        if config.temporal.init_from_clip_text:
            self.model.temporal.copy_clip_text(self.model.clip)
        self.model.clip.requires_grad_(False)
        # The temperature is no part of the stored features, so it is trained with the heads.
        self.model.clip.logit_scale.requires_grad_(True)
        if arm.kind != "hierarchy":
            for part in (self.model.text_merges, self.model.video_merges, self.model.predictors):
                part.requires_grad_(False)

    def texts(self, words: TokenFeatures) -> Levels:
        """The levels of texts."""
        tokens = TokenFeatures(self.word_adapter(words.features), words.mask)
        return self._of_arm(self.model.text_hierarchy(tokens, levels=self._levels))

    def videos(self, frames: TokenFeatures) -> Levels:
        """The levels of videos."""
        tokens = self.model.temporal(TokenFeatures(self.frame_adapter(frames.features), frames.mask))
        return self._of_arm(self.model.video_hierarchy(tokens, levels=self._levels))

    @property
    def _levels(self) -> int:
        return len(LEVELS) if self.arm.kind == "hierarchy" else 1

    def _of_arm(self, levels: Levels) -> Levels:
        """With mean pooling, the mean token of each item goes in front; the tokens stay, for their maps."""
        return (mean_token(levels[0]), *levels) if self.arm.kind == "mean" else levels

    def loss(self, texts: Levels, videos: Levels, *, watch: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of matching pairs, and figures beside it."""
        config, scale = self.model.config, self.model.clip.logit_scale
        if self.arm.kind != "hierarchy":
            logits = scale.exp() * level_similarity(texts[0], videos[0])
            return (contrastive_loss(logits) + contrastive_loss(logits.t())) / 2, {}
        pairs = self.model.relate(texts, videos)
        loss = retrieval_loss(pairs, scale, config=config.loss, quirks=config.quirks, game=config.game)
        return loss.total, game_figures(pairs, pairs, loss.parts, skl=config.loss.skl) if watch else {}


def mean_token(level: TokenLevel) -> TokenLevel:
    """One token for each item, the mean of its real ones."""
    count = level.mask.sum(dim=1, keepdim=True).clamp(min=1)
    mean = (level.features * level.mask[..., None]).sum(dim=1, keepdim=True) / count[..., None]
    return TokenLevel(mean, level.mask.any(dim=1, keepdim=True), level.logits.new_zeros(len(mean), 1))


def train_heads(
    arm: Arm,
    data: Mapping[str, Split],
    encoder: RetrievalModel,
    *,
    seed: int,
    training: Training,
    device: torch.device,
) -> dict[str, Any]:
    """Trains heads and evaluates them once on the test split; returns what was measured there."""
    started = time.monotonic()
    config = arm.settings(encoder.config, data["train"].frames.mask.shape[1], training.channels)
    heads = Heads(arm, config, encoder, seed).to(device)
    if heads.model.teacher is not None:
        train_teacher(heads, data["train"], seed=seed, training=training, device=device)
    optimizer, schedule = make_optimizer(heads, OptimizerConfig(lr=training.lr, clip_lr_factor=1.0), training.steps)
    trained = [parameter for parameter in heads.parameters() if parameter.requires_grad]
    best: tuple[float, dict[str, Tensor]] | None = None
    figures: dict[str, Tensor] = {}
    heads.train()
    for step, (words, frames) in enumerate(batches(data["train"], training, seed, device), start=1):
        loss, figures = heads.loss(heads.texts(words), heads.videos(frames), watch=step == training.steps)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        clamp_logit_scale_(heads.model.clip.logit_scale)
        # The last step is validated, too, so that weights are chosen among all that were trained.
        if training.validate_every and (step % training.validate_every == 0 or step == training.steps):
            score = measure(heads, data["val"], device)[training.choose_by]
            if best is None or score > best[0]:
                best = score, {name: value.clone() for name, value in heads.state_dict().items()}
            heads.train()
    if best is not None:
        heads.load_state_dict(best[1])
    measured = measure(heads, data["test"], device)
    return {
        **measured,
        **{name.removeprefix("game/"): value.item() for name, value in figures.items() if name.endswith("gradient")},
        "loss": loss.item(),
        "seconds": time.monotonic() - started,
    }


def batches(
    split: Split, training: Training, seed: int, device: torch.device
) -> Iterator[tuple[TokenFeatures, TokenFeatures]]:
    """Matching texts and videos of every step: functions of the seed alone."""
    texts = split.texts_of_videos
    left, epoch = training.steps, 0
    while left:
        for batch in epoch_batches(list(map(len, texts)), batch_size=training.batch_size, seed=seed, epoch=epoch):
            words, frames = split.pairs([texts[pair.video][pair.text] for pair in batch])
            yield on(words, device), on(frames, device)
            left -= 1
            if not left:
                return
        epoch += 1


def on(tokens: TokenFeatures, device: torch.device) -> TokenFeatures:
    """The tokens on a device, without columns that are padding in all items.

    They cost time, and change nothing but the predictors, whose attention does not mask padding (published).
    """
    longest = int(tokens.mask.sum(dim=1).max())
    return TokenFeatures(tokens.features[:, :longest].to(device), tokens.mask[:, :longest].to(device))


def train_teacher(heads: Heads, split: Split, *, seed: int, training: Training, device: torch.device) -> None:
    """Trains the estimator on exact labels of the untrained heads, as the pipeline does."""
    teacher = heads.model.teacher
    assert teacher is not None
    teacher.requires_grad_(True)
    steps = Training(steps=min(ESTIMATOR_STEPS, training.steps), batch_size=training.batch_size)
    optimizer, schedule = make_optimizer(teacher, _ESTIMATOR, steps.steps)
    scale = heads.model.config.game.scale
    for words, frames in batches(split, steps, seed, device):
        with torch.no_grad():
            text, video = heads.texts(words)[0], heads.videos(frames)[0]
            cosines = token_cosines(text, video)
            label = exact_interaction(scale * cosines, text.logits, video.logits, text.mask, video.mask)
        cells = text.mask[:, :, None] & video.mask[:, None, :]
        # Padding has no label; real cells alone are learned.
        ((teacher(cosines, 0, text.mask) - label) * cells).square().mean().backward()
        nn.utils.clip_grad_norm_(teacher.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
    teacher.requires_grad_(False)


@torch.inference_mode()
def measure(heads: Heads, split: Split, device: torch.device) -> dict[str, float]:
    """R@1 and ranks of all levels together and of the entity level, AUC of the maps, evenness of importance; percent.

    ``r1`` is the mean of both directions. ``auc`` is how well a word's cosines with the frames tell those that show
    it, ``auc_interaction`` the same of the exact interaction.
    """
    heads.eval()
    texts = encoded(heads.texts, split.words, device)
    videos = encoded(heads.videos, split.frames, device)
    game = heads.model.config.game
    found: dict[str, float] = {}
    scored = 1 if heads.arm.kind == "mean" else len(texts)
    levels = [
        level_similarity(text, video, coalitions=None if number or heads.arm.kind == "mean" else game.coalitions).cpu()
        for number, (text, video) in enumerate(zip(texts[:scored], videos[:scored], strict=True))
    ]
    for prefix, similarity in (("", torch.stack(levels).sum(dim=0)), ("entity_", levels[0])):
        ranks = {
            "t2v": text_to_video_ranks(similarity, split.video_of_text),
            "v2t": video_to_text_ranks(similarity, split.video_of_text),
        }
        metrics = {name: RetrievalMetrics.from_ranks(values) for name, values in ranks.items()}
        for name, values in metrics.items():
            found[f"{prefix}r1_{name}"] = values.recall_at_1
            found[f"{prefix}mean_rank_{name}"] = values.mean_rank
        found[f"{prefix}r1"] = sum(values.recall_at_1 for values in metrics.values()) / 2
    for level, text, video in zip(LEVELS, texts[-scored:], videos[-scored:], strict=False):
        for side, tokens in (("words", text), ("frames", video)):
            if tokens.mask.shape[1] > 1:
                found[f"{level}_{side}_entropy"] = normalized_entropy(tokens.logits, tokens.mask, dim=1).item()
    if split.truth:
        place = 1 if heads.arm.kind == "mean" else 0
        found |= measure_maps(texts[place], videos[place], split)
    return found


def encoded(encode: Callable[[TokenFeatures], Levels], tokens: TokenFeatures, device: torch.device) -> Levels:
    """The levels of all items."""
    rows = [slice(start, start + _ENCODED_AT_ONCE) for start in range(0, len(tokens.mask), _ENCODED_AT_ONCE)]
    return concatenate([encode(on(take(tokens, row), device)) for row in rows])


def measure_maps(words: TokenLevel, frames: TokenLevel, split: Split) -> dict[str, float]:
    """The AUCs of the maps of the entity level, over all words that only some frames show."""
    # [texts, frames, dim]: the video of each text.
    own = frames.map(lambda tensor: tensor[split.video_of_text.to(tensor.device)])
    maps = {"auc": token_cosines(words, own), "auc_interaction": level_interaction(words, own)}
    found = {}
    for name, values in maps.items():
        scores: dict[str, list[float]] = {}
        for row, line in zip(values.cpu().numpy(), split.truth, strict=True):
            # Words that were cut off were not read by the model; the last token is the end token.
            read = [word for word in line["words"] if word["span"][1] + 1 < len(row)]
            for attribute, score in score_words(read, row, line["frame_index"]):
                scores.setdefault(attribute, []).append(score)
        found[name] = float(np.mean([score for part in scores.values() for score in part]))
        found |= {f"{name}_{attribute}": float(np.mean(part)) for attribute, part in scores.items()}
    return found
