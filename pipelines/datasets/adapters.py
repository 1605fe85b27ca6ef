"""The data sets that are read from a folder of annotation files in its published layout."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pipelines.datasets import msvd
from pipelines.datasets.activitynet import ACTIVITYNET, ACTIVITYNET_VAL_2
from pipelines.datasets.annotations import Annotations
from pipelines.datasets.didemo import DIDEMO
from pipelines.datasets.msrvtt import annotation_files, read_msrvtt
from pipelines.datasets.msrvtt_qa import ANSWER_LABELS_FILE, QUESTION_FILES, read_msrvtt_qa
from pipelines.datasets.paragraphs import ParagraphDataset
from pipelines.datasets.video_files import VideoFolder
from pipelines.recipe.data import DataConfig
from pipelines.workspace.storage import Storage


@dataclass(frozen=True, slots=True)
class Adapter:
    """How one data set is read."""

    title: str
    """The data set's name in sentences."""

    files: Callable[[DataConfig], tuple[Sequence[str], Sequence[str]]]
    """Names of the annotation files that must be there, and of those that may be."""

    read: Callable[[Storage, VideoFolder, DataConfig], Annotations]
    """The annotated videos; raises ``FileNotFoundError`` or ``ValueError`` for files that cannot be used."""


def _paragraph_adapter(title: str, chosen: Callable[[DataConfig], ParagraphDataset]) -> Adapter:
    return Adapter(
        title=title,
        files=lambda config: (chosen(config).annotation_files, ()),
        read=lambda annotations, videos, config: chosen(config).read(annotations, videos, config.text_queries),
    )


ADAPTERS: Mapping[str, Adapter] = {
    "msrvtt": Adapter(
        title="MSR-VTT",
        files=lambda config: annotation_files(config.msrvtt_train_list, config.msrvtt_protocol),
        # A generated data set has the layout, but not the size, of the published one.
        read=lambda annotations, videos, config: read_msrvtt(
            annotations,
            videos,
            train_list=config.msrvtt_train_list,
            protocol=config.msrvtt_protocol,
            check_counts=config.shapes is None,
        ),
    ),
    "msrvtt_qa": Adapter(
        title="MSR-VTT-QA",
        files=lambda config: (list(QUESTION_FILES.values()), [ANSWER_LABELS_FILE]),
        read=lambda annotations, videos, config: read_msrvtt_qa(annotations, videos),
    ),
    "msvd": Adapter(
        title="MSVD",
        files=lambda config: (msvd.ANNOTATION_FILES, ()),
        read=lambda annotations, videos, config: msvd.read_msvd(annotations, videos),
    ),
    "activitynet": _paragraph_adapter(
        ACTIVITYNET.title, lambda config: ACTIVITYNET if config.activitynet_test == "val_1" else ACTIVITYNET_VAL_2
    ),
    "didemo": _paragraph_adapter(DIDEMO.title, lambda config: DIDEMO),
}
"""By ``DataConfig.dataset``; ``captions_file`` is the user's own and has no folder of annotations."""
