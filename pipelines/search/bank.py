"""Corrections of a ranking for hubs: videos that are found too often, as a bank of training captions shows.

Of the bank an index keeps three numbers per video. They come from its similarities with every video, which are the
model's own, as in the evaluation's ``qb_norm`` and ``nnn``. A search needs neither the bank nor other queries: see
``hbi_models.post_processing`` for the formulas.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch

from hbi_models.config_fields import require
from hbi_models.post_processing import Querybank, nearest_neighbour_norm, neighbour_bias, querybank_norm
from hbi_models.retrieval import RetrievalModel
from pipelines.datasets.record_files import text_lines
from pipelines.models.encoding import encode_texts, on_device
from pipelines.progress import Progress
from pipelines.recipe.indexing import IndexingConfig
from pipelines.search.features import FeatureStore, together
from pipelines.workspace.storage import Storage

BANK_FILE = "bank.parquet"
"""A row per video of the index, in its order."""
PARAMETERS = "bank.json"

Correction = Literal["qb_norm", "nnn"]

_VIDEOS_AT_ONCE = 256
_TEXTS_AT_ONCE = 64


@dataclass(frozen=True)
class Bank:
    """What an index keeps of the bank for each of its videos, by position."""

    querybank: Querybank
    bias: torch.Tensor

    @classmethod
    def read(cls, folder: Storage) -> Bank:
        """What :func:`write_bank` wrote."""
        table, parameters = folder.read_table(BANK_FILE), folder.read_json(PARAMETERS)
        # Copied, because Arrow's arrays are read-only and PyTorch has no read-only tensors.
        columns = {name: torch.from_numpy(table.column(name).to_numpy().copy()) for name in table.column_names}
        querybank = Querybank(columns["log_norm"], columns["activated"], float(parameters["beta"]))
        return cls(querybank, columns["bias"])

    def corrected(self, scores: torch.Tensor, positions: Any, correction: Correction) -> torch.Tensor:
        """The scores of one query with the videos at ``positions``, for their order alone."""
        places = torch.from_numpy(np.asarray(positions))
        if correction == "nnn":
            return nearest_neighbour_norm(scores[None], self.bias[places])[0]
        # QB-Norm asks whether the best of all videos is activated. The best candidate stands for it.
        kept = Querybank(self.querybank.log_norm[places], self.querybank.activated[places], self.querybank.beta)
        return querybank_norm(scores[None], kept)[0]


@torch.inference_mode()
def write_bank(
    output: Storage,
    model: RetrievalModel,
    features: FeatureStore,
    videos: int,
    captions: Sequence[str],
    config: IndexingConfig,
    device: torch.device,
) -> None:
    """Computes the similarities of ``captions`` with all ``videos``, and writes the numbers that the index keeps of
    them."""
    texts = encode_texts(model, captions, device=device, batch_size=_TEXTS_AT_ONCE)
    columns = []
    with Progress("bank", total=videos, unit="videos") as progress:
        for start in range(0, videos, _VIDEOS_AT_ONCE):
            places = range(start, min(start + _VIDEOS_AT_ONCE, videos))
            clips = together(features.clips(list(places)))
            columns.append(model.similarity(on_device(texts, device), on_device(clips, device)).cpu())
            progress.advance(len(places))
    # Whole, [captions, videos]: which video a caption activates is known only when it has been compared with all.
    bank = torch.cat(columns, dim=1)
    querybank = Querybank.of(bank, beta=config.bank_beta)
    bias = neighbour_bias(bank, neighbours=config.bank_neighbours, weight=config.bank_weight)
    table = pa.table(
        {"log_norm": querybank.log_norm.numpy(), "activated": querybank.activated.numpy(), "bias": bias.numpy()}
    )
    output.write_table(BANK_FILE, table)
    output.write_json(
        PARAMETERS,
        {
            "captions": len(captions),
            "beta": config.bank_beta,
            "neighbours": config.bank_neighbours,
            "weight": config.bank_weight,
        },
    )


def read_captions(content: bytes, place: str) -> list[str]:
    """The captions of a text file with one per line.

    Raises:
        ValueError: it is not UTF-8, or holds none.
    """
    captions = list(filter(None, text_lines(content, place)))
    require(bool(captions), f"{place} holds no caption; write one training caption per line")
    return captions
