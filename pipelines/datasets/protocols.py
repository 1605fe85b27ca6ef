"""The published test protocols by name: where each comes from, and how many videos and captions it has.

Figures with such a name can be compared with published ones if the counts are the published ones, too. With other
counts the test is easier or harder, and the figures say so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.recipe.data import DataConfig, Split


@dataclass(frozen=True, slots=True)
class NamedProtocol:
    """A test of a data set as publications report it."""

    name: str
    source: str
    videos: Sequence[int]
    """The published number of videos; several numbers where published copies differ."""
    captions: Sequence[int]
    """The same for captions; empty if no count is known."""

    def checked(self, videos: int, captions: int) -> dict[str, Any]:
        """The entry ``named`` of a figure's protocol, with the counts found and the published ones."""
        complete = videos in self.videos and (not self.captions or captions in self.captions)
        return {
            "name": self.name,
            "source": self.source,
            "published_videos": list(self.videos),
            "published_captions": list(self.captions),
            "complete": complete,
        }


PROTOCOLS: Mapping[str, NamedProtocol] = {
    protocol.name: protocol
    for protocol in (
        NamedProtocol("msrvtt_1k_a", "list of JSFusion (Yu et al., ECCV 2018)", [1_000], [1_000]),
        NamedProtocol("msrvtt_full", "split of the data set (Xu et al., CVPR 2016)", [2_990], [59_800]),
        NamedProtocol("msrvtt_mteb", "MSRVTTT2V of MTEB: clips of the 1k-A list that it could get", [879], [879]),
        NamedProtocol("msvd", "lists of CLIP4Clip's release, every caption", [670], [27_763]),
        NamedProtocol("msvd_listed", "MSVD's test clips in data.test_videos (MTEB: about 660)", [660], []),
        NamedProtocol("activitynet_val_1_paragraph", "val_1 (Krishna et al., ICCV 2017)", [4_917], [4_917]),
        NamedProtocol("activitynet_val_1_sentence", "val_1 (Krishna et al., ICCV 2017)", [4_917], [17_505]),
        NamedProtocol("activitynet_val_2_paragraph", "val_2 (Krishna et al., ICCV 2017)", [4_885], [4_885]),
        NamedProtocol("activitynet_val_2_sentence", "val_2 (Krishna et al., ICCV 2017)", [4_885], [17_031]),
        NamedProtocol(
            "didemo_paragraph", "test list (Anne Hendricks et al., ICCV 2017)", [1_003, 1_004], [1_003, 1_004]
        ),
        NamedProtocol("didemo_sentence", "test list (Anne Hendricks et al., ICCV 2017)", [1_003, 1_004], []),
    )
}


def named_protocol(data: DataConfig, split: Split) -> NamedProtocol | None:
    """The protocol that ``data`` asks for; None for validation, generated data and the user's own."""
    if split != "test" or data.shapes is not None or data.features is not None:
        return None
    if data.dataset == "msrvtt":
        listed = "msrvtt_mteb" if data.test_videos is not None else "msrvtt_1k_a"
        return PROTOCOLS["msrvtt_full" if data.msrvtt_protocol == "full" else listed]
    if data.dataset == "msvd":
        return PROTOCOLS["msvd" if data.test_videos is None else "msvd_listed"]
    if data.dataset == "activitynet":
        return PROTOCOLS[f"activitynet_{data.activitynet_test}_{data.text_queries}"]
    if data.dataset == "didemo":
        return PROTOCOLS[f"didemo_{data.text_queries}"]
    return None
