"""Settings of the data: which videos, captions and questions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hbi_models.config_fields import added_later, only_for, require
from pipelines.recipe.checks import require_counts

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class ShapesConfig:
    """A generated data set: real H.264 files, MSR-VTT's annotation layout, known truth."""

    train_videos: int = 1500
    """Clips for training; the validation split is taken from them."""

    test_videos: int = 250
    """Clips for testing; their combinations of attributes never occur in training."""

    captions_per_video: int = 4
    """Paraphrases of one clip's events."""

    image_size_px: int = 64
    """Width and height of the files."""

    fps: float = 8.0
    """Frames per second of the files."""

    duration_s: float = 4.0
    """Mean length of a clip; clips vary around it."""

    seed: int = 0
    """Everything drawn is a function of this and the clip's number."""

    events: Literal[1, 2, 3] | None = added_later(default=None)
    """What happens in every clip, one after the other; null = one or two events."""

    def __post_init__(self) -> None:
        require(self.events in (None, 1, 2, 3), f"data.shapes.events is {self.events}; it is 1, 2, 3 or null")
        require_counts(self, "data.shapes", "train_videos", "test_videos", "captions_per_video", "image_size_px")
        require(
            self.image_size_px % 2 == 0,
            f"data.shapes.image_size_px is {self.image_size_px}; H.264 with 4:2:0 colour needs an even number",
        )
        require(self.fps > 0, f"data.shapes.fps is {self.fps}; it must be positive")
        require(self.duration_s > 0, f"data.shapes.duration_s is {self.duration_s}; it must be positive")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which videos and captions: a data set in its published layout, or the user's own."""

    dataset: Literal["msrvtt", "msrvtt_qa", "msvd", "activitynet", "didemo", "captions_file"] = "msrvtt"
    """A published data set, from its annotation files (docs/datasets.md), or ``captions_file``: a
    CSV or JSONL with a column ``path`` or ``uri``, a column ``caption``, and optionally
    ``split``, ``video_id``, ``start_s``, ``end_s``."""

    annotations: str | None = None
    """Folder of the annotation files, or the file (captions_file)."""

    videos: str | None = None
    """Folder or URI of the video files; relative paths of the user's own files start here."""

    # Not counted by its name: the manifest stage counts the contents of the files.
    features: str | None = only_for(default=None)
    """In place of a data set: a Parquet file, or a folder of them, with token features that another model made of
    videos and captions (docs/features.md); ``model.tokens`` then says how many channels they have. No video is
    needed, and the other settings of the place of the data are left unset."""

    questions: str | None = None
    """The user's own questions, in place of the data set's: a JSONL or CSV with columns ``video``
    (id, path or URI), ``question``, ``answer``, and optionally ``type``, ``split``. With
    ``captions_file`` and without ``annotations`` the videos are those that it names."""

    msrvtt_train_list: Literal["9k", "7k"] = "9k"
    """Which published training list of MSR-VTT."""

    msrvtt_protocol: Literal["1k-A", "full"] = added_later(default="1k-A")
    """``1k-A``: the training list above, tested with one caption of each of 1,000 videos. ``full``: the data set's own
    split of 6,513, 497 and 2,990 videos with all their captions; set ``validation_videos`` to 0 with it."""

    activitynet_test: Literal["val_1", "val_2"] = added_later(default="val_1")
    """Which annotations of ActivityNet's validation videos are the test split (usual: val_1)."""

    text_queries: Literal["paragraph", "sentence"] = added_later(default="paragraph")
    """ActivityNet and DiDeMo: all sentences about a video are joined to one caption (published), or each is a
    caption."""

    test_videos: str | None = added_later(default=None, names="file or name")
    """Text file with a video id a line: only these of the test split are tested (a published subset, such as the 879
    clips of MSR-VTT that MTEB could get)."""

    validation_videos: int = 200
    """Videos taken from the training split for choosing checkpoints, by a hash of their ids;
    0 where the data has a validation split of its own, or none is wanted."""

    max_missing_fraction: float = only_for(default=0.05)
    """Fraction of listed videos that may be missing before the manifest is refused."""

    # Counted by the stage shapes, which is then an input of the manifest.
    shapes: ShapesConfig | None = only_for(default=None)
    """Generate this data set first and read it instead of ``annotations`` and ``videos``."""

    def __post_init__(self) -> None:
        require(
            self.validation_videos >= 0, f"data.validation_videos is {self.validation_videos}; it must not be negative"
        )
        require(
            0 <= self.max_missing_fraction <= 1,
            f"data.max_missing_fraction is {self.max_missing_fraction}; it must lie in [0, 1]",
        )
        require(
            self.shapes is None or (self.annotations is None and self.videos is None),
            "data.shapes generates the videos and annotations; leave data.annotations and data.videos unset with it",
        )
        require(
            self.shapes is None or self.dataset == "msrvtt",
            f"data.shapes writes MSR-VTT's layout; set data.dataset to msrvtt, not {self.dataset}",
        )

        # Refused rather than ignored: the figures would seem to be those of another protocol.
        for name, value, default, sets in (
            ("msrvtt_protocol", self.msrvtt_protocol, "1k-A", ("msrvtt",)),
            ("activitynet_test", self.activitynet_test, "val_1", ("activitynet",)),
            ("text_queries", self.text_queries, "paragraph", ("activitynet", "didemo")),
        ):
            require(
                value == default or (self.dataset in sets and self.shapes is None and self.features is None),
                f"data.{name} is {value} and data.dataset {self.name}; it is for {' and '.join(sets)}",
            )

        places = {name: getattr(self, name) for name in ("annotations", "videos", "questions", "shapes")}
        given = [f"data.{name}" for name, value in places.items() if value is not None]
        require(
            self.features is None or not given,
            f"data.features is {self.features}, which takes the place of a data set; leave {' and '.join(given)} unset",
        )

    @property
    def name(self) -> str:
        """The name of the data in a protocol."""
        if self.features is not None:
            return "given features"
        return self.dataset if self.shapes is None else "generated shapes"

    @property
    def is_questions_alone(self) -> bool:
        """Whether the videos are those of the user's own questions."""
        return self.dataset == "captions_file" and self.annotations is None and self.questions is not None

    @property
    def has_captions(self) -> bool:
        """Whether videos have captions; questions are their texts otherwise."""
        return self.features is not None or (self.dataset != "msrvtt_qa" and not self.is_questions_alone)

    @property
    def may_have_questions(self) -> bool:
        """Whether the data can have questions."""
        return self.features is None and (self.questions is not None or self.dataset in ("msrvtt", "msrvtt_qa"))
