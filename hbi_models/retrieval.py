"""The retrieval model: captions and videos as three levels of tokens, and the interactions of pairs.

    words  ── CLIP text tower ───────────────► entity ── merge ──► action ── merge ──► event
    frames ── CLIP image tower ── temporal ──► entity ── merge ──► action ── merge ──► event

Each level has importance logits for its tokens. Everything is computed per text, per video or
per pair; ``losses.retrieval_loss`` relates the pairs of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from hbi_models.axes import (
    Interaction,
    PairFeatures,
    TextBatch,
    TokenFeatures,
    TokenLevel,
    VideoBatch,
    at_least_float32,
)
from hbi_models.banzhaf.estimator import InteractionEstimator
from hbi_models.banzhaf.exact import exact_interaction
from hbi_models.clip.loading import load_clip
from hbi_models.clip.pixels import with_pixel_statistics
from hbi_models.clip.tokenizer import CaptionTokenizer
from hbi_models.config_fields import require
from hbi_models.configs import LEVELS, Quirks, RetrievalConfig
from hbi_models.draws import BatchDraws
from hbi_models.similarity import retrieval_similarity, token_cosines
from hbi_models.stored import StoredModel
from hbi_models.temporal_encoder import TemporalEncoder
from hbi_models.token_merging import TokenMerge, count_clusters
from hbi_models.token_projections import TokenProjections


class RetrievalModel(StoredModel):
    """Encodes captions and videos into the hierarchy and predicts the interactions of pairs.

    With ``game.teacher`` = ``estimator`` the network ``teacher`` starts random: load a trained
    estimator's state dict into it. Parameters that the settings leave without a gradient do not
    require one.

    Args:
        config: The settings.
        clip_weights: As in :func:`hbi_models.clip.loading.load_clip`.

    Raises:
        ValueError: The settings do not fit the CLIP architecture.
    """

    kind, settings = "retrieval", RetrievalConfig

    def __init__(self, config: RetrievalConfig, clip_weights: Path | None = None) -> None:
        super().__init__()
        # The pixel statistics of the weights' tag are written into the settings, because a stored model has no tag.
        config = replace(config, clip=with_pixel_statistics(config.clip))
        self.config = config
        if config.tokens is not None:
            self.tokens = TokenProjections(config.tokens)
            dim = config.tokens.dim
            self.temporal = TemporalEncoder(dim, config.temporal, num_positions=config.max_frames, quick_gelu=False)
        else:
            self.clip = load_clip(config.clip, clip_weights)
            dim = self.clip.embedding_dim
            require(
                config.max_words <= self.clip.context_length,
                f"max_words is {config.max_words}, but the CLIP architecture {config.clip.architecture!r} has "
                f"{self.clip.context_length} text positions; lower max_words",
            )
            self.temporal = TemporalEncoder(
                dim,
                config.temporal,
                # As many as the text tower has, as published: its positions are copied in.
                num_positions=max(self.clip.context_length, config.max_frames),
                quick_gelu=self.clip.uses_quick_gelu,
            )
        self.dim = dim
        # Published: 512-1024-1.
        self.text_importance = nn.ModuleDict({level: importance_network(dim, 2 * dim) for level in LEVELS})
        self.video_importance = nn.ModuleDict({level: importance_network(dim, 2 * dim) for level in LEVELS})
        # Merges and estimators are made after this and keep the initial values of their own layers, as published.
        for module in (self.temporal, self.text_importance, self.video_importance):
            module.apply(init_published)
        if config.temporal.init_from_clip_text and config.tokens is None:
            self.temporal.copy_clip_text(self.clip)
        self.text_merges = make_merges(dim, config.max_words, config.merging.text_rates, config)
        self.video_merges = make_merges(dim, config.max_frames, config.merging.video_rates, config)
        channels = config.game.estimator_channels
        self.predictors = nn.ModuleDict({level: InteractionEstimator(channels) for level in LEVELS})
        # DistributedDataParallel waits for a gradient of every parameter that requires one.
        self.predictors.requires_grad_(self.learns_interaction)
        self.teacher = InteractionEstimator(channels) if config.game.teacher == "estimator" else None
        if self.teacher is not None:
            self.teacher.requires_grad_(False)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.logit_scale.device

    @property
    def logit_scale(self) -> nn.Parameter:
        """The log of the inverse temperature of the contrastive loss."""
        return self.clip.logit_scale if self.config.tokens is None else self.tokens.logit_scale

    @property
    def tokenizer(self) -> CaptionTokenizer:
        """What turns captions into the tokens that this model reads, ``max_words`` of them at most."""
        self.require_encoder("captions")
        return CaptionTokenizer(self.config.max_words, self.clip.codec)

    def text_batch(self, captions: Sequence[str]) -> TextBatch:
        """Returns captions as the model reads them, on its device: cut and padded to ``max_words`` tokens."""
        return self.tokenizer.batch(captions).to(self.device)

    def video_batch(
        self,
        frames: UInt8[Tensor, "videos frames 3 height width"],
        mask: Bool[Tensor, "videos frames"] | None = None,
    ) -> VideoBatch:
        """Returns stored frames as the model reads them; see :meth:`ClipBackbone.video_batch`."""
        self.require_encoder("frames")
        return self.clip.video_batch(frames, mask)

    def require_encoder(self, what: str) -> None:
        """Checks that the model encodes ``what`` itself.

        Raises:
            ValueError: it reads features that another model made.
        """
        require(
            self.config.tokens is None,
            f"this model reads features that another model made of {what} (model.tokens), and cannot encode {what} "
            "itself; give it such features, or use a model that was trained with CLIP",
        )

    @property
    def has_frozen_encoder(self) -> bool:
        """Whether there are towers of CLIP that stay as they are."""
        return self.config.tokens is None and self.config.clip.train == "none"

    @property
    def fixed_weights(self) -> frozenset[str]:
        """Names of the weights of a frozen encoder."""
        if not self.has_frozen_encoder:
            return frozenset()
        # The temperature is trained in any case.
        return frozenset(f"clip.{name}" for name in self.clip.state_dict() if name != "logit_scale")

    def train(self, mode: bool = True) -> RetrievalModel:
        """Sets the mode as PyTorch does; a frozen encoder always does what it does in evaluation."""
        super().train(mode)
        if self.has_frozen_encoder:
            self.clip.eval()
        return self

    @property
    def learns_interaction(self) -> bool:
        """Whether the settings ask for an interaction loss."""
        return self.config.loss.skl > 0 and self.config.game.teacher != "none"

    def forward(
        self, texts: TextBatch | TokenFeatures, videos: VideoBatch | TokenFeatures, draws: BatchDraws | None = None
    ) -> PairFeatures:
        """Returns what the loss needs of matching pairs: text i belongs to video i.

        Features of words and frames that were made before take the place of texts and videos. ``draws`` gives the
        tie-break noise of the clustering, where the settings ask for it.
        """
        return self.relate(self.encode_text(texts, draws), self.encode_video(videos, draws))

    def relate(self, texts: tuple[TokenLevel, ...], videos: tuple[TokenLevel, ...]) -> PairFeatures:
        """Returns the levels of matching pairs with their interactions, predicted and target."""
        if not self.learns_interaction:
            return PairFeatures(texts, videos, interactions=())
        interactions = (
            self._interaction(name, text, video) for name, text, video in zip(LEVELS, texts, videos, strict=True)
        )
        return PairFeatures(texts, videos, tuple(interactions))

    def encode_text(
        self, texts: TextBatch | TokenFeatures, draws: BatchDraws | None = None, *, levels: int = len(LEVELS)
    ) -> tuple[TokenLevel, ...]:
        """Returns the entity, action and event level of every caption, or the first ``levels`` of them."""
        if isinstance(texts, TextBatch):
            texts = TokenFeatures(self.clip.encode_words(texts.token_ids, texts.mask), texts.mask)
        words = texts if self.config.tokens is None else self.tokens.project("words", texts)
        return self.text_hierarchy(words, draws, levels=levels)

    def encode_video(
        self, videos: VideoBatch | TokenFeatures, draws: BatchDraws | None = None, *, levels: int = len(LEVELS)
    ) -> tuple[TokenLevel, ...]:
        """Returns the entity, action and event level of every video, or the first ``levels`` of them."""
        if isinstance(videos, VideoBatch):
            videos = TokenFeatures(self.encode_frames(videos), videos.mask)
        frames = videos if self.config.tokens is None else self.tokens.project("frames", videos)
        return self.video_hierarchy(self.temporal(frames), draws, levels=levels)

    def text_hierarchy(
        self, words: TokenFeatures, draws: BatchDraws | None = None, *, levels: int = len(LEVELS)
    ) -> tuple[TokenLevel, ...]:
        """Returns the first ``levels`` levels above word features."""
        return build_hierarchy(words, self.text_merges, self.text_importance, draws, levels=levels)

    def video_hierarchy(
        self, frames: TokenFeatures, draws: BatchDraws | None = None, *, levels: int = len(LEVELS)
    ) -> tuple[TokenLevel, ...]:
        """Returns the first ``levels`` levels above frame features that have passed the temporal encoder."""
        return build_hierarchy(frames, self.video_merges, self.video_importance, draws, levels=levels)

    def similarity(
        self,
        texts: Sequence[TokenLevel],
        videos: Sequence[TokenLevel],
        rates: Sequence[float] | None = None,
    ) -> Float[Tensor, "texts videos"]:
        """Returns the retrieval score of every text with every video, the larger the better.

        ``rates`` weigh the levels; by default they are the settings' ``level_rates``. Levels above all that
        count (``counted_levels``) may be left out.

        Raises:
            ValueError: a level that counts is left out.
        """
        rates = self.config.level_rates if rates is None else rates
        require(not any(rates[len(texts) :]), f"got {len(texts)} levels, but their rates are {tuple(rates)}")
        return retrieval_similarity(
            texts,
            videos,
            rates[: len(texts)],
            zero_floor=self.config.quirks.zero_floor,
            coalitions=self.config.game.coalitions,
        )

    def encode_frames(self, videos: VideoBatch) -> Float[Tensor, "videos frames dim"]:
        """Returns CLIP's feature of every frame, 0 at padding; with ``quirks.encode_padding`` that of a zero image."""
        if self.config.quirks.encode_padding:
            # Zeros after the normalisation, as published: the mean colour.
            pixels = videos.pixels * rearrange(videos.mask, "videos frames -> videos frames 1 1 1")
            videos = VideoBatch(pixels, torch.ones_like(videos.mask))
        return self.clip.encode_videos(videos)

    def _interaction(self, name: str, text: TokenLevel, video: TokenLevel) -> Interaction:
        cosines = token_cosines(text, video)
        # Batches of features leave out words that are padding in all texts. The networks attend to padding, too, so
        # they are told how many words are absent.
        absent = max(self.config.max_words - cosines.shape[1], 0) if name == LEVELS[0] else 0
        # With a mask, a CPU leaves out the padding of each text. At higher levels little would be saved, and published
        # slips let the loss see what is predicted at padding.
        word_mask = text.mask if name == LEVELS[0] and self.config.quirks == Quirks() else None
        prediction = self.predictors[name](cosines, absent, word_mask)
        target = self._teach(cosines.detach(), text, video, absent, word_mask)
        return Interaction(at_least_float32(prediction), at_least_float32(target))

    @torch.no_grad()
    def _teach(
        self,
        cosines: Float[Tensor, "pairs words frames"],
        text: TokenLevel,
        video: TokenLevel,
        absent_words: int,
        word_mask: Bool[Tensor, "pairs words"] | None,
    ) -> Float[Tensor, "pairs words frames"]:
        if self.teacher is not None:
            target: Tensor = self.teacher(cosines, absent_words, word_mask)
            return target
        if self.config.game.teacher == "cosine":
            return self.config.game.scale * cosines
        # NaN instead of an error for logits that are not finite: on several workers all must reach the loss, where they
        # stop together.
        finite = finite_logits(text) & finite_logits(video)
        words, frames = (
            level.logits.detach().where(rearrange(finite, "pairs -> pairs 1"), 0.0) for level in (text, video)
        )
        scaled = self.config.game.scale * cosines
        target = exact_interaction(scaled, words, frames, text.mask, video.mask)
        return target.where(rearrange(finite, "pairs -> pairs 1 1"), torch.nan)


