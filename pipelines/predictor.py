"""Batched network calls with class mixtures, classifier-free guidance and autoguidance."""

import math
from dataclasses import dataclass, replace

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
    """Settings of classifier-free guidance and autoguidance, validated on construction.

    Attributes:
        scale: 1 + w of Ho & Salimans (2022), eq. 6: 1 is the conditional prediction, without guidance.
        rescale: Fraction, 0 to 1, by which the guided prediction takes on the standard deviation of the
            conditional one, image by image, against too much contrast (Lin et al. 2024, eq. 15, 16).
        interval: Lowest and highest noise level sigma = 1 / sqrt(SNR) with guidance; elsewhere the
            network is called without it (Kynkäänniemi et al. 2024, eq. 5). None is everywhere.
        auto_scale: w of Karras et al. (2024a), eq. 3, the scale of autoguidance, by a weaker network: 1 is
            none, and None the pipeline's own scale. Both guidances add their differences to the conditional
            prediction.
        auto_interval: Lowest and highest noise level sigma with autoguidance. None is everywhere.
    """

    scale: float = 1.0
    rescale: float = 0.0
    interval: tuple[float, float] | None = None
    auto_scale: float | None = None
    auto_interval: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        check_kinds(self)
        for name, scale in (("guidance_scale", self.scale), ("autoguidance_scale", self.auto_scale)):
            if scale is not None and not math.isfinite(scale):
                raise ValueError(f"{name} is {scale}; it must be a finite number")
        check_between(0, 1, guidance_rescale=self.rescale)
        for name, interval in (("guidance_interval", self.interval), ("autoguidance_interval", self.auto_interval)):
            if interval is not None and not 0 <= interval[0] <= interval[1]:
                raise ValueError(f"{name} is {interval}; give the lower noise level first, both 0 or more")

    def check_effect(self) -> None:
        """Raise `ValueError` if the other settings have no effect at these scales."""
        if self.scale == 1 and (self.rescale or self.interval):
            raise ValueError("guidance_rescale and guidance_interval do nothing without a guidance_scale other than 1")
        if self.auto_scale == 1 and self.auto_interval:
            raise ValueError("autoguidance_interval does nothing without an autoguidance_scale other than 1")

    def with_own(self, auto_scale: float | None) -> "Guidance":
        """Return the settings with the pipeline's own scale of autoguidance where none was given.

        Args:
            auto_scale: The pipeline's own scale; None without a guide.

        Raises:
            ValueError: If another scale than 1 was given, and there is no guide.
        """
        if auto_scale is None and self.auto_scale not in (None, 1):
            raise ValueError(f"autoguidance_scale is {self.auto_scale}, and the pipeline has no guide; leave it out")
        own = 1.0 if auto_scale is None else auto_scale
        return replace(self, auto_scale=own if self.auto_scale is None else self.auto_scale)

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
    """A network, and the weaker one that guides it, if any, with the classes and the guidance of a batch.

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
        guide: ModelMixin | None = None,
    ) -> None:
        self.unet, self.guide = unet, guide
        # once: diffusers goes through all the weights to find it
        self.dtypes = [torch.float32 if network is None else network.dtype for network in (unet, guide)]
        self.scheduler = scheduler
        self.classes = classes
        self.call_size = call_size
        self.set_guidance(guidance)

    def set_guidance(self, guidance: Guidance) -> None:
        """Replace the guidance settings."""
        guidance.check_network(self.unet, labelled=self.classes is not None)
        self.guidance = guidance

    def __call__(self, noisy: Tensor, timestep: Tensor) -> Tensor:
        """Return the prediction for noisy images, both `(batch, channels, height, width)`.

        The powers of image and noise sum to one. The training timestep is a scalar or `(batch,)`, of which
        a guidance interval looks at the first.
        """
        timesteps = batched_timestep(timestep, noisy)
        size = self.call_size or len(noisy)
        parts = []
        for start in range(0, len(noisy), size):
            rows = torch.arange(start, start + size, device=noisy.device).clamp(max=len(noisy) - 1)
            part = self._call(noisy[rows], timesteps[rows], None if self.classes is None else self.classes[rows])
            parts.append(part.to(torch.float32, copy=True))  # the next call may overwrite it (`compile_for_sampling`)
        return torch.cat(parts)[: len(noisy)]

    def _call(self, noisy: Tensor, timesteps: Tensor, classes: Classes | None) -> Tensor:
        """Return the guided prediction of a part of the batch."""
        guidance = self.guidance
        own, weaker = (noisy.to(dtype) for dtype in self.dtypes)
        free = guidance.scale != 1 and self._within(guidance.interval, timesteps[:1])
        prediction, unconditional = self._predict(self.unet, own, timesteps, classes, free)
        guided = prediction if unconditional is None else guidance.combine(prediction, unconditional)
        if self.guide is None or guidance.auto_scale in (None, 1):
            return guided
        if not self._within(guidance.auto_interval, timesteps[:1]):
            return guided
        guided, prediction = (part.to(torch.float32, copy=True) for part in (guided, prediction))
        guiding, _ = self._predict(self.guide, weaker, timesteps, classes, free=False)
        return guided + (guidance.auto_scale - 1) * (prediction - guiding)

    def _predict(
        self, network: ModelMixin, noisy: Tensor, timesteps: Tensor, classes: Classes | None, free: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Call a network once, each image once for each class of its mixture, and once without class if `free`.

        Returns:
            The prediction with the classes, and the one without if `free`.
        """
        if classes is None:
            return network(noisy, timesteps).sample, None
        columns = [*classes.indices.unbind(dim=1)]
        if free:
            columns.append(torch.full_like(columns[0], network.null_label))
        count = len(columns)
        predictions = network(
            noisy.repeat(count, 1, 1, 1), timesteps.repeat(count), class_labels=torch.cat(columns)
        ).sample
        by_column = predictions.chunk(count)
        conditional = by_column[0]
        if classes.weights.shape[1] > 1:
            parts = zip(rearrange(classes.weights, "batch most -> most batch 1 1 1"), by_column, strict=False)
            conditional = torch.stack([weight * prediction for weight, prediction in parts]).sum(dim=0)
        return conditional, by_column[-1] if free else None

    def _within(self, interval: tuple[float, float] | None, timestep: Tensor) -> bool:
        """Return whether a timestep's noise level is in an interval; only an interval needs the noise level."""
        if interval is None:
            return True
        image, noise = noise_level(self.scheduler, timestep)
        return interval[0] <= float(noise / image) <= interval[1]
