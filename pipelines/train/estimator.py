"""Training of the estimator: from the cosines of a pair to its interaction label."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor, nn

from hbi_models.optimizer_config import OptimizerConfig
from hbi_models.transfer import fetched, sent
from pipelines.models.estimator import EstimatorConfig, make_estimator
from pipelines.recipe.training import EstimatorTrainingConfig
from pipelines.resources.device import CPU
from pipelines.train.checkpoints import Position
from pipelines.train.collectives import mean_over_ranks, rank, together, world_size
from pipelines.train.loop import SCORE
from pipelines.workspace.errors import DamagedFileError
from pipelines.workspace.records import INDEX_FILE, LABELS
from pipelines.workspace.shards import ShardPool
from pipelines.workspace.storage import Storage


@dataclass(frozen=True, slots=True)
class LabelBatch:
    """Pairs on their way into the estimator; cells of padding hold zeros."""

    similarity: Float[Tensor, "pairs words frames"]
    interaction: Float[Tensor, "pairs words frames"]
    mask: Bool[Tensor, "pairs words frames"]
    names: list[str]
    """Video and number of the caption of each pair."""

    @property
    def words(self) -> Bool[Tensor, "pairs words"]:
        """The real words."""
        return self.mask.any(dim=2)

    def to(self, device: torch.device) -> LabelBatch:
        """The batch on ``device``."""
        similarity, interaction, mask = (sent(part, device) for part in (self.similarity, self.interaction, self.mask))
        return LabelBatch(similarity, interaction, mask, self.names)


class LabelTable:
    """All labels of a split in memory: 8 bytes a cell, 0.4 GB for the 180,000 pairs of MSR-VTT."""

    def __init__(self, table: pa.Table, *, max_words: int, max_frames: int) -> None:
        self.video_ids = table.column("video_id").to_pylist()
        self.captions = table.column("caption_index").to_pylist()
        self.num_words = table.column("num_words").to_numpy()
        self.num_frames = table.column("num_frames").to_numpy()
        shape = (len(table), max_words, max_frames)
        self.similarity = np.zeros(shape, np.float32)
        self.interaction = np.zeros(shape, np.float32)
        for name, target in (("similarity", self.similarity), ("interaction", self.interaction)):
            values = table.column(name).combine_chunks()
            # ``offsets`` count from the first of ``values``, also where the column is a slice of a longer one.
            flat, offsets = values.values.to_numpy(), values.offsets.to_numpy()
            for row, (words, frames) in enumerate(zip(self.num_words, self.num_frames, strict=True)):
                cells = flat[offsets[row] : offsets[row + 1]]
                target[row, :words, :frames] = cells.reshape(words, frames)

    def __len__(self) -> int:
        return len(self.num_words)

    def batch(self, rows: NDArray[np.int64]) -> LabelBatch:
        """The pairs at ``rows``."""
        _, words, frames = self.similarity.shape
        word_mask = np.arange(words) < self.num_words[rows, None]
        frame_mask = np.arange(frames) < self.num_frames[rows, None]
        return LabelBatch(
            torch.from_numpy(self.similarity[rows]),
            torch.from_numpy(self.interaction[rows]),
            torch.from_numpy(word_mask[:, :, None] & frame_mask[:, None, :]),
            [f"{self.video_ids[row]}, caption {self.captions[row]}" for row in rows],
        )


@dataclass
class EstimatorTask:
    """The training of the estimator, for the training loop."""

    training: EstimatorTrainingConfig
    channels: int
    seed: int
    labels: Storage
    """Folder of the label shards."""
    index: Storage
    """Folder of the labels artifact, whose index names the shards and splits."""
    max_words: int
    max_frames: int
    train_pairs: int
    kind: str = field(default="estimator", init=False)

    @property
    def model_config(self) -> EstimatorConfig:
        return EstimatorConfig(self.channels)

    @property
    def optimizer_config(self) -> OptimizerConfig:
        return self.training.optimizer

    @property
    def epochs(self) -> int:
        return self.training.epochs

    def make_model(self) -> nn.Module:
        return make_estimator(self.channels, self.training.init_checkpoint)

    def steps(self, epoch: int) -> int:
        return self.train_pairs // self.training.batch_size

    @cached_property
    def _tables(self) -> dict[str, LabelTable]:
        index = self.index.read_table(INDEX_FILE, columns=["key", "caption_index", "shard", "split"])
        shards = np.asarray(index.column("shard").to_pylist(), dtype=object)
        columns = ["video_id", "caption_index", "num_words", "num_frames", "similarity", "interaction"]
        parts, places = [pa.schema([LABELS.field(name) for name in columns]).empty_table()], [np.empty(0, np.int64)]
        for shard in sorted(set(shards)):
            members = np.flatnonzero(shards == shard)
            parts.append(self._read(shard, columns, index.take(members)))
            places.append(members)
        # In the order of the index, so that batches do not depend on how pairs were grouped into shards.
        table = pa.concat_tables(parts).take(np.argsort(np.concatenate(places)))
        return {
            split: LabelTable(
                table.filter(pc.equal(index.column("split"), split)),
                max_words=self.max_words,
                max_frames=self.max_frames,
            )
            for split in ("train", "val")
        }

    def _read(self, shard: str, columns: Sequence[str], wanted: pa.Table) -> pa.Table:
        """The rows of ``shard`` with the keys and captions of ``wanted``, in their order.

        Raises:
            DamagedFileError: it is damaged, or does not hold them; it is set aside.
        """
        try:
            table = self.labels.read_table(shard, columns=["key", *columns])
            places = pc.index_in(_names(wanted), value_set=_names(table))
            if places.null_count:
                raise DamagedFileError(
                    f"{self.labels.place(shard)} does not hold {places.null_count:,} of the {len(wanted):,} labels "
                    "that its index lists"
                )
        except DamagedFileError as error:
            ShardPool(self.labels, LABELS).set_aside(shard, error)
            raise DamagedFileError(
                f"{error}. It is set aside. Run the same command again: the labels of its videos, and of no others, "
                "are made anew"
            ) from error
        return table.take(places).select(columns)

    def batches(self, position: Position, device: torch.device = CPU) -> Generator[LabelBatch, None, None]:
        table = self._tables["train"]
        size = self.training.batch_size // world_size()
        for epoch in range(position.epoch, self.epochs):
            order = np.random.default_rng([self.seed, epoch]).permutation(len(table))
            first = position.step_in_epoch if epoch == position.epoch else 0
            for step in range(first, self.steps(epoch)):
                start = step * self.training.batch_size + rank() * size
                yield table.batch(order[start : start + size])

    def loss(
        self, model: nn.Module, batch: LabelBatch, device: torch.device, *, watch: bool = False
    ) -> Mapping[str, Tensor]:
        batch = batch.to(device)
        # 0 words are absent: batches are padded to ``max_words``.
        error = (model(batch.similarity, 0, batch.words) - batch.interaction) * batch.mask
        # The mean includes padding, as published. Every rank then has the same divisor.
        return {"loss": error.square().mean()}

    def after_step(self, model: nn.Module) -> None:
        """Nothing to put back in place."""

    def row_names(self, batch: LabelBatch) -> list[str]:
        return batch.names

    def pairs(self, batch: LabelBatch) -> int:
        return len(batch.similarity)

    def validate(self, model: nn.Module, device: torch.device) -> Mapping[str, float]:
        """Share of the labels' variance, within real cells, that the estimator explains.

        Rows are spread over ranks. Without a validation split the training rows are used.
        """
        tables = together(lambda: self._tables)
        table = tables["val"] if len(tables["val"]) else tables["train"]
        # On the device, because NCCL cannot add tensors on the CPU. In float64, because the variance is a difference of
        # sums over all cells.
        sums = torch.zeros(4, dtype=torch.float64, device=device)
        # Ranks take blocks of 512 pairs in turn. Some may have a block more, since no block holds a collective.
        for start in range(rank() * 512, len(table), 512 * world_size()):
            batch = table.batch(np.arange(start, min(start + 512, len(table)))).to(device)
            # Zeros at padding instead of an index by the mask, whose result has a size that the host would wait for.
            error = ((model(batch.similarity, 0, batch.words) - batch.interaction) * batch.mask).double()
            label = (batch.interaction * batch.mask).double()
            sums += torch.stack([error.square().sum(), label.sum(), label.square().sum(), batch.mask.sum().double()])
        (found,) = fetched([mean_over_ranks(sums) * world_size()])
        squared_error, total, squares, cells = found.tolist()
        variance = squares / cells - (total / cells) ** 2
        explained = 1 - squared_error / cells / max(variance, 1e-12)
        return {"validation/mse": squared_error / cells, "validation/explained_variance": explained, SCORE: explained}


def _names(table: pa.Table) -> pa.Array:
    """A name for each label in ``table``: the key of the video and its texts, and the number of the text."""
    numbers = table.column("caption_index").cast(pa.string())
    return pc.binary_join_element_wise(table.column("key"), numbers, "/").combine_chunks()