def build_hierarchy(
    tokens: TokenFeatures,
    merges: nn.ModuleDict,
    importance: nn.ModuleDict,
    draws: BatchDraws | None = None,
    *,
    levels: int = len(LEVELS),
) -> tuple[TokenLevel, ...]:
    """Returns the first ``levels`` levels from the finest up: tokens, and tokens merged once and twice."""
    built = []
    for level in LEVELS[:levels]:
        if level in merges:
            tokens = merges[level](tokens, draws)
        logits = importance_logits(importance[level], tokens.features)
        built.append(TokenLevel(tokens.features, tokens.mask, logits))
    return tuple(built)


def level_interaction(
    texts: TokenLevel, videos: TokenLevel, *, scale: float = 1.0
) -> Float[Tensor, "pairs words frames"]:
    """Returns the exact Banzhaf interaction of words and frames of matching pairs, of ``scale`` times their cosines.

    Raises:
        NonFiniteLogitsError: an importance logit of a real token is not finite; on an accelerator, where that is not
            known in time, the interaction of its pair is NaN (``require_finite``).
    """
    cosines = token_cosines(texts, videos)
    return exact_interaction(scale * cosines, texts.logits, videos.logits, texts.mask, videos.mask)


def finite_logits(level: TokenLevel) -> Bool[Tensor, " items"]:
    """Returns whether all real tokens of each item have a finite importance logit."""
    return (level.logits.isfinite() | ~level.mask).all(dim=1)


