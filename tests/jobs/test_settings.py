from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from hbi_models.config_fields import require
from jobs.settings import run_job, set_up_logging
from pipelines.recipe.data import ShapesConfig
from pipelines.recipe.recipe import Recipe
from tests.recipe_options import parsed_recipe


def parse(*arguments: str) -> Recipe:
    return parsed_recipe(*arguments)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The message with which ``arguments`` are refused."""
    with pytest.raises(SystemExit) as stopped:
        parse(*arguments)
    assert stopped.value.code == 2
    return capsys.readouterr().err


@pytest.fixture
def recipe_file(tmp_path: Path) -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text("seed: 7\nretrieval: {epochs: 2, optimizer: {lr: 1.0e-3}}\ndata: {shapes: {train_videos: 9}}\n")
    return str(path)


def test_without_arguments_the_defaults_count() -> None:
    assert parse() == Recipe()


def test_a_recipe_changes_what_it_names_and_nothing_else(recipe_file: str) -> None:
    recipe = parse("--config", recipe_file)
    assert (recipe.seed, recipe.retrieval.epochs, recipe.retrieval.optimizer.lr) == (7, 2, 1e-3)
    assert recipe.data.shapes == ShapesConfig(train_videos=9)
    assert recipe.retrieval.batch_size == Recipe().retrieval.batch_size
    assert recipe.frames == Recipe().frames


@pytest.mark.parametrize(
    ("arguments", "found", "expected"),
    [
        (["--seed", "8"], lambda recipe: recipe.seed, 8),
        (["--seed=8"], lambda recipe: recipe.seed, 8),
        (["--retrieval.optimizer.lr", "3e-4"], lambda recipe: recipe.retrieval.optimizer.lr, 3e-4),
        (["--data.shapes.test_videos", "3"], lambda recipe: recipe.data.shapes.test_videos, 3),
        (["--data.shapes.test_videos", "3"], lambda recipe: recipe.data.shapes.train_videos, 9),
        (["--data.shapes", "null"], lambda recipe: recipe.data.shapes, None),
        (["--model.level_rates", "[0.5, 0.3, 0.2]"], lambda recipe: recipe.model.level_rates, (0.5, 0.3, 0.2)),
        (["--model.clip.pretrained", "null"], lambda recipe: recipe.model.clip.pretrained, None),
        (["--evaluation.split", "val"], lambda recipe: recipe.evaluation.split, "val"),
        (["--resources.retrieval.gpus_per_worker", "0.5"], lambda r: r.resources.retrieval.gpus_per_worker, 0.5),
    ],
)
def test_any_setting_can_be_overridden(
    recipe_file: str, arguments: Sequence[str], found: object, expected: object
) -> None:
    assert callable(found)
    assert found(parse("--config", recipe_file, *arguments)) == expected


def test_options_before_the_recipe_are_overridden_by_it(recipe_file: str) -> None:
    assert parse("--seed", "8", "--config", recipe_file).seed == 7


def test_unknown_settings_of_a_recipe_are_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("retrieval: {epoch: 2}\n")
    message = refused(capsys, "--config", str(path))
    assert "epoch" in message
    assert "retrieval" in message


def test_unknown_options_are_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert "retrieval.epoch" in refused(capsys, "--retrieval.epoch", "2")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--retrieval.epochs", "many"], ["retrieval.epochs", "many"]),
        (["--evaluation.split", "tset"], ["evaluation.split", "tset", "test"]),
        (["--config", "/none.yaml"], ["/none.yaml"]),
    ],
)
def test_impossible_values_are_refused(
    capsys: pytest.CaptureFixture[str], arguments: Sequence[str], parts: Sequence[str]
) -> None:
    message = refused(capsys, *arguments)
    for part in parts:
        assert part in message


def test_the_usage_line_does_not_hide_the_error(capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, "--retrieval.epoch", "2")
    assert len(message.splitlines()) <= 5
    assert len(message) < 600


def test_values_out_of_range_and_contradictions_are_refused_in_the_users_words() -> None:
    with pytest.raises(ValueError, match=r"frames.jpeg_quality is 200; it must lie in \[1, 100\]"):
        parse("--frames.jpeg_quality", "200")
    with pytest.raises(ValueError, match=r"model.max_frames is 12 and frames.max_frames is 8"):
        parse("--frames.max_frames", "8")


def test_print_config_shows_all_of_the_effective_settings(recipe_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse("--config", recipe_file, "--seed", "8", "--print_config")
    assert stopped.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    # Unlike documents, all of them, also those that came later and have their default.
    expected = json.loads(json.dumps(asdict(parse("--config", recipe_file, "--seed", "8"))))
    assert {name: printed[name] for name in expected} == expected


def test_what_is_printed_is_a_recipe(tmp_path: Path, recipe_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("--config", recipe_file, "--print_config")
    copy = tmp_path / "copy.yaml"
    copy.write_text(capsys.readouterr().out)
    assert parse("--config", str(copy)) == parse("--config", recipe_file)


def test_a_mistake_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "jobs.run", "--frames.max_frames", "8", "--workspace", str(tmp_path / "w")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "frames.max_frames is 8" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    ("error", "code"), [(ValueError("a"), 2), (FileNotFoundError("a"), 2), (KeyboardInterrupt(), 130)]
)
def test_errors_become_exit_codes(error: BaseException, code: int) -> None:
    def fail() -> int:
        raise error

    with pytest.raises(SystemExit) as stopped:
        run_job(fail)
    assert stopped.value.code == code


BUG = "import jobs.settings, numpy as np; jobs.settings.run_job(lambda: np.zeros(3).reshape(2))"
MISTAKE = """
import jobs.settings
from hbi_models.config_fields import require
jobs.settings.run_job(lambda: require(False, "fps is 0"))
"""


@pytest.mark.parametrize(
    ("code", "options", "is_shown"),
    [(BUG, [], True), (MISTAKE, [], False), (MISTAKE, ["--debug"], True)],
    ids=["raised by a library", "a mistake of the user", "asked for"],
)
def test_where_an_error_was_raised_is_shown_unless_it_is_the_users(
    code: str, options: list[str], is_shown: bool
) -> None:
    done = subprocess.run([sys.executable, "-c", code, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert ("Traceback" in done.stderr) == is_shown


def test_a_bug_keeps_its_traceback() -> None:
    def fail() -> int:
        raise KeyError("bug")

    with pytest.raises(KeyError):
        run_job(fail)


@pytest.fixture
def root_logger() -> Iterator[logging.Logger]:
    """The root logger, put back as it was."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield root
    for handler in set(root.handlers) - set(handlers):
        root.removeHandler(handler)
        handler.close()
    root.setLevel(level)


def test_the_log_goes_to_standard_error_and_to_a_file(
    tmp_path: Path, root_logger: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(sys, "stderr", terminal)
    path = set_up_logging(tmp_path / "logs", name="run")
    logging.getLogger("progress").info("frames: 3/8 videos")
    assert path == tmp_path / "logs" / "run.log"
    assert path.read_text().endswith("INFO    progress: frames: 3/8 videos\n")
    assert terminal.getvalue() == path.read_text()


def test_where_a_mistake_was_found_is_told_in_the_file_alone(
    tmp_path: Path, root_logger: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(sys, "stderr", terminal)
    path = set_up_logging(tmp_path, name="run")
    assert path is not None

    def refuse() -> int:
        require(False, "frames.fps is 0")
        return 0

    with pytest.raises(SystemExit):
        run_job(refuse)
    assert terminal.getvalue().count("\n") == 1
    assert "Traceback" in path.read_text()
    assert "in refuse" in path.read_text()
