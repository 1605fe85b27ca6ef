"""How well and how fast does a search find what comparing with every video would find?

    python -m benchmarks.search_scale [--videos 10000 100000] [--queries 50] [--folder DIR]

Writes an index of so many synthetic videos with the project's own code (17 kB of disk each), and searches it.
The features have the statistics of CLIP ViT-B/32 on web video as the literature reports them: a mean direction
for each modality with a gap between them (Liang et al., 2022), a spectrum that falls like 1/i, topics of very
different sizes, frames of one video much closer to each other than to others. The cosines that result are
printed. Every query is a noisy description of one video. Exact = the model's own similarity with all videos.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from operator import itemgetter
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F

from hbi_models.axes import TokenLevel
from hbi_models.clip.configs import ClipConfig
from hbi_models.configs import RetrievalConfig
from hbi_models.retrieval import RetrievalModel
from pipelines.models.encoding import Levels
from pipelines.models.folder import FRAMES_JSON, MODEL
from pipelines.models.weights import save_model
from pipelines.recipe.frames import FramesConfig
from pipelines.search.features import level_sizes, pack
from pipelines.search.first_pass import FirstPass, text_vectors, video_vectors
from pipelines.search.index_folder import CURRENT, VECTORS
from pipelines.search.searcher import Searcher
from pipelines.tables import table
from pipelines.workspace.artifact import plain
from pipelines.workspace.records import FEATURES, INDEX_FILE
from pipelines.workspace.shards import ShardPool
from pipelines.workspace.storage import Storage

DIM, FRAMES, WORDS, SHARD = 512, 12, 24, 64
TOP = 100


@dataclass(frozen=True)
class World:
    """Draws videos, and texts about them; the same seed gives the same ones, in any order."""

    videos: int
    basis: torch.Tensor
    means: torch.Tensor
    topics: torch.Tensor

    @classmethod
    def draw(cls, videos: int) -> World:
        generator = torch.Generator().manual_seed(0)
        basis = torch.linalg.qr(torch.randn(DIM, DIM, generator=generator)).Q
        means = F.normalize(torch.randn(2, DIM, generator=generator), dim=-1)
        topics = torch.randn(max(videos // 100, 10), DIM, generator=generator)
        return cls(videos, basis, means, topics)

    def directions(self, noise: torch.Tensor) -> torch.Tensor:
        """Standard noise with a variance that falls like 1/i along the basis, of mean length 1."""
        spectrum = torch.arange(1, DIM + 1).rsqrt()
        # The square root of 1/i, because 1/i is meant for the variance.
        return (noise * spectrum / spectrum.norm()) @ self.basis

    def _content(self, video: int) -> tuple[torch.Tensor, torch.Generator]:
        generator = torch.Generator().manual_seed(1 + video)
        # A few topics hold most of the videos.
        share = torch.rand(1, generator=generator).item() ** 3
        topic = self.topics[int(share * len(self.topics))]
        own = torch.randn(DIM, generator=generator)
        return self.directions(0.8 * topic + 0.6 * own), generator

    def video(self, video: int) -> TokenLevel:
        """Frames of a video, and their importance."""
        content, generator = self._content(video)
        frames = self.directions(torch.randn(FRAMES, DIM, generator=generator))
        features = 0.7 * self.means[0] + 0.65 * content + 0.3 * frames
        logits = 0.5 * torch.randn(1, FRAMES, generator=generator)
        return TokenLevel(features[None], torch.ones(1, FRAMES, dtype=torch.bool), logits)

    def text(self, video: int) -> TokenLevel:
        """Words about a video: each holds a part of what it shows, and much else."""
        content, generator = self._content(video)
        # A seed of its own, or the words would be drawn from the same numbers as the video's frames.
        generator.manual_seed(-1 - video)
        words = self.directions(torch.randn(WORDS, DIM, generator=generator))
        # What all words of a text share beside the video: style, or things that are not shown.
        common = self.directions(torch.randn(DIM, generator=generator))
        count = int(torch.randint(6, WORDS, (1,), generator=generator))
        features = 0.8 * self.means[1] + 0.1 * self.means[0] + 0.3 * content + 0.2 * common + 0.4 * words
        mask = (torch.arange(WORDS) < count)[None]
        return TokenLevel(features[None], mask, 0.5 * torch.randn(1, WORDS, generator=generator))


def make_model(folder: Path) -> RetrievalModel:
    """The text tower of ViT-B/32 with random weights: what encoding a query costs."""
    architecture = {
        "embed_dim": DIM,
        "vision_cfg": {"image_size": 32, "patch_size": 16, "layers": 1, "width": 64, "head_width": 32},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12},
    }
    Storage(str(folder)).write_json("architecture.json", architecture)
    clip = ClipConfig(architecture=str(folder / "architecture.json"), pretrained=None)
    config = RetrievalConfig(clip=clip, max_words=WORDS, max_frames=FRAMES)
    return RetrievalModel(replace(config, game=replace(config.game, teacher="exact"))).eval()


def batches(world: World, sizes: list[int]) -> Iterator[tuple[range, Levels]]:
    """All videos, a shard at a time; the merged levels, which do not count here, are filled up to their size."""
    for start in range(0, world.videos, SHARD):
        members = range(start, min(start + SHARD, world.videos))
        parts = [world.video(video) for video in members]
        frames = TokenLevel(*(torch.cat(tensors) for tensors in zip(*map(_tensors, parts), strict=True)))
        yield members, tuple(frames.map(itemgetter((slice(None), slice(size)))) for size in sizes)


def _tensors(level: TokenLevel) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return level.features, level.mask, level.logits


def write_index(root: Storage, world: World, model: RetrievalModel, texts: Levels) -> tuple[torch.Tensor, float]:
    """Writes an index as ``jobs.index`` does; returns exact scores [texts, videos] and the seconds they took."""
    pool, rates, sizes = (
        ShardPool(root.folder("shards", "features"), FEATURES),
        model.config.level_rates,
        level_sizes(model),
    )
    # Half precision, as the shards hold them and as the first pass gets them.
    vectors = np.empty((world.videos, DIM), np.float16)
    scores, seconds = [], 0.0
    for members, levels in batches(world, sizes):
        vectors[members.start : members.stop] = video_vectors(levels, rates).half().numpy()
        # As a search reads them, so that exact and searched scores differ by nothing but the candidates.
        half = tuple(replace(level, features=level.features.half().float()) for level in levels)
        started = time.perf_counter()
        scores.append(model.similarity(texts, half))
        seconds += time.perf_counter() - started
        times = [float(frame) for frame in range(FRAMES)]
        rows = [
            {
                "video_id": f"v{video:08}",
                "key": f"{video:08}",
                "coarse": vectors[video],
                **pack(levels, place),
                "time_s": times,
                "end_s": float(FRAMES),
            }
            for place, video in enumerate(members)
        ]
        pool.commit(rows)
    output = root.folder("index", "made")
    started = time.perf_counter()
    output.write_bytes(VECTORS, FirstPass.build(vectors).to_bytes())
    print(f"{world.videos:,} videos: first pass built in {time.perf_counter() - started:.1f} s")
    index = pool.index(["video_id"]).sort_by("video_id")
    for name in ("uri", "frames_shard"):
        index = index.append_column(name, index.column("video_id"))
    nothing = pa.nulls(len(index), pa.float64())
    index = index.append_column("start_s", nothing).append_column("end_s", nothing)
    output.write_table(INDEX_FILE, index.append_column("frames_row", index.column("row")))
    root.write_json(CURRENT, {"artifact": "index/made", "features": "features", "frames": "frames"})
    with TemporaryDirectory() as saved:
        save_model(Path(saved), model, kind="retrieval", config=model.config)
        output.upload(Path(saved), MODEL)
    output.folder(MODEL).write_json(FRAMES_JSON, plain(FramesConfig()))
    return torch.cat(scores, dim=1), seconds


def timed(work: Callable[[int], object], count: int) -> tuple[float, float]:
    """Median and 95th percentile of the milliseconds of ``count`` calls."""
    taken = []
    for number in range(count):
        started = time.perf_counter()
        work(number)
        taken.append(1000 * (time.perf_counter() - started))
    return float(np.median(taken)), float(np.percentile(taken, 95))


def print_cosines(world: World) -> None:
    """What the synthetic features look like."""
    videos = [F.normalize(world.video(video).features[0], dim=-1) for video in range(200)]
    texts = [F.normalize(world.text(video).features[0, :6], dim=-1) for video in range(200)]
    pairs = {
        "frames of one video": [(video, video) for video in videos],
        "frames of two videos": list(pairwise(videos)),
        "words and frames that belong together": list(zip(texts, videos, strict=True)),
        "words and frames that do not": list(zip(texts, videos[1:], strict=False)),
    }
    rows = [[name, f"{np.mean([(a @ b.T).mean().item() for a, b in found]):.3f}"] for name, found in pairs.items()]
    print(table(["mean cosine", ""], rows), "\n")


@torch.inference_mode()
def measure(count: int, queries: int, folder: Path) -> list[str]:
    """A row of the table."""
    world = World.draw(count)
    print_cosines(world)
    model = make_model(folder)
    targets = np.random.default_rng(0).choice(count, queries, replace=False)
    words = [world.text(int(video)) for video in targets]
    entity = TokenLevel(*(torch.cat(tensors) for tensors in zip(*map(_tensors, words), strict=True)))
    texts = (entity, entity, entity)
    root = Storage(str(folder / "index"))
    scores, exact_seconds = write_index(root, world, model, texts)
    searcher = Searcher(root.uri)
    vectors = text_vectors(texts, model.config.level_rates).numpy()
    found = searcher.first_pass.candidates(vectors, 2 * TOP)
    best = scores.topk(TOP, dim=1).indices.numpy()
    recalls = [
        f"{100 * np.mean([np.isin(row[:top], ids[:among]).mean() for row, ids in zip(best, found, strict=True)]):.1f}"
        for top, among in ((1, TOP), (10, TOP), (1, 2 * TOP), (10, 2 * TOP))
    ]

    def one(number: int) -> Levels:
        return tuple(level.map(lambda tensor: tensor[number : number + 1]) for level in texts)

    def search(number: int) -> None:
        searcher.encode(["a man in a red shirt is cooking in a kitchen and talks"])
        searcher.find(one(number))

    first = timed(lambda number: searcher.first_pass.candidates(vectors[number : number + 1], 2 * TOP), queries)
    whole = timed(search, queries)
    size = len(searcher.artifact.read_bytes(VECTORS)) / count
    listing = searcher.artifact.read_table(INDEX_FILE).nbytes / count
    disk = sum(path.stat().st_size for path in Path(root.path("shards")).rglob("*.parquet")) / count
    return [
        f"{count:,}",
        *recalls,
        f"{first[0]:.1f} / {first[1]:.1f}",
        f"{whole[0]:.0f} / {whole[1]:.0f}",
        f"{1000 * exact_seconds / queries:,.0f}",
        f"{size:,.0f} + {listing:,.0f}",
        f"{disk / 1000:.1f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--queries", type=int, default=50)
    parser.add_argument("--folder", default=None, help="Where to write; by default a temporary folder.")
    options = parser.parse_args()
    rows = []
    for count in options.videos:
        with TemporaryDirectory(dir=options.folder) as folder:
            rows.append(measure(count, options.queries, Path(folder)))
    header = ["videos", "1 in 100", "10 in 100", "1 in 200", "10 in 200", "first pass, ms", "search, ms", "exact, ms"]
    print(table([*header, "bytes of memory", "kB of disk"], rows))
    print(
        "\n'10 in 100': part of the exact best ten among the first pass's hundred, %. Times: median / 95th percentile "
        "of one query; search = encoding the query, first pass and ranking of 200; exact = arithmetic alone, without "
        "reading. Memory per video: vectors + listing. "
    )


if __name__ == "__main__":
    main()
