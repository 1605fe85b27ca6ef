"""Reads a recipe and its overrides from the command line, and sets up logging.

Imports nothing heavy, so that ``--help`` and ``--print_config`` answer at once.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser, Namespace  # type: ignore[attr-defined]

from pipelines.configs import Recipe

logger = logging.getLogger("jobs")
_traceback = logging.getLogger("jobs.traceback")
"""Goes to the log file only: on a terminal a mistake in the settings is one line."""


def recipe_parser(description: str) -> ArgumentParser:
    """A parser that takes ``--config recipe.yaml`` and ``--section.field value`` for every field of a recipe."""
    # The generated usage line would list two hundred options in front of every error.
    # An abbreviation would turn a misspelt setting into another one.
    parser = ArgumentParser(
        description=description, usage="%(prog)s --config RECIPE [--section.field VALUE ...]", allow_abbrev=False
    )
    parser.add_argument("--config", action=ActionConfigFile, help="A recipe (YAML). Later options override it.")
    parser.add_class_arguments(Recipe)
    return parser


def read_recipe(parser: ArgumentParser, arguments: Sequence[str] | None) -> tuple[Recipe, Namespace]:
    """The recipe, and the options that are not part of it."""
    parsed = parser.parse_args(arguments)
    values = parser.instantiate(parsed)
    names = Recipe.__dataclass_fields__
    return Recipe(**{name: values[name] for name in names}), values


def recipe_from_document(document: Mapping[str, Any]) -> Recipe:
    """The recipe whose settings are ``document``, checked as on the command line.

    Raises:
        ValueError: a setting is unknown or not allowed.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Recipe)
    try:
        values = parser.instantiate(parser.parse_object(dict(document)))
    except ArgumentError as error:
        raise ValueError(f"the settings are not a recipe of this version: {error}") from error
    return Recipe(**{name: values[name] for name in Recipe.__dataclass_fields__})


def set_up_logging(folder: Path | None, *, name: str) -> Path | None:
    """Logs to standard error, and to a file in ``folder`` where there is one."""
    form = logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s", datefmt="%H:%M:%S")
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    console = logging.StreamHandler(sys.stderr)
    console.setFormatter(form)
    console.addFilter(lambda record: record.name != _traceback.name)
    root.addHandler(console)
    for noisy in ("alembic", "httpx", "urllib3", "botocore", "ray.train", "open_clip"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    if folder is None:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.log"
    file = logging.FileHandler(path)
    file.setFormatter(form)
    root.addHandler(file)
    return path


def run_job(main: Callable[[], int]) -> None:
    """Ends the process with the exit code of ``main``; a user's mistake is one line, not a traceback."""
    try:
        code = main()
    except (ValueError, FileNotFoundError, ArithmeticError) as error:
        logger.error("%s", error)
        _traceback.info("where it happened", exc_info=True)
        code = 2
    except KeyboardInterrupt:
        logger.error("interrupted; the same command goes on from here")
        code = 130
    with suppress(OSError):
        sys.stdout.flush()
    sys.exit(code)
