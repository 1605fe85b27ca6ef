"""Reads a recipe and its overrides from the command line, and sets up logging.

Imports nothing heavy, so that ``--help`` and ``--print_config`` answer at once.
"""

from __future__ import annotations

import dis
import logging
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import is_dataclass
from pathlib import Path
from types import FrameType, NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from jsonargparse import ActionConfigFile, ArgumentParser, Namespace

from hbi_models.config_reading import config_from_plain
from pipelines.recipe.recipe import Recipe

logger = logging.getLogger("jobs")

_DEBUG = "--debug"

_EXTRAS = {
    "faiss": "serve",
    "fastapi": "serve",
    "starlette": "serve",
    "optuna": "tune",
    "boto3": "cloud",
    "tokenizers": "siglip",
    "onnxruntime": "onnx",
    "onnxscript": "onnx",
}
"""Packages that only some jobs import, and the extra of the project that installs them."""

_traceback = logging.getLogger("jobs.traceback")
"""Tracebacks of users' mistakes go to the log file only; on a terminal they are one line."""


def recipe_parser(description: str) -> ArgumentParser:
    """A parser that takes ``--config recipe.yaml`` and ``--section.field value`` for every field of a recipe.

    To make one takes longer than to parse with it, so each job makes one per process.
    """
    # The generated usage line would list two hundred options before every error. With abbreviations a misspelt setting
    # could become another one.
    parser = ArgumentParser(
        description=description, usage="%(prog)s --config RECIPE [--section.field VALUE ...]", allow_abbrev=False
    )
    parser.add_argument(_DEBUG, action="store_true", help="Show where an error was raised, also a mistake of yours.")
    parser.add_argument("--config", action=ActionConfigFile, help="A recipe (YAML). Later options override it.")
    parser.add_class_arguments(Recipe)
    return parser


def read_recipe(parser: ArgumentParser, arguments: Sequence[str] | None) -> tuple[Recipe, Namespace]:
    """The recipe, and the options that are not part of it."""
    try:
        parsed = parser.parse_args(arguments)
    except (UnicodeDecodeError, RecursionError) as error:
        parser.error(f"the recipe is not a YAML text in UTF-8: {error}")
    for misfit in _misfits(Recipe, parsed):
        parser.error(misfit)
    values = parser.instantiate(parsed)
    names = Recipe.__dataclass_fields__
    return Recipe(**{name: values[name] for name in names}), values


def _misfits(kind: type, values: Namespace, path: str = "") -> Iterator[str]:
    """Nulls and values in wrong places, which the parser accepts and then fails on."""
    for name, hint in get_type_hints(kind).items():
        value, place = values[name], f"{path}{name}"
        choices = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        section = next((choice for choice in choices if isinstance(choice, type) and is_dataclass(choice)), None)
        if value is None:
            if NoneType not in choices:
                yield f"{place} is null; give it a value, or leave it out"
        elif section is not None and isinstance(value, Namespace):
            yield from _misfits(section, value, f"{place}.")
        elif section is not None:
            yield f"{place} is {str(value)[:40]!r}; a section with settings is needed"


def recipe_from_document(document: Mapping[str, Any]) -> Recipe:
    """The recipe whose settings are ``document``, the JSON form of one.

    Raises:
        ValueError: a setting is unknown or not allowed.
    """
    recipe: Recipe = config_from_plain(Recipe, document)
    return recipe


def set_up_logging(folder: Path | None, *, name: str) -> Path | None:
    """Logs to standard error and, if ``folder`` is given, to a file in it."""
    form = logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s", datefmt="%H:%M:%S")
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    console = logging.StreamHandler(sys.stderr)
    console.setFormatter(form)
    console.addFilter(lambda record: record.name != _traceback.name)
    root.addHandler(console)
    for noisy in ("alembic", "httpx", "urllib3", "botocore", "ray.train", "open_clip", "faiss"):
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
    """Ends the process with the exit code of ``main``; errors that a user can correct are one line, not a traceback.

    These are the errors that this project raises itself; with ``--debug`` they are shown with their traceback, too. All
    other errors always are.

    SIGTERM, with which ``ray job stop``, Slurm and Kubernetes end a job, interrupts it as Ctrl-C does.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    debug = _DEBUG in sys.argv
    # Taken out here, because the parsers of jobs without a recipe do not know it; the others have it for their help
    # alone.
    sys.argv = [word for word in sys.argv if word != _DEBUG]
    try:
        code = main()
    except ModuleNotFoundError as error:
        if (extra := _EXTRAS.get(str(error.name).partition(".")[0])) is None:
            raise
        logger.error("%s is not installed; it comes with: pip install 'hbi-on-ray[%s]'", error.name, extra)
        code = 2
    except (ValueError, OSError, ArithmeticError) as error:
        logger.error("%s", error)
        if debug or not _is_ours(error):
            traceback.print_exception(error)
        _traceback.info("where it happened", exc_info=True)
        code = 2
    except KeyboardInterrupt:
        logger.error("interrupted; the same command goes on from here")
        code = 130
    with suppress(OSError):
        # Whoever read the output may be gone, as in "| head".
        sys.stdout.flush()
    sys.exit(code)


def _is_ours(error: BaseException) -> bool:
    """Whether ``error`` has a message for users: it was raised by a ``raise`` of this project, or by the system about a
    file."""
    if isinstance(error, OSError) and error.filename is not None:
        return True
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    if place is None:
        return False
    package = str(place.tb_frame.f_globals.get("__name__")).partition(".")[0]
    # An error raised in C has no frame of its own, so it seems to come from the line that called the library.
    is_raise = place.tb_frame.f_code.co_code[place.tb_lasti] == dis.opmap["RAISE_VARARGS"]
    return is_raise and package in ("__main__", "jobs", "pipelines", "hbi_models")


def _interrupt(number: int, _: FrameType | None) -> None:
    # Ignore further signals, so that they do not interrupt the clean-up that the first one starts.
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt
