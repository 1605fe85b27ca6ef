"""Settings come back from their JSON form as they were, and nothing else is taken for them."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import pytest

from hbi_models.config_reading import config_from_plain
from hbi_models.configs import RetrievalConfig, VideoQAConfig
from pipelines.recipe.data import DataConfig, ShapesConfig
from pipelines.recipe.frames import FramesConfig
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.report import ReportConfig
from pipelines.workspace.artifact import plain

RICH = Recipe(
    tasks=("retrieval", "video_qa"),
    data=DataConfig(shapes=ShapesConfig(train_videos=7)),
    report=ReportConfig(published={"all/accuracy": 46.2}),
)


@pytest.mark.parametrize("config", [Recipe(), RICH, RetrievalConfig(), VideoQAConfig(), FramesConfig(fps=2)])
def test_settings_come_back_as_they_were(config: Any) -> None:
    assert config_from_plain(type(config), json.loads(json.dumps(plain(config))), place="here") == config


def test_what_is_not_said_has_its_default_and_whole_numbers_are_real_ones() -> None:
    found = config_from_plain(Recipe, {"frames": {"fps": 2}}, place="here")
    assert found == replace(Recipe(), frames=FramesConfig(fps=2.0))
    assert type(found.frames.fps) is float, "2 and 2.0 have one fingerprint"


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"retrieval": {"epoch": 2}}, "^here cannot be used: retrieval has no setting epoch; it has .*epochs"),
        ({"model": {"clip": {"a": 1}}}, r"model\.clip has no setting a"),
        ({"nothing": 2}, "Recipe has no setting nothing; it has data"),
        ({"seed": None}, "seed is null; give it a value, or leave it out"),
        ({"seed": "3"}, "seed is '3'; it should be a valid integer"),
        ({"seed": True}, "seed is True; it should be a valid integer"),
        ({"workspace": 3}, "workspace is 3; it should be a valid string"),
        ({"frames": {"format": "gif"}}, r"frames\.format is 'gif'; it should be 'jpeg' or 'png'"),
        ({"frames": 3}, "frames is 3; a section with settings is needed"),
        ({"frames": None}, "frames is None; a section with settings is needed"),
        ({"data": {"shapes": {"seed": False}}}, r"data\.shapes\.seed is False"),
        ({"model": {"level_rates": [1, 0]}}, r"model\.level_rates\.2 is missing"),
        ({"frames": {"fps": 0}}, r"^here cannot be used: frames\.fps is 0\.0; it must be positive$"),
        ({"frames": {"max_frames": 3}}, "model.max_frames is 12 and frames.max_frames is 3"),
        ({"frames": {"fps": 1j}}, "not a JSON document"),
        ([], "the document is .*; a section with settings is needed"),
        (dict.fromkeys(("seed", "data", "frames", "model"), "a"), "; and 1 more$"),
    ],
)
def test_other_settings_are_refused_in_words(document: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        config_from_plain(Recipe, document, place="here")
    assert "\n" not in str(refused.value)


def test_what_is_missing_is_named() -> None:
    @dataclass(frozen=True)
    class Small:
        channels: int

    with pytest.raises(ValueError, match="here cannot be used: channels is missing"):
        config_from_plain(Small, {}, place="here")
