"""The small network that imitates the Banzhaf interaction from the similarities alone.

One architecture has three roles (arXiv 2303.14369, section 3.3): as the estimator it learns the sampled labels, trained
it is the teacher, and as the predictor of each level it learns from the teacher.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.init import xavier_uniform_

from hbi_models.config_fields import require

# The gain is the published one, sqrt(2) cut to three decimals.
XAVIER_GAIN = 1.414

PAIRS_AT_ONCE_CPU = 16
"""Pairs of similar length that are taken together on a CPU: enough to keep it busy, and few enough to differ little."""


class InteractionEstimator(nn.Module):
    """A convolution, self-attention over all word-frame cells with a residual, a convolution.

    Every cell attends to every cell of its pair. The attention logits are not scaled, as
    published, and padding is not masked: the caller multiplies by the masks.
    """

    def __init__(self, channels: int = 64) -> None:
        super().__init__()
        require(channels >= 1, f"the estimator got {channels} channels; it needs 1 or more")
        self.conv_in = nn.Conv2d(1, channels, kernel_size=3, padding=1)
        # Plain matrices that are multiplied from the right: the published Q, K and V fit without a transpose.
        self.query = nn.Parameter(xavier_uniform_(torch.empty(channels, channels), XAVIER_GAIN))
        self.key = nn.Parameter(xavier_uniform_(torch.empty(channels, channels), XAVIER_GAIN))
        self.value = nn.Parameter(xavier_uniform_(torch.empty(channels, channels), XAVIER_GAIN))
        self.conv_out = nn.Conv2d(channels, 1, kernel_size=3, padding=1)

    def forward(
        self,
        similarity: Float[Tensor, "pairs words frames"],
        absent_words: int = 0,
        word_mask: Bool[Tensor, "pairs words"] | None = None,
    ) -> Float[Tensor, "pairs words frames"]:
        """Returns the estimated interaction of every word and frame of every pair.

        ``similarity`` holds cosines, 0 at padding. The estimate is in the units of the labels
        the network was trained on; values at padding are meaningless.

        Padding takes part in the attention. ``absent_words`` more words of padding, of all pairs, may be left
        out of ``similarity``: the result is the one with them, for a fraction of the work. With ``word_mask``, the real
        words, a CPU also leaves out the padding of each pair, as far as pairs of similar length are padded alike.
        """
        if word_mask is None or similarity.device.type != "cpu" or torch.compiler.is_compiling() or not len(similarity):
            # An accelerator would have to ask how long the texts are. It wants tensors of one size, and so does a
            # compiled graph.
            return self._estimate(similarity, absent_words)
        num_words = similarity.shape[1]
        # The place of the last real word rather than the number of them, because words are cut behind it.
        counts = (word_mask * torch.arange(1, num_words + 1)).amax(dim=1)
        order = counts.argsort()
        estimates = []
        for pairs in torch.split(order, PAIRS_AT_ONCE_CPU):
            longest = max(int(counts[pairs[-1]]), 1)
            padding = num_words - longest
            estimate = self._estimate(similarity[pairs, :longest], absent_words + padding)
            estimates.append(F.pad(estimate, (0, 0, 0, padding)))
        return torch.cat(estimates)[order.argsort()]

    def _estimate(
        self, similarity: Float[Tensor, "pairs words frames"], absent_words: int
    ) -> Float[Tensor, "pairs words frames"]:
        num_words, num_frames = similarity.shape[1:]
        # The first word of padding is next to a real one, so it stays.
        similarity = F.pad(similarity, (0, 0, 0, min(absent_words, 1)))
        hidden = F.relu(self.conv_in(rearrange(similarity, "pairs words frames -> pairs 1 words frames")))
        # The axis of size one is the single attention head: fused kernels want four axes, and
        # they never hold the grid of cells times cells.
        cells = rearrange(hidden, "pairs channels words frames -> pairs 1 (words frames) channels")
        query, others, bias = cells @ self.query, cells, None
        if absent_words > 1:
            others, bias = self._with_far_padding(cells, (absent_words - 1) * num_frames)
            bias = bias.to(query.dtype)
        attended = F.scaled_dot_product_attention(
            query, others @ self.key, others @ self.value, attn_mask=bias, scale=1.0
        )
        hidden = rearrange(
            cells + attended, "pairs 1 (words frames) channels -> pairs channels words frames", frames=num_frames
        )
        estimate: Tensor = self.conv_out(hidden)
        return rearrange(estimate, "pairs 1 words frames -> pairs words frames")[:, :num_words]

    def _with_far_padding(
        self, cells: Float[Tensor, "pairs 1 cells channels"], count: int
    ) -> tuple[Float[Tensor, "pairs 1 others channels"], Float[Tensor, "1 1 1 others"]]:
        """Returns the cells and one for ``count`` cells of padding, and what is added to the logits of each.

        Cells whose neighbours are all padding are alike: n of them weigh as much as one whose logit is log n higher.
        """
        assert self.conv_in.bias is not None
        # Where the neighbours are zeros, a convolution gives its bias.
        far = F.relu(self.conv_in.bias).to(cells.dtype).expand(len(cells), 1, 1, -1)
        bias = F.pad(cells.new_zeros(1, 1, 1, cells.shape[2]), (0, 1), value=math.log(count))
        return torch.cat([cells, far], dim=2), bias
