"""Settings of the documentation site: ``make docs`` builds it from these pages and the docstrings.

Pages link to each other and to files of the repository by relative paths, so that they can be read in the
repository, too. The site keeps links between pages, and shows those to other files as their text.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"

ELSEWHERE = {
    "index": "README.md",
    "cluster": "cluster/README.md",
    "contributing": "CONTRIBUTING.md",
    "changelog": "CHANGELOG.md",
}
"""Pages of the site whose text stands outside of ``docs/``."""

CONTENTS = """
```{toctree}
:hidden:
:maxdepth: 1

running
searching
export
features
tuning
evaluation
datasets
encoders
decoding
results
closed_form
game
architecture
faults
memory
performance
cluster
contributing
changelog
settings
reference
```
"""

project = "HBI on Ray"
html_title = project
html_theme = "furo"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.apidoc"]
exclude_patterns = ["_build", "reference/modules.rst"]
suppress_warnings = ["myst.header"]  # a changelog begins with its second level
myst_heading_anchors = 3

apidoc_modules = [
    {
        "path": "../hbi_models",
        "destination": "reference",
        "separate_modules": True,
        "module_first": True,
        "max_depth": 3,
        "automodule_options": {"members", "show-inheritance"},
    }
]
autodoc_member_order = "bysource"
autodoc_class_signature = "separated"
autodoc_typehints_format = "short"
# Shapes stand in the annotations, as text; executing them would lose the axis words.
autodoc_preserve_defaults = True

_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s:]+)(#[^)\s]*)?\)")


def _page_of(file: Path) -> str | None:
    """The name of the page that shows ``file``, if the site has one."""
    for page, path in ELSEWHERE.items():
        if file == ROOT / path:
            return page
    is_page = file.parent == DOCS and file.suffix == ".md"
    return file.stem if is_page else None


def _show(app: Any, name: str, source: list[str]) -> None:
    """Puts the text of a page in place, and its links right."""
    file = ROOT / ELSEWHERE[name] if name in ELSEWHERE else Path(app.env.doc2path(name))
    if not file.is_relative_to(ROOT) or file.suffix != ".md":
        return
    app.env.note_dependency(str(file))

    def link(match: re.Match[str]) -> str:
        picture, text, target, anchor = match.groups()
        place = (file.parent / target).resolve()
        if not place.exists():
            raise FileNotFoundError(f"{file}: there is no {target}")
        if picture:
            return f"![{text}](/{place.relative_to(DOCS)})"
        page = _page_of(place)
        return text if page is None else f"[{text}](/{page}.md{anchor or ''})"

    text = file.read_text(encoding="utf-8")
    source[0] = _LINK.sub(link, text) + (CONTENTS if name == "index" else "")


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _show)
