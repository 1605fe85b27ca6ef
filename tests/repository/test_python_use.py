"""``hbi_models`` is used from Python by itself: a caption, a video, their similarity and their interaction."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hbi_models.axes import TokenLevel
from hbi_models.banzhaf.game import brute_force_interaction
from hbi_models.similarity import token_cosines
from pipelines.recipe.data import ShapesConfig
from pipelines.shapes.data_set import VIDEOS_FOLDER, write_clips
from pipelines.workspace.storage import Storage

README = Path(__file__).parents[2] / "README.md"


def snippet() -> str:
    """The lines below the README's heading "From Python"."""
    section = README.read_text(encoding="utf-8").partition("\n## From Python\n")[2].partition("\n## ")[0]
    return "\n".join(line.removeprefix("    ") for line in section.splitlines() if line[:4] in ("    ", ""))


SETTINGS = """RetrievalConfig(
    clip=ClipConfig(architecture="shapes-tiny", pretrained=None, freeze_patch_embedding=False),
    temporal=TemporalConfig(init_from_clip_text=False),
)"""
"""A small model without weights from elsewhere, in the place of the snippet's."""


@pytest.mark.slow
def test_the_readmes_lines_give_similarity_and_interaction_without_the_pipeline(tmp_path: Path) -> None:
    clips = Storage(str(tmp_path / "clips"))
    write_clips(ShapesConfig(train_videos=1, test_videos=1, image_size_px=32, duration_s=2.0), range(1), clips)
    (name,) = clips.files(VIDEOS_FOLDER)
    (tmp_path / "clip.mp4").write_bytes(clips.read_bytes(f"{VIDEOS_FOLDER}/{name}"))
    lines = snippet().replace("RetrievalConfig()", SETTINGS)
    lines = lines.replace("import RetrievalConfig\n", "import ClipConfig, RetrievalConfig, TemporalConfig\n")
    assert lines.count(SETTINGS) == 1
    saved = """
import sys
assert not {"ray", "pipelines"} & sys.modules.keys()
levels = [(level.features, level.mask, level.logits) for level in (text[0], video[0])]
torch.save({"similarity": similarity, "interaction": interaction, "levels": levels}, "found.pt")
"""
    # In a process of its own, which has imported nothing else.
    program = f"import sys; sys.path.insert(0, {str(README.parent)!r})\n{lines}{saved}"
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    assert -1 <= found["similarity"] <= 1
    text, video = (TokenLevel(*parts) for parts in found["levels"])
    expected = brute_force_interaction(token_cosines(text, video), text.logits, video.logits, text.mask, video.mask)
    # The closed form in single precision.
    torch.testing.assert_close(found["interaction"], expected[0], rtol=0, atol=2e-6)
    assert found["interaction"].abs().max() > 1e-5
