"""Where the values of a searched field lie on the axis of a picture."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pipelines.tune.space import Parameter, Range, Setting


@dataclass(frozen=True)
class Scale:
    """Where the values of a field lie on an axis: numbers by size or by logarithm, others side by side."""

    parameter: Parameter

    @property
    def name(self) -> str:
        """The last part of the field's name."""
        return self.parameter.field.rsplit(".", 1)[-1]

    def place(self, setting: Setting) -> float:
        """The place of a setting's value; NaN where the field is not in it."""
        if self.parameter.field not in setting:
            return math.nan
        domain, value = self.parameter.domain, setting[self.parameter.field]
        if not isinstance(domain, Range):
            return float(domain.values.index(value)) if value in domain.values else math.nan
        if domain.log:
            # A logarithmic axis has no zero: it is drawn a little below the range.
            return math.log10(value) if value > 0 else self.zero
        return float(value)

    @property
    def zero(self) -> float:
        """Where 0 is drawn on a logarithmic axis."""
        low, high = self.bounds
        return low - 0.12 * (high - low)

    @property
    def bounds(self) -> tuple[float, float]:
        """Places of the ends."""
        domain = self.parameter.domain
        if not isinstance(domain, Range):
            return 0.0, max(len(domain.values) - 1.0, 1.0)
        return (math.log10(domain.low), math.log10(domain.high)) if domain.log else (domain.low, domain.high)

    def height(self, setting: Setting) -> float:
        """The place on an axis from 0 to 1; below it where the field is not in the setting."""
        low, high = self.bounds
        place = self.place(setting)
        return -0.08 if math.isnan(place) else (place - low) / (high - low)

    def limits(self, *, with_zero: bool) -> tuple[float, float]:
        """Ends of an axis that shows all values."""
        low, high = self.bounds
        margin = 0.06 * (high - low)
        return (self.zero if with_zero else low) - margin, high + margin

    def ticks(self, *, with_zero: bool) -> tuple[list[float], list[str]]:
        """Places and labels of round values."""
        domain = self.parameter.domain
        if not isinstance(domain, Range):
            return [float(place) for place in range(len(domain.values))], [str(value) for value in domain.values]
        if not domain.log:
            values = [float(value) for value in np.linspace(domain.low, domain.high, 5)]
            return values, [f"{value:.3g}" for value in values]
        decades = range(math.floor(math.log10(domain.low)), math.ceil(math.log10(domain.high)) + 1)
        round_values = [digit * 10.0**decade for decade in decades for digit in (1, 2, 5)]
        inside = [value for value in round_values if domain.low * 0.999 <= value <= domain.high * 1.001]
        if len(inside) > 9:
            inside = [value for value in inside if math.log10(value) % 1 < 1e-9]
        zero = ([self.zero], ["0"]) if with_zero else ([], [])
        return [*zero[0], *map(math.log10, inside)], [*zero[1], *(f"{value:g}" for value in inside)]
