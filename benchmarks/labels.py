"""Compares the exact Banzhaf labels with the published sampling: error first, then time.

    python -m benchmarks.labels [--threads 2] [--sampling-runs 2]

Everything runs in one process with the same threads, on random games with the sizes of MSR-VTT
(24 words, 12 frames). The sampling is the published one (100 draws per cell), vectorised over
the pairs of the batch. A run of it takes about half a minute.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from hbi_models.banzhaf.exact import exact_interaction
from hbi_models.banzhaf.game import brute_force_interaction
from hbi_models.banzhaf.published import published_labels, sample_published_labels

Game = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]

SIZES_UP_TO_NINE_PLAYERS = [(words, frames) for words in range(1, 9) for frames in range(1, 10 - words)]
LOGIT_SCALES = (1, 2, 3, 5, 8, 10)


def random_game(
    pairs: int, words: int, frames: int, *, logit_scale: float, generator: torch.Generator, dtype: torch.dtype
) -> Game:
    """Similarities in [-1, 1] and normal logits, without padding."""
    similarity = 2 * torch.rand(pairs, words, frames, generator=generator, dtype=dtype) - 1
    word_logits = logit_scale * torch.randn(pairs, words, generator=generator, dtype=dtype)
    frame_logits = logit_scale * torch.randn(pairs, frames, generator=generator, dtype=dtype)
    return (
        similarity,
        word_logits,
        frame_logits,
        torch.ones_like(word_logits).bool(),
        torch.ones_like(frame_logits).bool(),
    )


def with_softmax_weights(game: Game) -> Game:
    """The game as the published code plays it: softmax weights take the place of the logits."""
    similarity, word_logits, frame_logits, word_mask, frame_mask = game
    return similarity, word_logits.softmax(dim=-1), frame_logits.softmax(dim=-1), word_mask, frame_mask


def largest_errors(games_per_size: int) -> list[tuple[float, float, float]]:
    """(logit scale, largest error in float64, in float32) against enumeration, over every size."""
    rows = []
    for scale in LOGIT_SCALES:
        generator = torch.Generator().manual_seed(scale)
        errors = {torch.float64: 0.0, torch.float32: 0.0}
        for words, frames in SIZES_UP_TO_NINE_PLAYERS:
            for dtype, largest in errors.items():
                game = random_game(games_per_size, words, frames, logit_scale=scale, generator=generator, dtype=dtype)
                similarity, word_logits, frame_logits, *masks = game
                reference = brute_force_interaction(
                    similarity.double(), word_logits.double(), frame_logits.double(), *masks
                )
                errors[dtype] = max(largest, (exact_interaction(*game) - reference).abs().max().item())
        rows.append((scale, errors[torch.float64], errors[torch.float32]))
    return rows


def sampling_scores(draws: int) -> tuple[Tensor, float, float]:
    """z-scores of the sampled labels of one game, one label's standard error, and the labels' spread.

    The game is repeated along the batch, whose pairs are sampled independently: the repetitions
    give the mean and its standard error. It is small enough to enumerate for the expectation.
    """
    repetitions = 64
    generator = torch.Generator().manual_seed(0)
    game = with_softmax_weights(random_game(1, 10, 6, logit_scale=1.0, generator=generator, dtype=torch.float64))
    expected = published_labels(*game)[0]
    batch = tuple(part.expand(repetitions, *part.shape[1:]).contiguous() for part in game)
    sampled = sample_published_labels(*batch, generator=generator, num_draws=draws)
    standard_error = sampled.std(dim=0)
    scores = (sampled.mean(dim=0) - expected) / (standard_error / repetitions**0.5)
    return scores.flatten(), standard_error.mean().item(), expected.std().item()


def timings(function: Callable[[], object], repeats: int) -> Tensor:
    """Seconds of each of ``repeats`` calls, in rising order."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return torch.tensor(seconds, dtype=torch.float64).sort().values


def show_row(name: str, seconds: Tensor, sampling: Tensor) -> None:
    low, median, high = (seconds.quantile(level).item() for level in (0.1, 0.5, 0.9))
    ratio = sampling.min().item() / median
    print(f"{name:<44} {len(seconds):>5} {1e3 * median:>12.3f} {1e3 * low:>11.3f} -{1e3 * high:>11.3f} {ratio:>11,.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=128)
    parser.add_argument("--words", type=int, default=24)
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--exact-runs", type=int, default=300)
    parser.add_argument("--sampling-runs", type=int, default=2)
    parser.add_argument("--games", type=int, default=20, help="random games of every size in the table of errors")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    print(f"Largest error of the closed form against enumeration, similarities in [-1, 1], {arguments.games} games")
    print(f"of each of the {len(SIZES_UP_TO_NINE_PLAYERS)} sizes up to nine players")
    print(f"{'logit scale':>12} {'float64':>10} {'float32':>10}")
    for scale, double, single in largest_errors(arguments.games):
        print(f"{scale:>12} {double:>10.1e} {single:>10.1e}")

    scores, standard_error, spread = sampling_scores(arguments.draws)
    print(
        f"\nSampled labels ({arguments.draws} draws, 64 repetitions) against their exact expectation, "
        "10 words x 6 frames:"
    )
    print(
        f"z-scores of {len(scores)} cells: mean {scores.mean():+.2f}, deviation {scores.std():.2f}, "
        f"largest {scores.abs().max():.1f}"
    )
    print(f"standard error of one sampled label {standard_error:.1f}, spread of the expected labels {spread:.1f}")

    generator = torch.Generator().manual_seed(0)
    sizes = (arguments.pairs, arguments.words, arguments.frames)
    game = with_softmax_weights(random_game(*sizes, logit_scale=1.0, generator=generator, dtype=torch.float32))
    double_game = tuple(part.double() if part.is_floating_point() else part for part in game)

    def sample() -> Tensor:
        return sample_published_labels(*game, generator=generator, num_draws=arguments.draws)

    def expect() -> Tensor:
        return published_labels(*game, most_subsets=512, generator=generator)

    timings(lambda: exact_interaction(*game), 20)
    single = timings(lambda: exact_interaction(*game), arguments.exact_runs)
    sampling = timings(sample, arguments.sampling_runs)
    # Half of the runs before and half after the long one, should the machine change its pace.
    single = torch.cat([single, timings(lambda: exact_interaction(*game), arguments.exact_runs)])
    double = timings(lambda: exact_interaction(*double_game), arguments.exact_runs)

    print(f"\nLabels of {sizes[0]} pairs, {sizes[1]} words x {sizes[2]} frames, {arguments.threads} threads, CPU")
    print(f"{'':<44} {'runs':>5} {'median ms':>12} {'10% -':>13}{'90% ms':>11} {'best / median':>14}")
    show_row(f"published sampling, {arguments.draws} draws per cell", sampling, sampling)
    show_row("expectation of the sampling, 512 shared sets", timings(expect, 5), sampling)
    show_row("exact interaction, float64", double, sampling)
    show_row("exact interaction, float32", single, sampling)


if __name__ == "__main__":
    main()
