from __future__ import annotations

from itertools import pairwise
from xml.etree import ElementTree

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from pipelines.figures.drawing import checked_kinds
from pipelines.figures.files import png, svg
from pipelines.figures.heat_maps import heat_map_figure
from pipelines.figures.hierarchy import hierarchy_figure
from pipelines.figures.sheet import MARGIN, Place, Sheet
from pipelines.figures.style import INTERACTION, norm_of, signed
from tests.pipelines.figures.maps import maps_of

SIZES = [(3, 2), (24, 12), (64, 64), (64, 2), (3, 64)]


def texts_inside(figure: Figure) -> bool:
    """Whether every letter lies on the sheet."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = [text.get_window_extent(renderer) for axes in figure.axes for text in axes.texts]
    width, height = figure.bbox.width, figure.bbox.height
    return all(box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height for box in boxes)


@pytest.mark.slow
@pytest.mark.parametrize(("words", "frames"), SIZES)
@pytest.mark.parametrize("draw", [hierarchy_figure, heat_map_figure])
def test_everything_is_on_the_sheet(draw: object, words: int, frames: int) -> None:
    figure = draw(maps_of(words, frames))  # type: ignore[operator]
    assert texts_inside(figure)
    assert max(figure.get_size_inches()) < 28


@pytest.mark.parametrize(("words", "frames"), SIZES)
def test_what_stands_side_by_side_does_not_overlap(words: int, frames: int) -> None:
    maps = maps_of(words, frames)
    sheet = Sheet.of(maps)
    assert sheet.thumbnail >= 0.29

    def check(places: list[Place]) -> None:
        assert places[0].middle - places[0].half >= MARGIN - 1e-6
        assert places[-1].middle + places[-1].half <= sheet.width - MARGIN + 1e-6
        for left, right in pairwise(places):
            assert left.middle + left.half <= right.middle - right.half + 1e-6

    for level in maps.levels:
        check(sheet.word_row(maps.tokens, level.words).places)
        check(sheet.frame_places(level.frames))


def test_every_word_is_written_and_every_frame_drawn_once_a_level() -> None:
    maps = maps_of(24, 12)
    axes = hierarchy_figure(maps).axes[0]
    written = [text.get_text().removeprefix("… ") for text in axes.texts]
    for token in maps.tokens:
        assert written.count(token) == 3 * maps.tokens.count(token)
    assert len(axes.images) == 3 * len(maps.images) + 3


def test_lines_are_coloured_and_weighted_by_the_interaction() -> None:
    maps = maps_of(24, 12)
    entity = next(item for item in hierarchy_figure(maps).axes[0].collections if isinstance(item, LineCollection))
    values = maps.levels[0].interactions["exact"]
    strength = abs(values) / abs(values).max()
    widths = entity.get_linewidths()
    assert len(widths) == (strength >= 0.08).sum()
    assert list(widths) == sorted(widths), "the strongest are drawn last"
    strongest = values.flat[abs(values).argmax()]
    assert tuple(entity.get_colors()[-1]) == pytest.approx(INTERACTION(norm_of(values)(strongest)))
    dashed = [pattern is not None for _, pattern in entity.get_linestyles()]
    assert sum(dashed) == ((strength >= 0.08) & (values < 0)).sum()


@pytest.mark.slow
@pytest.mark.parametrize("draw", [pytest.param(hierarchy_figure, marks=pytest.mark.long), heat_map_figure])
def test_the_same_interaction_gives_the_same_files(draw: object) -> None:
    maps = maps_of(7, 3)
    for saved in (png, svg):
        first = saved(draw(maps, "difference"))  # type: ignore[operator]
        assert first == saved(draw(maps, "difference"))  # type: ignore[operator]
        assert first != saved(draw(maps, "exact"))  # type: ignore[operator]
    ElementTree.fromstring(svg(draw(maps)))  # type: ignore[operator]


@pytest.mark.slow
def test_an_interaction_that_is_zero_everywhere_can_be_drawn() -> None:
    maps = maps_of(5, 3)
    for level in maps.levels:
        level.interactions["exact"][:] = 0
    assert png(hierarchy_figure(maps)) and png(heat_map_figure(maps))


def test_numbers_have_a_sign_and_the_places_that_count() -> None:
    assert [signed(value, 0.031) for value in (0.031, -0.0044, 0.0001)] == ["+0.031", "−0.004", "0"]
    assert signed(12.34, 120.0) == "+12"


def test_phrases_say_where_words_are_left_out() -> None:
    maps = maps_of(8, 2)
    assert maps.tokens == ("⟨start⟩", "a", "man", "in", "a", "$5", "<blue>", "⟨end⟩")
    assert maps.phrase((0, 1, 3)) == "⟨start⟩ a … in"
    assert maps.document()["levels"][0]["interaction"]["exact"][7][1] == pytest.approx(
        float(maps.levels[0].interactions["exact"][7, 1])
    )


@pytest.mark.parametrize("names", [[], ["exact", "sampled"]])
def test_other_kinds_are_refused(names: list[str]) -> None:
    with pytest.raises(
        ValueError, match=r"^(sampled cannot be shown|there is nothing to show); choose among exact, estimator"
    ):
        checked_kinds(names)
