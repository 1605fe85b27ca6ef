from __future__ import annotations

from pipelines.figures.robustness import robustness_chart


def test_every_panel_says_its_own_strengths_and_starts_without_any() -> None:
    def figures(*values: float) -> list[dict[str, float]]:
        return [{"value": value, "low": value - 5, "high": value + 5} for value in values]

    document = {
        "none": {"recall_at_1": figures(50)},
        "grey": {"amounts": [0.5, 0.2, 0.0], "recall_at_1": figures(50, 30, 20, 10)},
        "shuffle": {"amounts": [2, 4, 0], "recall_at_1": figures(50, 49, 48, 47)},
    }
    panels = [axes for axes in robustness_chart(document).axes if axes.get_visible()]
    assert [axes.get_title() for axes in panels] == ["grey", "shuffle"]
    for axes, name in zip(panels, ("grey", "shuffle"), strict=True):
        assert [label.get_text() for label in axes.get_xticklabels()] == ["none", "slight", "clear", "hard"]
        (line,) = (line for line in axes.lines if len(line.get_xdata()) == 4)
        assert list(line.get_ydata()) == [each["value"] for each in document[name]["recall_at_1"]]
