"""Search and ranking by a pretrained encoder alone: its embedding of a text against those of a video's frames.

A text is one vector: the embedding of its end token, or of whichever position the encoder uses. Single words have no
embeddings that were trained for comparison with frames. A video is the embeddings of its frames, each encoded by
itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from hbi_models.axes import TextBatch, TokenLevel, VideoBatch
from hbi_models.clip.loading import load_clip
from hbi_models.clip.pixels import with_pixel_statistics
from hbi_models.clip.tokenizer import CaptionTokenizer
from hbi_models.stored import StoredModel
from hbi_models.zero_shot_config import ZeroShotConfig, ZeroShotPooling


class ZeroShotModel(StoredModel):
    """A pretrained encoder under the interface of :class:`RetrievalModel`, with one level: one text token, all frames.

    ``weights`` as in :func:`load_clip`.

    Raises:
        ValueError: The encoder cannot be used.
    """

    kind, settings = "zero_shot", ZeroShotConfig

    def __init__(self, config: ZeroShotConfig, weights: Path | None = None) -> None:
        super().__init__()
        self.config = config.with_clip(with_pixel_statistics(config.clip))
        self.clip = load_clip(replace(self.config.clip, train="none"), weights)
        # A frozen encoder still has a temperature to train.
        self.requires_grad_(False)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.clip.logit_scale.device

    @property
    def tokenizer(self) -> CaptionTokenizer:
        """What turns captions into tokens: as many as the encoder takes, as published for zero-shot retrieval."""
        return CaptionTokenizer(self.clip.context_length, self.clip.codec)

    def text_batch(self, captions: Sequence[str]) -> TextBatch:
        """Returns captions as the encoder reads them, on its device."""
        return self.tokenizer.batch(captions).to(self.device)

    def video_batch(
        self,
        frames: UInt8[Tensor, "videos frames 3 height width"],
        mask: Bool[Tensor, "videos frames"] | None = None,
    ) -> VideoBatch:
        """Returns stored frames as the encoder reads them; see :meth:`ClipBackbone.video_batch`."""
        return self.clip.video_batch(frames, mask)

    def encode_text(self, texts: TextBatch, *, levels: int = 1) -> tuple[TokenLevel, ...]:
        """Returns the embedding of each text as the one token of the one level."""
        return (_level(rearrange(self.clip.embed_texts(texts.token_ids, texts.mask), "texts dim -> texts 1 dim")),)

    def encode_video(self, videos: VideoBatch, *, levels: int = 1) -> tuple[TokenLevel, ...]:
        """Returns the embeddings of each video's frames."""
        return (_level(self.clip.encode_videos(videos), videos.mask),)

    def similarity(
        self, texts: Sequence[TokenLevel], videos: Sequence[TokenLevel], rates: Sequence[float] | None = None
    ) -> Float[Tensor, "texts videos"]:
        """Returns the score of every text with every video by the settings' pooling; there are no levels to weigh."""
        return zero_shot_similarity(texts[0], videos[0], self.config.pooling, temperature=self.config.temperature)


def zero_shot_similarity(
    texts: TokenLevel, videos: TokenLevel, pooling: ZeroShotPooling, *, temperature: float
) -> Float[Tensor, "texts videos"]:
    """Returns the score of every text with every video, the larger the better.

    With unit vectors t of a text and f_v of the frames of a video, and c_v = t · f_v:

    - ``mean``: t · m divided by the length of m, with m the mean of f_v (Portillo-Quintero et al., 2021; "meanP" of
      Luo et al., 2021);
    - ``softmax``: sum over v of softmax_v(c_v / temperature) c_v (query-scoring of Bain et al., 2022).

    A video without frames scores 0 with every text.
    """
    text = F.normalize(texts.features[:, 0], dim=-1)
    frames = F.normalize(videos.features, dim=-1) * rearrange(videos.mask, "videos frames -> videos frames 1")
    if pooling == "mean":
        # The sum has the direction of the mean.
        return text @ F.normalize(frames.sum(dim=1), dim=-1).mT
    cosines = torch.einsum("td,vfd->tvf", text, frames)
    weights = (cosines / temperature).masked_fill(~videos.mask, -torch.inf).softmax(dim=-1)
    # The softmax of a video without frames is NaN.
    return (weights.nan_to_num() * cosines).sum(dim=-1)


def _level(features: Float[Tensor, "items tokens dim"], mask: Bool[Tensor, "items tokens"] | None = None) -> TokenLevel:
    """Tokens that are all as important."""
    if mask is None:
        mask = torch.ones(features.shape[:2], dtype=torch.bool, device=features.device)
    return TokenLevel(features.float(), mask, torch.zeros(features.shape[:2], device=features.device))
