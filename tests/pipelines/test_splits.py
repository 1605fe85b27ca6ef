from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from pipelines.datasets.annotations import Question
from pipelines.datasets.answers import Vocabulary
from pipelines.recipe.data import Split
from pipelines.splits import QuestionView, SplitView, positions_of_half
from pipelines.workspace.records import ERRORS, ERRORS_FILE, FRAMES, INDEX_FILE, MANIFEST, MANIFEST_FILE
from pipelines.workspace.shards import ShardPool
from pipelines.workspace.storage import Storage

# Not in alphabetical order; clip "lost" has no frames.
MANIFEST_ROWS: list[tuple[str, Split, list[str]]] = [
    ("zebra", "train", ["a zebra", "stripes"]),
    ("lost", "train", ["nothing"]),
    ("ant", "test", ["an ant"]),
    ("mouse", "train", ["a mouse", "cheese", "a cat"]),
]


def asked(question: str, answer: str, split: Split) -> dict[str, str]:
    return {"question": question, "answer": answer, "type": "what", "split": split}


# A question's split need not be its video's.
QUESTIONS = {
    "zebra": [asked("what is it", "a zebra", "train"), asked("what has it", "stripes", "train")],
    "lost": [asked("what is it", "nothing", "train")],
    "ant": [asked("what is it", "an ant", "train"), asked("what size", "small", "test")],
    "mouse": [asked("what eats it", "cheese", "test"), asked("what is it", "a mouse", "train")],
}


@pytest.fixture
def workspace(tmp_path: Path) -> Storage:
    storage = Storage(str(tmp_path))
    manifest = [
        {
            "video_id": name,
            "uri": f"/{name}",
            "key": name,
            "split": split,
            "captions": captions,
            "questions": QUESTIONS[name],
        }
        for name, split, captions in MANIFEST_ROWS
    ]
    storage.write_table(f"manifest/{MANIFEST_FILE}", pa.Table.from_pylist(manifest, schema=MANIFEST))
    pool = ShardPool(storage.folder("pool"), FRAMES)
    for names in (["ant", "mouse"], ["zebra"]):
        pool.commit(
            [
                {"video_id": name, "key": name, "frames": [name.encode()], "frame_index": [0], "time_s": [0.0]}
                for name in names
            ]
        )
    storage.write_table(f"frames/{INDEX_FILE}", pool.index(["video_id"]))
    lost = {"video_id": "lost", "uri": "/lost", "stage": "frames", "reason": "missing", "message": "no such file"}
    storage.write_table(f"frames/{ERRORS_FILE}", pa.Table.from_pylist([lost], schema=ERRORS))
    return storage


def view(workspace: Storage, split: Split) -> SplitView:
    return SplitView(workspace.folder("manifest"), workspace.folder("frames"), workspace.folder("pool"), split)


def test_a_split_holds_its_videos_with_frames_in_the_order_of_the_manifest(workspace: Storage) -> None:
    train = view(workspace, "train")
    assert train.store.video_ids == ["zebra", "mouse"]
    assert train.texts_per_video == [2, 3]
    assert len(train) == 2
    assert view(workspace, "test").store.video_ids == ["ant"]


def test_a_view_says_what_it_leaves_out(workspace: Storage) -> None:
    expected = (
        "1 of 3 videos of train are left out: 1 have no frames (lost; errors.parquet of the stage frames says why)"
    )
    assert view(workspace, "train").left_out == question_view(workspace, "train").left_out.replace("of 4", "of 3")
    assert view(workspace, "train").left_out == expected
    assert view(workspace, "test").left_out is None
    manifest = workspace.read_table(f"manifest/{MANIFEST_FILE}").to_pylist()
    manifest[0]["captions"] = []
    workspace.write_table(f"manifest/{MANIFEST_FILE}", pa.Table.from_pylist(manifest, schema=MANIFEST))
    train = view(workspace, "train")
    left_out = train.left_out
    assert left_out is not None and left_out.startswith("2 of 3 videos") and "1 have no caption (zebra)" in left_out
    assert (train.store.video_ids, train.texts_per_video, train.texts(0)) == (["mouse"], [3], MANIFEST_ROWS[3][2])
    assert train.store.encoded(0) == [b"mouse"]
    train.require_captions("evaluation.split")


