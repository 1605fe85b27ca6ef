"""What is the game worth? Heads above a frozen encoder, in arms that differ in one thing, over paired seeds.

    python -m benchmarks.game_study --encoder workspace/demo/retrieval/FINGERPRINT/model [--docs docs/game.md]

Generated data: the demo's clips, and clips of three events with 12 and with 8 frames. The CLIP of the encoder, a
model of the demo's recipe, stands still; its features are made once. Everything above it is trained anew for 300
steps and tested once on 500 clips (1,000 captions) of combinations that never occur in training. Arms of one seed
share initial weights and batches, and differences are taken seed by seed.

A finished training is a line of results.jsonl in ``--output`` and is never made again: the same command goes on after
a kill. study.md and study.png there are written whenever a seed is complete; ``--docs`` puts the tables into a
document.

On a data set of your own, or MSR-VTT, with that recipe's CLIP; weights are chosen on its validation split:

    python -m benchmarks.game_study --recipe jobs/recipes/msrvtt_retrieval.yaml --device cuda --processes 6 \
      --steps 7030 --batch_size 128 --lr 1e-4 --validate_every 703 --measure entity_r1_t2v --output study-msrvtt \
      --set data.annotations=data/msrvtt data.videos=data/msrvtt/videos data.validation_videos=500
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import BrokenExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.study import document, results
from benchmarks.study.arms import ARMS, CLAIMED, LEAST_SEEDS
from benchmarks.study.features import DATA_SETS, generated_features, identity_of, write_features
from benchmarks.study.heads import Training
from benchmarks.study.recipe import recipe_features, write_encoder
from benchmarks.study.workers import Cell, Job, load_encoder, run_jobs
from jobs.settings import read_recipe, recipe_parser
from pipelines.progress import Progress
from pipelines.recipe.recipe import Recipe
from pipelines.stages.settings import checkpoint_digest
from pipelines.workspace.artifact import digest, plain

VERSION = 1
"""Raised when the code changes what a training gives."""

RESULTS = "results.jsonl"


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    output = Path(options.output)
    training = Training(
        steps=options.steps,
        batch_size=options.batch_size,
        lr=options.lr,
        validate_every=options.validate_every,
        # Without validation nothing is chosen, and a setting without effect must not make it another study.
        choose_by=options.measure if options.validate_every else Training.choose_by,
        channels=options.channels,
    )
    recipe = read_given(options)
    encoder = options.encoder or write_encoder(recipe, output / "encoder")
    data_sets = [recipe.data.dataset] if options.recipe else options.data
    features = {name: prepare(name, encoder, recipe, options, output) for name in data_sets}
    studies = {name: digest([VERSION, asdict(training), identity]) for name, (_, identity) in features.items()}
    jobs = [
        Job(cell, features[cell.data][0], encoder, training, options.device)
        for cell in cells(data_sets, options.arms, seeds=options.seeds, other_seeds=options.other_seeds)
    ]
    failed = work(jobs, studies, output, options)
    report(finished(output, studies), data_sets, output, options, last=True)
    return 1 if failed else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--encoder", help="folder of a retrieval model of ours, whose CLIP makes the features")
    source.add_argument("--recipe", help="a recipe whose data and CLIP are taken, instead of generated clips")
    parser.add_argument("--set", nargs="*", default=[], metavar="SECTION.FIELD=VALUE", help="changes to the recipe")
    parser.add_argument("--output", default=str(Path("workspace") / "game_study"), help="folder of all that is made")
    parser.add_argument(
        "--data", nargs="+", choices=list(DATA_SETS), default=list(DATA_SETS), help="generated data sets"
    )
    parser.add_argument("--train_videos", type=int, help="fewer or more generated clips to train with")
    parser.add_argument("--test_videos", type=int, help="and to test with")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--seeds", type=int, default=LEAST_SEEDS, help="of the arms of the named differences")
    parser.add_argument("--other_seeds", type=int, default=6, help="of the other arms")
    parser.add_argument("--steps", type=int, default=Training.steps)
    parser.add_argument("--batch_size", type=int, default=Training.batch_size)
    parser.add_argument("--lr", type=float, default=Training.lr)
    parser.add_argument("--channels", type=int, help="of the predictors; by default the encoder's (published: 64)")
    parser.add_argument("--validate_every", type=int, help="steps; the best weights on the split val are tested")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="trainings at a time, a thread each")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda: several trainings share a GPU")
    parser.add_argument("--measure", default="r1", help="which figure decides; r1 is the mean of both directions")
    parser.add_argument("--docs", help="a document that gets the tables, and images/game_study.png beside it")
    parser.add_argument("--report_only", action="store_true", help="train nothing, write tables of what is there")
    options = parser.parse_args(arguments)
    for name in ("seeds", "steps", "batch_size", "processes"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} is {getattr(options, name)}; it must be 1 or more")
    if options.validate_every is not None and options.encoder:
        parser.error(
            "--validate_every needs --recipe: generated clips have no validation split, their last weights count"
        )
    return options


def read_given(options: argparse.Namespace) -> Recipe:
    """The recipe that is named, or an empty one."""
    if not options.recipe:
        return Recipe()
    changes = [part for change in options.set for part in (f"--{change.partition('=')[0]}", change.partition("=")[2])]
    workspace = ["--workspace", str(Path(options.output) / "workspace")]
    recipe, _ = read_recipe(recipe_parser("The data."), ["--config", options.recipe, *workspace, *changes])
    return recipe


def prepare(name: str, encoder: str, recipe: Recipe, options: argparse.Namespace, output: Path) -> tuple[Path, str]:
    """The file with a data set's features, which is made where there is none, and what they are made of."""
    path = output / "features" / f"{name.replace(',', '').replace(' ', '-')}.safetensors"
    made_of: dict[str, Any] = {"version": VERSION, "encoder": checkpoint_digest(encoder)}
    if options.recipe:
        made_of |= {"data": plain(recipe.data), "frames": plain(recipe.frames)}
    else:
        data = DATA_SETS[name]
        sizes = {key: value for key in ("train_videos", "test_videos") if (value := getattr(options, key))}
        data = replace(data, shapes=replace(data.shapes, **sizes))
        made_of |= {"data": plain(data.shapes), "frames": data.frames}
    identity = digest(made_of)
    if identity_of(path) != identity and not options.report_only:
        model = load_encoder(encoder).to(options.device)
        if options.recipe:
            splits = recipe_features(recipe, model)
        else:
            splits = generated_features(model.clip, data, name=name, max_words=model.config.max_words)
        write_features(path, splits, identity)
    return path, identity


