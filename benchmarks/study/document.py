"""The study as tables and a picture."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.study.arms import ARMS, LEAST_SEEDS
from benchmarks.study.results import Difference, claims, decision, difference, values_of
from pipelines.tables import table

BEGIN, END = "<!-- study: begin -->", "<!-- study: end -->"
"""Between these lines of a document the tables are put."""

MEASURES = {
    "r1": "R@1",
    "entity_r1": "R@1, entity level",
    "auc": "AUC of cosines",
    "auc_interaction": "AUC of interaction",
}

_INK, _SOFT, _CLAIM = "#1a1a1a", "#9a9a9a", "#2171b5"


def tables(rows: Sequence[Mapping[str, Any]], data_sets: Iterable[str], *, measure: str) -> str:
    """Markdown: for each data set what every arm reached, the claims and the decision."""
    parts = []
    for data in data_sets:
        main = values_of(rows, data, measure)
        if not main:
            continue
        shown = [name for name in MEASURES if name == measure or values_of(rows, data, name)]
        shown = [measure, *(name for name in shown if name != measure)]
        lines = [["arm", "seeds", *map(_title, shown)]]
        for arm in (name for name in ARMS if name in main):
            cells = [arm, str(len(main[arm]))]
            for name in shown:
                values = values_of(rows, data, name)
                cells.append(_cell(values, arm))
            lines.append(cells)
        found = claims(main)
        claim_lines = [["difference", "seeds", _title(measure), "95%", "p", "p, Holm", "ahead"]]
        claim_lines += [
            [
                f"{part.arm} − {part.other}",
                str(part.seeds),
                f"{part.mean:+.2f}",
                f"{part.low:+.2f} to {part.high:+.2f}",
                _p(part.p),
                _p(part.corrected or 0.0),
                f"{part.above} of {part.seeds}",
            ]
            for part in found
        ]
        seeds = min((part.seeds for part in found), default=0)
        too_few = f", which asks for {LEAST_SEEDS} seeds and so far has {seeds}" if seeds < LEAST_SEEDS else ""
        missing = [arm for arm in ARMS if arm not in main]
        not_run = f"\n\nArms that were not run: {', '.join(missing)}." if missing else ""
        parts.append(
            f"### {data[0].upper()}{data[1:]}\n\nMean and deviation over seeds; in brackets the difference to `none` "
            f"of the same seeds with its 95% t-interval.\n\n{_markdown(lines)}\n\n{_markdown(claim_lines)}\n\n"
            f"By the rule{too_few}: **{decision(found)}**.{not_run}"
        )
    return "\n\n".join(parts)


def console(rows: Sequence[Mapping[str, Any]], data_sets: Iterable[str], *, measure: str) -> str:
    """The claims in short."""
    lines = []
    for data in data_sets:
        for part in claims(values_of(rows, data, measure)):
            interval = f"{part.low:+.2f} to {part.high:+.2f}"
            lines.append([data, f"{part.arm} − {part.other}", f"{part.mean:+.2f}", interval, _p(part.corrected or 0.0)])
    return table(["data", "difference", _title(measure), "95%", "p, Holm"], lines) if lines else "no two arms yet"


def picture(rows: Sequence[Mapping[str, Any]], data_sets: Sequence[str], path: Path, *, measure: str) -> None:
    """Draws every arm's difference to ``none`` with its interval, a panel for each data set."""
    drawn = [data for data in data_sets if values_of(rows, data, measure)]
    done = {arm for data in drawn for arm in values_of(rows, data, measure)}
    arms = [arm for arm in ARMS if arm in done - {"none"}]
    figure = Figure(figsize=(3.4 * max(len(drawn), 1) + 1.4, 0.3 * len(arms) + 1.2), layout="constrained")
    axes = figure.subplots(1, max(len(drawn), 1), sharey=True, squeeze=False)[0]
    for axis, data in zip(axes, drawn, strict=False):
        values = values_of(rows, data, measure)
        axis.axvline(0, color=_SOFT, linewidth=0.8)
        for place, arm in enumerate(arms):
            part = difference(values, arm, "none")
            if part is not None:
                proven = part.low > 0 or part.high < 0
                axis.errorbar(
                    part.mean,
                    place,
                    xerr=[[part.mean - part.low], [part.high - part.mean]],
                    fmt="o",
                    markersize=4,
                    color=_CLAIM if proven else _INK,
                    markerfacecolor=_CLAIM if proven else "white",
                )
        axis.set_title(data, fontsize=9)
        axis.set_xlabel(f"{_title(measure)}, difference to none", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(np.arange(len(arms)), arms)
    # The first arm on top.
    axes[0].set_ylim(len(arms) - 0.5, -0.5)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def put_into(document: Path, content: str) -> None:
    """Replaces what stands between the marks of a document.

    Raises:
        ValueError: it has no such marks.
    """
    text = document.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{document} has no lines {BEGIN!r} and {END!r}; add them where the tables belong")
    document.write_text(f"{before}{BEGIN}\n\n{content}\n\n{END}{after}", encoding="utf-8")


def _title(measure: str) -> str:
    return MEASURES.get(measure, measure.replace("_", " "))


def _cell(values: Mapping[str, Mapping[int, float]], arm: str) -> str:
    seeds = list(values.get(arm, {}).values())
    if not seeds:
        return "–"
    spread = f" ± {np.std(seeds, ddof=1):.1f}" if len(seeds) > 1 else ""
    part: Difference | None = None if arm == "none" else difference(dict(values), arm, "none")  # type: ignore[arg-type]
    beside = "" if part is None else f" ({part.mean:+.1f}: {part.low:+.1f} to {part.high:+.1f})"
    return f"{np.mean(seeds):.1f}{spread}{beside}"


def _p(value: float) -> str:
    return "< .0001" if value < 1e-4 else f"{value:.4f}".removeprefix("0")


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    head, *body = (f"| {' | '.join(cells)} |" for cells in lines)
    return "\n".join([head, "|" + "---|" * len(lines[0]), *body])