def counted_levels(rates: Sequence[float]) -> int:
    """How many levels, from the finest up, a score with these ``rates`` needs."""
    return max((number for number, rate in enumerate(rates, start=1) if rate), default=0)


@torch.no_grad()
def hierarchy_members(
    levels: Sequence[TokenLevel], merges: nn.ModuleDict
) -> tuple[Bool[Tensor, "items finest tokens"], ...]:
    """Returns for every level which of the finest real tokens each of its tokens was merged from.

    ``levels`` are what ``build_hierarchy`` made with the same ``merges``, without tie-break noise.
    """
    members = [torch.diag_embed(levels[0].mask)]
    for name, below in zip(LEVELS[1:], levels, strict=False):
        merge = merges[name]
        assert isinstance(merge, TokenMerge)
        clusters = merge.cluster(merge.prepare(TokenFeatures(below.features, below.mask))[0], below.mask)
        # One of the finest tokens is in a cluster if a token that it was merged into is.
        members.append((members[-1].float() @ clusters.float()).bool())
    return tuple(members)


def make_merges(dim: int, max_tokens: int, rates: tuple[float, float], config: RetrievalConfig) -> nn.ModuleDict:
    """Returns one merge for each level above the finest, by the name of the level it makes.

    The numbers of clusters follow from the longest item that the settings allow, not from the
    batch at hand, so that an item's clusters do not depend on how much it is padded.
    """
    merges = nn.ModuleDict()
    num_tokens = max_tokens
    for level, rate in zip(LEVELS[1:], rates, strict=True):
        num_tokens = count_clusters(num_tokens, rate)
        merges[level] = TokenMerge(dim, num_tokens, config=config.merging, quirks=config.quirks)
    return merges


def importance_network(dim: int, hidden: int) -> nn.Sequential:
    """Returns the network that gives a token its importance logit."""
    return nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, 1))


def importance_logits(network: nn.Module, features: Float[Tensor, "items tokens dim"]) -> Float[Tensor, "items tokens"]:
    """Returns the importance logit of every token, in float32."""
    logits: Tensor = network(features)
    return rearrange(at_least_float32(logits), "items tokens 1 -> items tokens")


def init_published(module: nn.Module) -> None:
    """Initialises linear layers and embeddings as published: normal with deviation 0.02, biases 0."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
