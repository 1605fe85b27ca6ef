"""An index of real files: made, continued, extended, searched; its ranking is the model's own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from hbi_models.post_processing import Querybank, nearest_neighbour_norm, neighbour_bias, querybank_norm
from hbi_models.retrieval import RetrievalModel
from jobs import search as search_job
from pipelines.models.encoding import encode_texts, encode_videos
from pipelines.models.weights import load_model
from pipelines.resources.sharded_work import Work
from pipelines.search.features import together
from pipelines.search.index_folder import CURRENT, features_pool
from pipelines.search.searcher import Searcher
from pipelines.stages.frames import FramesStage
from pipelines.stages.index import IndexStage
from pipelines.video.frame_store import FrameStore
from pipelines.workspace.records import ERRORS_FILE, FEATURES, INDEX_FILE
from pipelines.workspace.storage import Storage
from tests.jobs.recipes import raise_version
from tests.search_index import build_index, write_model, write_videos

QUERIES = ["a red circle moves left", "a small blue square grows", "the circle", "two shapes and then a star"]
VIDEOS = 12


@dataclass(frozen=True)
class Made:
    """A model, videos and an index of them."""

    model: Path
    videos: Path
    index: Path

    @property
    def artifact(self) -> Storage:
        return Storage(str(self.index)).folder(self.current["artifact"])

    @property
    def current(self) -> dict[str, Any]:
        return Storage(str(self.index)).read_json(CURRENT)  # type: ignore[no-any-return]

    def errors(self) -> dict[str, str]:
        return {Path(row["uri"]).name: row["reason"] for row in self.frames.read_table(ERRORS_FILE).to_pylist()}

    @property
    def frames(self) -> Storage:
        """The artifact of the stage frames, where there is one."""
        (folder,) = (self.index / "frames").iterdir()
        return Storage(str(folder))

    def shards(self) -> dict[str, int]:
        pool = features_pool(Storage(str(self.index)), self.current["features"]).storage
        return {name: Path(pool.path(name)).stat().st_mtime_ns for name in pool.files(suffix=".parquet")}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """An index of twelve clips, a broken file and a text that is called a video."""
    folder = tmp_path_factory.mktemp("index")
    videos = write_videos(folder / "shapes", VIDEOS)
    (videos / "text.mp4").write_text("these are not pictures\n" * 100)
    whole = next(videos.glob("*.mp4")).read_bytes()
    (videos / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    made = Made(write_model(folder), videos, folder / "made")
    assert build_index(made.model, made.videos, made.index) == 0
    return made


@pytest.mark.long
def test_tasks_and_an_actor_make_the_same_index(made: Made, tmp_path: Path, ray_local: Any) -> None:
    other = Made(made.model, made.videos, tmp_path / "made")
    resources = ["--resources.index.max_actors", "1", "--resources.decode.max_tasks", "1"]
    assert build_index(other.model, other.videos, other.index, *resources) == 0
    assert other.errors() == made.errors()
    assert other.current["features"] == made.current["features"]
    tables = [index.artifact.read_table(INDEX_FILE).sort_by("key").to_pydict() for index in (made, other)]
    assert tables[0] == tables[1]
    pools = [features_pool(Storage(str(index.index)), index.current["features"]).storage for index in (made, other)]
    names = pools[0].files(suffix=".parquet")
    assert names == pools[1].files(suffix=".parquet")
    for name in names:
        one, two = (pool.read_table(name).to_pydict() for pool in pools)
        assert one["key"] == two["key"]
        for mine, others in zip(one["coarse"], two["coarse"], strict=True):
            assert mine == pytest.approx(others, abs=2e-3)


@pytest.fixture(scope="module")
def searcher(made: Made) -> Searcher:
    return Searcher(str(made.index))


@pytest.fixture
def copy(made: Made, tmp_path: Path) -> Iterator[Made]:
    """The same once more, to be changed."""
    videos = shutil.copytree(made.videos, tmp_path / "videos")
    yield Made(made.model, videos, tmp_path / "index")


def test_unreadable_videos_are_in_the_errors_and_the_others_in_the_index(made: Made, searcher: Searcher) -> None:
    assert made.errors() == {"text.mp4": "undecodable", "cut.mp4": "undecodable"}
    assert len(searcher) == VIDEOS
    pool = features_pool(Storage(str(made.index)), made.current["features"])
    rows = [row for shard in pool.storage.files() for row in pool.storage.read_table(shard).to_pylist()]
    assert len(rows) == VIDEOS
    for row in rows:
        assert row["tokens"][0] == len(row["time_s"]) and row["end_s"] > row["time_s"][-1]
        assert len(row["logits"]) == sum(row["tokens"])
    assert pool.storage.read_table(pool.storage.files()[0]).schema.equals(FEATURES)


def test_the_same_command_again_does_nothing(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    before = made.shards()
    assert build_index(made.model, made.videos, made.index) == 0
    assert "Nothing to do" in capsys.readouterr().out
    assert made.shards() == before


def test_a_bank_corrects_the_order_as_the_evaluation_does(
    made: Made, searcher: Searcher, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    captions = [*QUERIES, "a white ring", "two stars", "something moves down"]
    (tmp_path / "bank.txt").write_text("".join(f"{caption}\n" for caption in captions))
    with pytest.raises(ValueError, match="no bank of training captions"):
        searcher.search(QUERIES[:1], correction="nnn")
    before, index = made.shards(), shutil.copytree(made.index, tmp_path / "index")
    options = ["--indexing.bank", str(tmp_path / "bank.txt"), "--indexing.bank_beta", "200"]
    options += ["--indexing.bank_neighbours", "3", "--indexing.bank_weight", "1.5"]
    assert build_index(made.model, made.videos, index, *options) == 0
    banked = Made(made.model, made.videos, index)
    assert list(banked.shards()) == list(before)

    found = Searcher(str(index))
    levels = together([found.clip(video_id) for video_id in found.video_ids])
    with torch.inference_mode():
        scores, bank = (found.model.similarity(found.encode(texts), levels) for texts in (QUERIES, captions))
    expected = {
        "qb_norm": querybank_norm(scores, Querybank.of(bank, beta=200.0)),
        "nnn": nearest_neighbour_norm(scores, neighbour_bias(bank, neighbours=3, weight=1.5)),
    }
    orders = {}
    for correction, corrected in expected.items():
        matches = found.search(QUERIES, top=VIDEOS, correction=correction)  # type: ignore[arg-type]
        orders[correction] = [[match.video_id for match in row] for row in matches]
        by_hand = corrected.argsort(descending=True, stable=True).tolist()
        assert orders[correction] == [[found.video_ids[place] for place in row] for row in by_hand]
        for row, match in ((row, match) for row, found_row in enumerate(matches) for match in found_row):
            assert match.score == pytest.approx(float(scores[row, found.video_ids.index(match.video_id)]), abs=1e-5)
    plain = [[match.video_id for match in row] for row in found.search(QUERIES, top=VIDEOS)]
    assert orders["qb_norm"] != plain and orders["nnn"] != plain
    assert search_job.main([*QUERIES, "--index", str(index), "--correct", "nnn"]) == 0
    assert QUERIES[0] in capsys.readouterr().out


def test_new_videos_cost_their_own_work_and_removed_ones_are_found_no_more(copy: Made) -> None:
    assert build_index(copy.model, copy.videos, copy.index) == 0
    before = copy.shards()
    removed = sorted(copy.videos.glob("video*.mp4"))[0]
    shutil.copy(sorted(copy.videos.glob("video*.mp4"))[3], copy.videos / "new.mp4")
    removed.unlink()
    assert build_index(copy.model, copy.videos, copy.index) == 0
    assert copy.artifact.read_json("artifact.json")["counts"]["new"] == 1
    after = copy.shards()
    assert before.items() <= after.items() and len(after) == len(before) + 1
    found = {Path(match.uri).name for match in Searcher(str(copy.index)).search(["a circle"], top=50)[0]}
    assert "new.mp4" in found and removed.name not in found and len(found) == VIDEOS


def test_an_interrupted_index_goes_on_where_it_was(
    copy: Made, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    add = Work.add

    def stop_after_the_first(self: Work, summary: Any) -> None:
        add(self, summary)
        if self.rows == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Work, "add", stop_after_the_first)
        with pytest.raises(KeyboardInterrupt):
            build_index(copy.model, copy.videos, copy.index, "--indexing.videos_per_shard", "1")
    assert not (copy.index / CURRENT).exists()
    with pytest.raises(FileNotFoundError, match="holds no finished index; make one"):
        Searcher(str(copy.index))
    (pool,) = (path for path in (copy.index / "shards").iterdir() if path.name.startswith("features-"))
    written = {path.name: path.stat().st_mtime_ns for path in pool.glob("*.parquet")}
    assert 1 <= len(written) < VIDEOS
    capsys.readouterr()
    assert build_index(copy.model, copy.videos, copy.index, "--indexing.videos_per_shard", "1") == 0
    assert f"{len(written)} of {VIDEOS} videos are done" in capsys.readouterr().out
    assert written.items() <= copy.shards().items()
    assert len(Searcher(str(copy.index))) == VIDEOS


def test_raising_the_version_of_a_stage_makes_its_rows_again(copy: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    assert build_index(copy.model, copy.videos, copy.index) == 0
    pools = [copy.current]
    for stage in (IndexStage, FramesStage):
        raise_version(monkeypatch, stage)
        assert build_index(copy.model, copy.videos, copy.index) == 0
        assert copy.artifact.read_json("artifact.json")["counts"]["new"] == VIDEOS
        pools.append(copy.current)
    assert len({current["features"] for current in pools}) == 3
    assert len({current["frames"] for current in pools}) == 2
    assert len(Searcher(str(copy.index))) == VIDEOS


def brute_force(made: Made) -> tuple[list[str], torch.Tensor]:
    """Ids and scores [queries, videos] by the model alone, from the stored frames, in single precision."""
    model: RetrievalModel = load_model(Storage(str(made.model)), made.model)
    root, current = Storage(str(made.index)), made.current
    store = FrameStore(root.folder("shards", current["frames"]), made.frames.read_table(INDEX_FILE))
    device = torch.device("cpu")
    with torch.inference_mode():
        texts = encode_texts(model, QUERIES, device=device, batch_size=2)
        videos = encode_videos(model, store, range(len(store)), device=device, batch_size=4)
        return store.video_ids, model.similarity(texts, videos)


def test_search_agrees_with_brute_force(made: Made, searcher: Searcher) -> None:
    ids, scores = brute_force(made)
    for matches, row in zip(searcher.search(QUERIES, top=VIDEOS), scores, strict=True):
        expected = dict(zip(ids, row.tolist(), strict=True))
        assert {match.video_id for match in matches} == set(ids)
        # Features are kept in half precision: an error of 2^-11 of a cosine, at three levels.
        for match in matches:
            assert match.score == pytest.approx(expected[match.video_id], abs=2e-3)
        found = [match.score for match in matches]
        assert found == sorted(found, reverse=True)


def test_few_candidates_are_the_best_of_the_first_pass_and_ranked_by_the_model(searcher: Searcher) -> None:
    (everything,) = searcher.search(QUERIES[:1], top=VIDEOS)
    (few,) = searcher.search(QUERIES[:1], top=3, candidates=3)
    scores = {match.video_id: match.score for match in everything}
    assert len(few) == 3
    assert [match.score for match in few] == pytest.approx(sorted((scores[m.video_id] for m in few), reverse=True))


def test_a_moment_lies_in_its_video(searcher: Searcher) -> None:
    for matches in searcher.search(QUERIES, top=VIDEOS):
        for match in matches:
            clip = searcher.clip(match.video_id)
            assert 0 <= match.moment.start_s < match.moment.end_s <= clip.end_s
            assert 0 <= match.moment.first < match.moment.stop <= len(clip.time_s) == match.frames


def test_the_interaction_map_has_a_row_per_word_and_a_column_per_frame(searcher: Searcher) -> None:
    (match, *_) = searcher.search(QUERIES[:1])[0]
    found = searcher.interaction(QUERIES[0], searcher.clip(match.video_id))
    assert [word.text for word in found.words][1:-1] == QUERIES[0].split()
    assert [word.special for word in found.words] == [True, *[False] * 5, True]
    assert len(found.values) == len(found.words) and {len(row) for row in found.values} == {match.frames}
    assert found.score == pytest.approx(match.score, abs=1e-5) and found.moment == match.moment


@pytest.mark.parametrize("query", ["", "  ", "x" * 1001])
def test_what_is_no_query_is_refused(searcher: Searcher, query: str) -> None:
    with pytest.raises(ValueError, match="the query"):
        searcher.search([query])


def test_the_job_prints_tables_and_json(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "queries.txt"
    file.write_text("\n".join(QUERIES[1:]) + "\n\n")
    index = ["--index", str(made.index), "--top", "3"]
    assert search_job.main([*index, QUERIES[0]]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == QUERIES[0] and lines[2].split() == ["score", "seconds", "video"]
    assert all(line.endswith(".mp4") for line in lines[4:7])
    assert search_job.main([*index, "--queries", str(file), "--json", QUERIES[0]]) == 0
    documents = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [document["query"] for document in documents] == QUERIES
    assert [len(document["matches"]) for document in documents] == [3] * 4
    assert set(documents[0]["matches"][0]) == {"video_id", "uri", "score", "start_s", "end_s"}
    with pytest.raises(ValueError, match="there is no query"):
        search_job.main(index)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--candidates", "0"], "candidates is 0; it must be at least top, 10"),
        (["--top", "0"], "top is 0; it must be 1 or more"),
        ([" "], "the query is empty"),
    ],
)
def test_what_cannot_be_searched_is_refused_before_an_index_is_read(options: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        search_job.main(["--index", "nowhere", "a circle", *options])


def test_a_damaged_shard_is_named_and_made_again(made: Made, copy: Made) -> None:
    assert build_index(copy.model, copy.videos, copy.index) == 0
    pool = copy.index / "shards" / copy.current["features"]
    shard = sorted(pool.glob("*.parquet"))[0]
    content = bytearray(shard.read_bytes())
    content[len(content) // 3 : len(content) // 3 + 400] = b"\0" * 400
    shard.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{shard.name}.*damaged"):
        Searcher(str(copy.index)).search(["a circle"], top=VIDEOS)
    assert not shard.exists(), "it is set aside"
    with pytest.raises(FileNotFoundError, match=r"run jobs\.index again"):
        Searcher(str(copy.index)).search(["a circle"], top=VIDEOS)
    assert build_index(copy.model, copy.videos, copy.index) == 0
    assert len(Searcher(str(copy.index)).search(["a circle"], top=VIDEOS)[0]) == VIDEOS