def cells(data_sets: Iterable[str], arms: Iterable[str], *, seeds: int, other_seeds: int) -> list[Cell]:
    """All trainings, in the order in which they say most: seed by seed, the named differences first."""
    data_sets, arms = list(data_sets), list(arms)
    return [
        Cell(data, arm, seed)
        for claimed, count in ((True, seeds), (False, other_seeds))
        for seed in range(1, count + 1)
        for data in data_sets
        for arm in arms
        if (arm in CLAIMED) is claimed
    ]


def work(jobs: Sequence[Job], studies: dict[str, str], output: Path, options: argparse.Namespace) -> int:
    """Does what is not done yet, a line for each; returns how many failed."""
    done = {(row["data"], row["arm"], row["seed"]) for row in finished(output, studies)}
    left = [job for job in jobs if (job.cell.data, job.cell.arm, job.cell.seed) not in done]
    if options.report_only:
        return 0
    failed = 0
    # Jobs start seed by seed, in the order of the arms, so that this arm ends a seed.
    last_of_a_seed = next((arm for arm in reversed(options.arms) if arm in CLAIMED), None)
    with Progress("study", total=len(jobs), unit="trainings", done=len(jobs) - len(left)) as progress:
        for cell, outcome in run_jobs(left, options.processes):
            # The pool takes no more jobs after that.
            if isinstance(outcome, BrokenExecutor):
                sys.exit(
                    f"a training process was killed, maybe for memory ({outcome}); the same command goes on from here"
                )
            name = f"{cell.data}, {cell.arm}, seed {cell.seed}"
            if isinstance(outcome, Exception):
                failed += 1
                print(f"{name}: failed, {type(outcome).__name__}: {outcome}", file=sys.stderr, flush=True)
                continue
            row = {"study": studies[cell.data], **vars(cell), "measured": outcome}
            results.append(output / RESULTS, row)
            progress.advance(
                1, f"{name}: {options.measure} {outcome[options.measure]:.1f} in {outcome['seconds']:.0f} s"
            )
            print(progress.line(), flush=True)
            if cell.arm == last_of_a_seed:
                report(finished(output, studies), list(studies), output, options)
    if failed:
        print(f"{failed} trainings failed; the same command tries them again", file=sys.stderr)
    return failed


def finished(output: Path, studies: dict[str, str]) -> list[dict[str, Any]]:
    """The lines of this study."""
    return [
        row for name, study in studies.items() for row in results.read(output / RESULTS, study) if row["data"] == name
    ]


def report(
    rows: Sequence[dict[str, Any]],
    data_sets: Sequence[str],
    output: Path,
    options: argparse.Namespace,
    *,
    last: bool = False,
) -> None:
    """Writes tables and picture, at the end also into the document."""
    content = document.tables(rows, data_sets, measure=options.measure)
    (output / "study.md").write_text(f"{content}\n", encoding="utf-8")
    document.picture(rows, data_sets, output / "study.png", measure=options.measure)
    if not last:
        return
    print(f"\n{document.console(rows, data_sets, measure=options.measure)}\n\n{output / 'study.md'}")
    if options.docs:
        target = Path(options.docs)
        shown = "![Differences to none, with 95% intervals](images/game_study.png)"
        document.put_into(target, f"{content}\n\n{shown}")
        picture = target.parent / "images" / "game_study.png"
        picture.parent.mkdir(exist_ok=True)
        shutil.copyfile(output / "study.png", picture)


if __name__ == "__main__":
    torch.set_num_threads(max(1, (os.cpu_count() or 1)))
    sys.exit(main())
