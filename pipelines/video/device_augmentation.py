"""RandAugment where the model is: what ``augmentation`` draws, applied to the clips of a batch at once.

A GPU takes in more clips than the processors beside it can augment. The operations are PIL's rules as tensor
operations, within a grey level (``image_operations`` states them); clips that drew the same go through it together.
What a clip draws is the same as on the CPU. It is applied to the square that the model sees, not to the whole frame.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from einops import rearrange
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from hbi_models.transfer import sent
from pipelines.video.augmentation import OPERATIONS, Operation
from pipelines.video.image_operations import FILL

Clips = UInt8[Tensor, "clips frames 3 height width"]
Arguments = Float[Tensor, "clips"]

NAMES = tuple(OPERATIONS)
NONE = -1
"""In the place of an operation: a clip that drew fewer."""

_OVER_CLIP = "clips -> clips 1 1 1 1"
_GREY = (19595, 38470, 7471)
"""PIL's weights of red, green and blue in 65,536ths."""


def as_table(drawn: Sequence[Sequence[Operation]], most: int) -> tuple[Int[Tensor, "clips most"], Tensor]:
    """What each clip drew: the numbers of the operations among ``NAMES``, and their arguments, padded to ``most``."""
    numbers = torch.full((len(drawn), most), NONE)
    arguments = torch.zeros(len(drawn), most, dtype=torch.float64)
    for clip, operations in enumerate(drawn):
        for place, operation in enumerate(operations):
            numbers[clip, place], arguments[clip, place] = NAMES.index(operation.name), operation.argument
    return numbers, arguments


def augment_clips(clips: Clips, operations: Int[Tensor, "clips most"], arguments: Float[Tensor, "clips most"]) -> Clips:
    """``clips`` after the operations of ``as_table``, which lie on the CPU; the input is not modified."""
    augmented = clips.clone()
    # Place by place, for the operations of a clip follow each other in the order in which they were drawn.
    for place in range(operations.shape[1]):
        for number in sorted(set(operations[:, place].tolist()) - {NONE}):
            members = (operations[:, place] == number).nonzero()[:, 0]
            where = sent(members, clips.device)
            changed = apply_to_clips(augmented.index_select(0, where), NAMES[number], arguments[members, place])
            augmented.index_copy_(0, where, changed)
    return augmented


def apply_to_clips(clips: Clips, name: str, arguments: Arguments) -> Clips:
    """``clips`` after one operation, each with its own argument; those lie on the CPU.

    Raises:
        ValueError: there is no such operation.
    """
    if name not in _APPLY:
        raise ValueError(f"there is no operation {name!r}; there are {', '.join(_APPLY)}")
    return _APPLY[name](clips, arguments)


