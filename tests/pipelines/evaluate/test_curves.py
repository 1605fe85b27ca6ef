"""Names of curves hold types and classes of the user's, which may be any text."""

from __future__ import annotations

from pipelines.evaluate.video_qa import _flat as flat_answers
from pipelines.stages.probe import _flat as flat_probe

KINDS = ["что", "где", "how_many", "how many", "how_many_2", "overall"]


def test_each_type_of_question_has_curves_of_its_own() -> None:
    def figures(kinds: list[str]) -> dict[str, dict[str, dict[str, float]]]:
        return {
            kind: {metric: {"value": float(KINDS.index(kind))} for metric in ("accuracy", "top_5_accuracy")}
            for kind in kinds
        }

    document = {"questions": 9, "answerable_questions": 9, "videos": 3, "protocol": {"missing_videos": 0}}
    # Of one type no question can be answered, and the others keep their names.
    flat = flat_answers({**document, "all": figures(KINDS), "answerable": figures(KINDS[3:]), "baselines": {}})
    names = {
        name.split("/")[1]: value for name, value in flat.items() if name.startswith("all/") and name.count("/") == 2
    }
    assert names == {"что": 0, "где": 1, "how_many": 3, "how_many_2": 2, "how_many_2_2": 4}
    assert (flat["all/accuracy"], flat["answerable/how_many/accuracy"], flat["answerable/how_many_2_2/accuracy"]) == (
        5,
        3,
        4,
    )


def test_each_class_of_negatives_has_curves_of_its_own() -> None:
    negatives = {kind: {"pairs": 3, "accuracy": {"value": float(at)}} for at, kind in enumerate(("a b", "a_b", "c.d"))}
    assert flat_probe({"negatives": negatives}) == {
        "negatives/a_b/accuracy": 0,
        "negatives/a_b_2/accuracy": 1,
        "negatives/c.d/accuracy": 2,
    }
