"""What MTEB files results by, which needs no MTEB."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file, save_file

from pipelines.models.folder import WEIGHTS
from pipelines.search.mteb_model import MtebSearch
from tests.search_index import write_model


def test_two_trainings_of_one_recipe_have_two_revisions(tmp_path: Path) -> None:
    place = write_model(tmp_path)
    first, again = (MtebSearch(str(place)) for _ in range(2))
    assert first._revision == again._revision
    weights = load_file(place / WEIGHTS)
    save_file({name: tensor + 1 for name, tensor in weights.items()}, place / WEIGHTS)
    assert MtebSearch(str(place))._revision != first._revision