def test_a_split_without_captions_is_refused_with_what_was_left_out(workspace: Storage) -> None:
    manifest = workspace.read_table(f"manifest/{MANIFEST_FILE}").to_pylist()
    for row in manifest:
        row["captions"] = []
    workspace.write_table(f"manifest/{MANIFEST_FILE}", pa.Table.from_pylist(manifest, schema=MANIFEST))
    with pytest.raises(ValueError, match=r"probe.split is 'test', and no video .* \(1 of 1 .* no caption \(ant\)\)"):
        view(workspace, "test").require_captions("probe.split")
    with pytest.raises(ValueError, match=r"evaluation.split is 'val', .*the manifest lists none"):
        view(workspace, "val").require_captions("evaluation.split")


def test_videos_of_which_the_frames_know_nothing_are_refused(workspace: Storage) -> None:
    """As an artifact is that was made before a stage checked what it committed."""
    workspace.write_table(f"frames/{ERRORS_FILE}", pa.Table.from_pylist([], schema=ERRORS))
    for make in (view, question_view):
        with pytest.raises(
            ValueError, match=r"1 of \d videos are neither among the frames .*: lost\. .*--force frames"
        ):
            make(workspace, "train")
    assert len(view(workspace, "test")) == 1


def test_captions_and_frames_belong_together(workspace: Storage) -> None:
    train = view(workspace, "train")
    assert (train.texts(0), train.store.encoded(0)) == (["a zebra", "stripes"], [b"zebra"])
    assert (train.texts(1), train.store.encoded(1)) == (["a mouse", "cheese", "a cat"], [b"mouse"])


def test_texts_name_their_video_and_their_number(workspace: Storage) -> None:
    texts, videos, numbers = view(workspace, "train").texts_of([1, 0])
    assert texts == ["a mouse", "cheese", "a cat", "a zebra", "stripes"]
    assert videos == [1, 1, 1, 0, 0]
    assert numbers == [0, 1, 2, 0, 1]


def test_a_split_may_be_empty(workspace: Storage) -> None:
    empty = view(workspace, "val")
    assert len(empty) == 0
    assert empty.texts_of(range(0)) == ([], [], [])


def question_view(workspace: Storage, split: Split, answerable_by: Vocabulary | None = None) -> QuestionView:
    folders = (workspace.folder(name) for name in ("manifest", "frames", "pool"))
    return QuestionView(*folders, split, answerable_by=answerable_by)


def test_questions_go_by_their_own_split(workspace: Storage) -> None:
    train, test = question_view(workspace, "train"), question_view(workspace, "test")
    assert train.store.video_ids == ["zebra", "ant", "mouse"]
    assert train.texts_per_video == [2, 1, 1]
    assert train.questions(1) == [Question("what is it", "an ant", "what", "train")]
    assert (train.texts(0), train.store.encoded(0)) == (["what is it", "what has it"], [b"zebra"])
    assert test.store.video_ids == ["ant", "mouse"]
    assert [test.texts(video) for video in range(len(test))] == [["what size"], ["what eats it"]]
    assert len(question_view(workspace, "val")) == 0


def test_questions_and_videos_without_a_known_answer_can_be_left_out(workspace: Storage) -> None:
    view = question_view(workspace, "train", Vocabulary(["stripes", "a mouse"]))
    assert view.store.video_ids == ["zebra", "mouse"]
    assert [view.questions(video)[0].answer for video in range(2)] == ["stripes", "a mouse"]
    assert view.texts_per_video == [1, 1]
    assert view.store.encoded(1) == [b"mouse"]


@pytest.mark.parametrize("count", [0, 1, 2, 7, 100])
def test_halves_of_the_validation_videos_share_none_and_go_by_their_ids(count: int) -> None:
    names = [f"video{number}" for number in range(count)]
    choosing, ranking = (positions_of_half(names, half) for half in ("choosing", "ranking"))
    assert sorted([*choosing, *ranking]) == list(range(count)) == positions_of_half(names, None)
    assert len(choosing) - len(ranking) in (0, 1)
    turned = names[::-1]
    assert {names[place] for place in choosing} == {turned[place] for place in positions_of_half(turned, "choosing")}
