"""What a network predicts for a batch of noisy images, classes and guidance included."""

import torch
from diffusers import ModelMixin, SchedulerMixin
from einops import rearrange
from torch import Tensor

from denoiser.embeddings import batched_timestep
from pipelines.classes import Classes
from pipelines.guidance import Guidance
from pipelines.noise_levels import is_preconditioned, noise_level, prediction_type


def clean_image(prediction_type: str, noisy: Tensor, prediction: Tensor, signal: Tensor) -> Tensor:
    """Return the clean image that a prediction of noise, velocity or image means, not clipped to the range of the data.

    Args:
        prediction_type: epsilon, v_prediction or sample.
        noisy: As the training saw them, `(batch, channels, height, width)`: image and noise, their powers sum to one.
        prediction: What the network says of them, shaped alike.
        signal: Power of the image in them, alphas_cumprod; it broadcasts.
    """
    return _clean_image(prediction_type, noisy, prediction, signal.sqrt(), (1 - signal).sqrt())


def predicted_image(scheduler: SchedulerMixin, noisy: Tensor, prediction: Tensor, timestep: Tensor) -> Tensor:
    """Return the clean image that a prediction at a scheduler's timestep means, not clipped to the range of the data.

    Args:
        scheduler: Any that tells its noise levels, as `noise_level` wants it.
        noisy: What the network saw, scaled as the scheduler scales it, `(batch, channels, height, width)`.
        prediction: What it said, shaped alike.
        timestep: A scalar, or `(batch,)`.

    Raises:
        ValueError: If the scheduler does not tell its noise levels.
    """
    image, noise = (factor.to(noisy.device) for factor in noise_level(scheduler, timestep))
    if is_preconditioned(scheduler):
        return scheduler.precondition_outputs(noisy / image, prediction, noise / image)
    return _clean_image(prediction_type(scheduler), noisy, prediction, image, noise)


def predicted_noise(scheduler: SchedulerMixin, noisy: Tensor, prediction: Tensor, timestep: Tensor) -> Tensor:
    """Return the noise that a prediction at a scheduler's training timestep means: a scalar, or `(batch,)`."""
    if scheduler.config.prediction_type == "epsilon":
        return prediction
    image, noise = (factor.to(noisy.device) for factor in noise_level(scheduler, timestep))
    return (noisy - image * _clean_image(prediction_type(scheduler), noisy, prediction, image, noise)) / noise


def _clean_image(prediction_type: str, noisy: Tensor, prediction: Tensor, image: Tensor, noise: Tensor) -> Tensor:
    match prediction_type:
        case "epsilon":
            return (noisy - noise * prediction) / image
        case "v_prediction":
            return image * noisy - noise * prediction
        case "flow_prediction":  # the noise minus the image
            return noisy - noise * prediction
        case _:
            return prediction


class Predictor:
    """Calls the network.

    Args:
        unet: Network with `UNet2DModel`'s call contract.
        scheduler: Of the noise levels that it was trained with.
        classes: Of the images of the batch; None for no class.
        guidance: How much the classes count.
        call_size: Images in a call of the network, the last one filled up with copies of the last image: kernels round
            differently by batch size. None for all in one call.

    Raises:
        ValueError: If guidance is asked for without classes, or of a network without a null label.
    """

    def __init__(
        self,
        unet: ModelMixin,
        scheduler: SchedulerMixin,
        classes: Classes | None = None,
        guidance: Guidance = Guidance(),  # noqa: B008 - it is frozen
        call_size: int | None = None,
    ) -> None:
        self.unet = unet
        self.dtype = unet.dtype  # once, for diffusers goes through all the weights to find it
        self.scheduler = scheduler
        self.classes = classes
        self.call_size = call_size
        self.guide(guidance)

    def guide(self, guidance: Guidance) -> None:
        """Change how much the classes count, from the next call on."""
        if guidance.scale != 1 and self.classes is None:
            raise ValueError(f"guidance_scale is {guidance.scale} without class labels; give labels, or leave it at 1")
        if guidance.scale != 1 and not hasattr(self.unet, "null_label"):
            raise ValueError(
                f"guidance_scale is {guidance.scale}, and {type(self.unet).__name__} has no null label; leave it at 1"
            )
        self.guidance = guidance

    def __call__(self, noisy: Tensor, timestep: Tensor) -> Tensor:
        """Return what the scheduler's prediction type says of noisy images, both `(batch, channels, height, width)`.

        Args:
            noisy: As the training saw them: image and noise with powers that sum to one.
            timestep: Training timestep: a scalar, or `(batch,)`, of which an interval of guidance goes by the first.
        """
        noisy, timesteps = noisy.to(self.dtype), batched_timestep(timestep, noisy)
        size = self.call_size or len(noisy)
        parts = []
        for start in range(0, len(noisy), size):
            rows = torch.arange(start, start + size, device=noisy.device).clamp(max=len(noisy) - 1)
            parts.append(self._call(noisy[rows], timesteps[rows], None if self.classes is None else self.classes[rows]))
        return torch.cat(parts)[: len(noisy)].float()

    def _call(self, noisy: Tensor, timesteps: Tensor, classes: Classes | None) -> Tensor:
        """Call the network once, with each image once for each class of a mixture and once more for guidance."""
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
        """Return whether guidance acts at a timestep, of which only an interval asks the noise level."""
        if self.guidance.scale == 1 or self.guidance.interval is None:
            return self.guidance.scale != 1
        image, noise = noise_level(self.scheduler, timestep)
        return self.guidance.interval[0] <= float(noise / image) <= self.guidance.interval[1]