def _over_clips(arguments: Tensor, clips: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    return rearrange(sent(arguments.to(dtype), clips.device), _OVER_CLIP)


def _to_levels(values: Tensor) -> Clips:
    """PIL drops the fraction."""
    return values.clamp_(0, 255).to(torch.uint8)


def _blend(start: Tensor, clips: Clips, factors: Arguments) -> Clips:
    """From ``start`` (factor 0) through the picture (factor 1) and beyond."""
    return _to_levels(start + _over_clips(factors, clips) * (clips - start))


def _grey(clips: Clips) -> Float[Tensor, "clips frames 1 height width"]:
    red, green, blue = (channel * weight for channel, weight in zip(clips.int().unbind(2), _GREY, strict=True))
    return ((red + green + blue + (1 << 15)) >> 16).float()[:, :, None]


def _invert(clips: Clips, _: Arguments) -> Clips:
    return 255 - clips


def _posterize(clips: Clips, bits: Arguments) -> Clips:
    return clips & _over_clips(256 - 2 ** (8 - bits), clips, torch.uint8)


def _solarize(clips: Clips, thresholds: Arguments) -> Clips:
    return torch.where(clips >= _over_clips(thresholds, clips), 255 - clips, clips)


def _solarize_add(clips: Clips, amounts: Arguments) -> Clips:
    # No more than 127 + 110 with the amounts of the policy, so bytes do not overflow.
    return torch.where(clips < 128, clips + _over_clips(amounts, clips, torch.uint8), clips)


def _brightness(clips: Clips, factors: Arguments) -> Clips:
    return _to_levels(_over_clips(factors, clips) * clips)


def _contrast(clips: Clips, factors: Arguments) -> Clips:
    # PIL rounds the mean to a whole level.
    mean = (_grey(clips).mean(dim=(2, 3, 4), keepdim=True) + 0.5).floor_()
    return _blend(mean, clips, factors)


def _color(clips: Clips, factors: Arguments) -> Clips:
    return _blend(_grey(clips), clips, factors)


def _sharpness(clips: Clips, factors: Arguments) -> Clips:
    pixels = clips.float()
    inner = pixels[..., 1:-1, 1:-1]
    rows = pixels[..., :-2, :] + pixels[..., 1:-1, :] + pixels[..., 2:, :]
    smooth = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    smooth = smooth.add_(inner, alpha=4).div_(13).add_(0.5).floor_()
    sharpened = pixels.clone()
    sharpened[..., 1:-1, 1:-1] = smooth + _over_clips(factors, clips) * (inner - smooth)
    return _to_levels(sharpened)


def _autocontrast(clips: Clips, _: Arguments) -> Clips:
    lowest = clips.amin(dim=(3, 4), keepdim=True).float()
    spread = clips.amax(dim=(3, 4), keepdim=True).float() - lowest
    # The small addition keeps rounding from dropping a whole level.
    stretched = (clips - lowest) * (255 / spread.clamp(min=1)) + 1e-3
    return torch.where(spread > 0, _to_levels(stretched), clips)


def _equalize(clips: Clips, _: Arguments) -> Clips:
    planes = rearrange(clips, "clips frames rgb height width -> (clips frames rgb) (height width)").long()
    counts = torch.zeros(len(planes), 256, dtype=torch.int64, device=clips.device)
    # torch.bincount would make the host wait for the device, to know how long its result is.
    counts.scatter_add_(1, planes, torch.ones_like(planes))
    brightest = planes.amax(dim=1, keepdim=True)
    # As ImageOps.equalize: pixels of the brightest level do not count in the step, and a step of 0 changes nothing.
    step = (planes.shape[1] - counts.gather(1, brightest)) // 255
    below = counts.cumsum(dim=1) - counts
    table = ((below + step // 2) // step.clamp(min=1)).clamp_(max=255)
    table = torch.where(step > 0, table, torch.arange(256, device=clips.device))
    return table.gather(1, planes).to(torch.uint8).reshape(clips.shape)


def _rotate(clips: Clips, degrees: Arguments) -> Clips:
    height, width = clips.shape[-2:]
    x, y = width / 2, height / 2
    matrices = []
    for angle in (-degrees * math.pi / 180).tolist():
        cosine, sine = math.cos(angle), math.sin(angle)
        matrices.append([cosine, sine, x - cosine * x - sine * y, -sine, cosine, y + sine * x - cosine * y])
    return _transform(clips, matrices)


def _shear_x(clips: Clips, factors: Arguments) -> Clips:
    return _transform(clips, [[1, factor, 0, 0, 1, 0] for factor in factors.tolist()])


def _shear_y(clips: Clips, factors: Arguments) -> Clips:
    return _transform(clips, [[1, 0, 0, factor, 1, 0] for factor in factors.tolist()])


def _translate_x(clips: Clips, fractions: Arguments) -> Clips:
    return _transform(clips, [[1, 0, fraction * clips.shape[-1], 0, 1, 0] for fraction in fractions.tolist()])


def _translate_y(clips: Clips, fractions: Arguments) -> Clips:
    return _transform(clips, [[1, 0, 0, 0, 1, fraction * clips.shape[-2]] for fraction in fractions.tolist()])


def _transform(clips: Clips, matrices: Sequence[Sequence[float]]) -> Clips:
    """Each pixel (x, y) of a clip taken from (a x + b y + c, d x + e y + f) by bicubic interpolation; grey outside."""
    height, width = clips.shape[-2:]
    # Positions in double precision, as PIL has them.
    matrix = sent(torch.tensor(matrices, dtype=torch.float64), clips.device)
    a, b, c, d, e, f = rearrange(matrix, "clips six -> six clips 1 1")
    x = torch.arange(width, dtype=torch.float64, device=clips.device) + 0.5
    y = rearrange(torch.arange(height, dtype=torch.float64, device=clips.device) + 0.5, "height -> height 1")
    source_x, source_y = a * x + b * y + c, d * x + e * y + f
    inside = (source_x >= 0) & (source_x < width) & (source_y >= 0) & (source_y < height)
    (left, weights_x), (top, weights_y) = _cubic(source_x), _cubic(source_y)
    planes = rearrange(clips, "clips frames rgb height width -> clips (frames rgb) (height width)").float()
    moved = torch.zeros_like(planes)
    # One of the sixteen at a time: all at once would take sixteen times the memory of the clips in float32.
    for row, weight_y in enumerate(weights_y):
        first = (top + (row - 1)).clamp(0, height - 1) * width
        for column, weight_x in enumerate(weights_x):
            places = first + (left + (column - 1)).clamp(0, width - 1)
            weights = rearrange(weight_y * weight_x, "clips height width -> clips 1 (height width)")
            places = rearrange(places, "clips height width -> clips 1 (height width)").expand_as(planes)
            moved.addcmul_(planes.gather(2, places), weights)
    # The small addition keeps a rounding error from dropping a whole level.
    inside = rearrange(inside, "clips height width -> clips 1 (height width)")
    return torch.where(inside, _to_levels(moved.add_(1e-3)), FILL).to(torch.uint8).reshape(clips.shape)


def _cubic(
    position: Float[Tensor, "clips height width"],
) -> tuple[Int[Tensor, "clips height width"], list[Float[Tensor, "clips height width"]]]:
    """The pixel before a position, and PIL's cubic weights (Keys, a = -1) of the one before that and the next three."""
    left = (position - 0.5).floor()
    t = (position - 0.5 - left).float()
    weights = [-t + 2 * t**2 - t**3, 1 - 2 * t**2 + t**3, t + t**2 - t**3, -(t**2) + t**3]
    return left.long(), weights


_APPLY: dict[str, Callable[[Clips, Arguments], Clips]] = {
    "AutoContrast": _autocontrast,
    "Equalize": _equalize,
    "Invert": _invert,
    "Rotate": _rotate,
    "PosterizeIncreasing": _posterize,
    "SolarizeIncreasing": _solarize,
    "SolarizeAdd": _solarize_add,
    "ColorIncreasing": _color,
    "ContrastIncreasing": _contrast,
    "BrightnessIncreasing": _brightness,
    "SharpnessIncreasing": _sharpness,
    "ShearX": _shear_x,
    "ShearY": _shear_y,
    "TranslateXRel": _translate_x,
    "TranslateYRel": _translate_y,
}
