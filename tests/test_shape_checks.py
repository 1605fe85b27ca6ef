from __future__ import annotations

import pytest
import torch
from jaxtyping import TypeCheckError

from hbi_models.axes import TextBatch
from hbi_models.losses import contrastive_loss
from hbi_models.metrics import text_to_video_ranks


def test_shape_annotations_of_the_models_are_executed() -> None:
    with pytest.raises(TypeCheckError):
        contrastive_loss(torch.zeros(2, 2, 2))
    with pytest.raises(TypeCheckError):
        text_to_video_ranks(torch.zeros(3, 2), torch.zeros(2, dtype=torch.long))


@pytest.mark.slow
def test_shape_annotations_of_the_batches_are_executed() -> None:
    with pytest.raises(TypeCheckError):
        TextBatch(token_ids=torch.zeros(2, 5, dtype=torch.long), mask=torch.ones(2, 4, dtype=torch.bool))
