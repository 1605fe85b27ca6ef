"""The evaluation transform of images against the published one (case k)."""

from __future__ import annotations

from hbi_models.clip.preprocessing import preprocess_image
from tests.parity.conftest import Golden
from tests.parity.published_model import assert_features_equal


def test_images_are_resized_cropped_and_normalised_as_published(golden: Golden) -> None:
    arrays = golden.arrays("k_preprocess")
    images = [name for name in arrays if name.startswith("img")]
    assert images
    for name in images:
        expected = arrays[name.replace("img", "out")]
        assert_features_equal(preprocess_image(arrays[name], expected.shape[-1]), expected, name)
