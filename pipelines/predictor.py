"""Batched network calls with class mixtures and classifier-free guidance."""

import math
from dataclasses import dataclass

import torch
from diffusers import ModelMixin, SchedulerMixin
from einops import rearrange
from torch import Tensor

from denoiser.blocks import batched_timestep
from denoiser.checks import check_between, check_kinds
from pipelines.classes import Classes
from pipelines.noise_levels import noise_level


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance settings, validated on construction.

    Attributes:
        scale: 1 + w of Ho & Salimans (2022), eq. 6: 1 is the conditional prediction, without guidance.
        rescale: Fraction, 0 to 1, by which the guided prediction takes on the standard deviation of the
            conditional one, image by image, against too much contrast (Lin et al. 2024, eq. 15, 16).
        interval: Lowest and highest noise level sigma = 1 / sqrt(SNR) with guidance; elsewhere the
            network is called without it (Kynkäänniemi et al. 2024, eq. 5). None is everywhere.
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
        """Raise `ValueError` if the other settings have no effect at this scale."""
        if self.scale == 1 and (self.rescale or self.interval):
            raise ValueError("guidance_rescale and guidance_interval do nothing without a guidance_scale other than 1")

    def check_network(self, unet: ModelMixin, labelled: bool = True) -> None:
        """Raise `ValueError` if the network cannot be guided, or the images are not `labelled`."""
        told = f"guidance_scale is {self.scale}"
        if self.scale == 1:
            return
        if not labelled:
            raise ValueError(f"{told} without class labels; give labels, or leave it at 1")
        if unet.config.get("num_class_embeds") is None:
            raise ValueError(f"{told} and the network has no classes; leave it at 1")
        if not hasattr(unet, "null_label"):
            raise ValueError(f"{told}, and {type(unet).__name__} has no null label; leave it at 1")

    def combine(self, conditional: Tensor, unconditional: Tensor) -> Tensor:
        """Return the guided prediction; all are `(batch, channels, height, width)`."""
        guided = unconditional + self.scale * (conditional - unconditional)
        if not self.rescale:
            return guided
        pixels = (1, 2, 3)
        rescaled = guided * (conditional.std(pixels, keepdim=True) / guided.std(pixels, keepdim=True))
        return self.rescale * rescaled + (1 - self.rescale) * guided


class Predictor:
    """A network with the classes and the guidance of a batch.

    With a `call_size` each network call has so many images, the last padded with its last image:
    kernels round differently by batch size.
    """

    def __init__(
        self,
        unet: ModelMixin,
        scheduler: SchedulerMixin,
        classes: Classes | None = None,
        guidance: Guidance = Guidance(),
        call_size: int | None = None,
    ) -> None:
        self.unet = unet
        self.dtype = unet.dtype  # once: diffusers goes through all the weights to find it
        self.scheduler = scheduler
        self.classes = classes
        self.call_size = call_size
        self.guide(guidance)

    def guide(self, guidance: Guidance) -> None:
        """Replace the guidance settings."""
        guidance.check_network(self.unet, labelled=self.classes is not None)
        self.guidance = guidance

    def __call__(self, noisy: Tensor, timestep: Tensor) -> Tensor:
        """Return the prediction for noisy images, both `(batch, channels, height, width)`.

        The powers of image and noise sum to one. The training timestep is a scalar or `(batch,)`, of which
        a guidance interval looks at the first.
        """
        noisy, timesteps = noisy.to(self.dtype), batched_timestep(timestep, noisy)
        size = self.call_size or len(noisy)
        parts = []
        for start in range(0, len(noisy), size):
            rows = torch.arange(start, start + size, device=noisy.device).clamp(max=len(noisy) - 1)
            part = self._call(noisy[rows], timesteps[rows], None if self.classes is None else self.classes[rows])
            parts.append(part.to(torch.float32, copy=True))  # the next call may overwrite it (`compile_for_sampling`)
        return torch.cat(parts)[: len(noisy)]

    def _call(self, noisy: Tensor, timesteps: Tensor, classes: Classes | None) -> Tensor:
        """Call the network once, each image once for each class of its mixture and once for guidance."""
        if classes is None:
            return self.unet(noisy, timesteps).sample
        columns = [*classes.indices.unbind(dim=1)]
        if guided := self._guided(timesteps[:1]):
            columns.append(torch.full_like(columns[0], self.unet.null_label))
        count = len(columns)
        predictions = self.unet(
            noisy.repeat(count, 1, 1, 1), timesteps.repeat(count), class_labels=torch.cat(columns)
        ).sample
        by_column = predictions.chunk(count)
        conditional = by_column[0]
        if classes.weights.shape[1] > 1:
            parts = zip(rearrange(classes.weights, "batch most -> most batch 1 1 1"), by_column, strict=False)
            conditional = torch.stack([weight * prediction for weight, prediction in parts]).sum(dim=0)
        return self.guidance.combine(conditional, by_column[-1]) if guided else conditional

    def _guided(self, timestep: Tensor) -> bool:
        """Return whether guidance is on at a timestep; only an interval needs its noise level."""
        if self.guidance.scale == 1 or self.guidance.interval is None:
            return self.guidance.scale != 1
        image, noise = noise_level(self.scheduler, timestep)
        return self.guidance.interval[0] <= float(noise / image) <= self.guidance.interval[1]
