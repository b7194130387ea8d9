"""Classifier-free guidance: how the predictions with and without a class make one."""

import math
from dataclasses import dataclass

from torch import Tensor

from denoiser.checks import check_between, check_kinds


@dataclass(frozen=True)
class Guidance:
    """Raises `ValueError` for what cannot be.

    Attributes:
        scale: 1 + w of Ho & Salimans (2022), eq. 6: 1 is the conditional prediction alone, above 1 goes past it.
        rescale: Share, 0 to 1, in which the guided prediction is given the standard deviation of the conditional one,
            image by image, against the harsh contrast of high scales (Lin et al. 2024, eq. 15 and 16).
        interval: Lowest and highest noise level sigma = 1 / sqrt(SNR) at which guidance acts; at others the conditional
            prediction is used alone, in a call of half the size (Kynkäänniemi et al. 2024, eq. 5). None is everywhere.
    """

    scale: float = 1.0
    rescale: float = 0.0
    interval: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        check_kinds(self)
        if not math.isfinite(self.scale):
            raise ValueError(f"guidance_scale is {self.scale}; it must be a finite number")
        check_between(0, 1, guidance_rescale=self.rescale)
        if self.interval is not None and not 0 <= self.interval[0] <= self.interval[1]:
            raise ValueError(f"guidance_interval is {self.interval}; give the lower noise level first, both 0 or more")

    def check_effect(self) -> None:
        """Raise `ValueError` if there is something to change in the guidance, and no guidance."""
        if self.scale == 1 and (self.rescale or self.interval):
            raise ValueError("guidance_rescale and guidance_interval do nothing without a guidance_scale other than 1")

    def combine(self, conditional: Tensor, unconditional: Tensor) -> Tensor:
        """Return the guided prediction, `(batch, channels, height, width)` as both are."""
        guided = unconditional + self.scale * (conditional - unconditional)
        if not self.rescale:
            return guided
        pixels = (1, 2, 3)
        rescaled = guided * (conditional.std(pixels, keepdim=True) / guided.std(pixels, keepdim=True))
        return self.rescale * rescaled + (1 - self.rescale) * guided
