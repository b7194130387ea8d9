"""Noise levels of diffusers' schedulers, and the clean image that a prediction implies."""

import math

import torch
from diffusers import IPNDMScheduler, SchedulerMixin
from einops import rearrange
from torch import Tensor


def noise_level(scheduler: SchedulerMixin, timestep: Tensor) -> tuple[Tensor, Tensor]:
    """Return the factors of the clean image and of the noise in a network's input at a timestep.

    The scheduler is one after `set_timesteps`, and after `scale_model_input` if it scales. Both factors
    are `(1, 1, 1, 1)`, or `(batch, 1, 1, 1)` for timesteps `(batch,)`, in float32.

    Raises:
        ValueError: If the scheduler does not tell its noise levels.
    """
    if is_preconditioned(scheduler):
        sigma = _current_sigma(scheduler, timestep)
        scale = scheduler.precondition_inputs(torch.ones_like(sigma), sigma)
        return scale, scale * sigma
    if is_flow(scheduler):
        noise = _column(timestep) / scheduler.config.num_train_timesteps
        return 1 - noise, noise
    signal = _signal(scheduler, timestep)
    return signal.sqrt(), (1 - signal).sqrt()


def prediction_type(scheduler: SchedulerMixin) -> str:
    """Return the prediction type; a few schedulers have it in their class, not in their config."""
    own = "v_prediction" if isinstance(scheduler, IPNDMScheduler) else "flow_prediction"
    return scheduler.config.get("prediction_type") or own


def has_training_timesteps(scheduler: SchedulerMixin) -> bool:
    """Return whether the timesteps are a DDPM's, with an entry in `alphas_cumprod` each."""
    continuous = scheduler.config.get("timestep_type") == "continuous"
    return hasattr(scheduler, "alphas_cumprod") and not continuous and not is_flow(scheduler)


def is_preconditioned(scheduler: SchedulerMixin) -> bool:
    """Return whether the scheduler preconditions the network as in Karras et al. (2022), eq. 7."""
    return hasattr(scheduler, "precondition_outputs")


def is_flow(scheduler: SchedulerMixin) -> bool:
    """Return whether the scheduler, after `set_timesteps`, is of flow matching (Lipman et al. 2023).

    Diffusers gives these schedulers no common base. Their timesteps are the fractions of noise times
    the number of timesteps.
    """
    if hasattr(scheduler, "alphas_cumprod"):
        return bool(scheduler.config.get("use_flow_sigmas"))
    if not hasattr(scheduler, "sigmas"):
        return False
    shares = scheduler.timesteps / scheduler.config.num_train_timesteps
    return torch.allclose(scheduler.sigmas[: len(shares)].to(shares), shares)


def _signal(scheduler: SchedulerMixin, timestep: Tensor) -> Tensor:
    """Return the power of the image, of 1 with that of the noise, `(1 or batch, 1, 1, 1)`."""
    if isinstance(scheduler, IPNDMScheduler):
        return torch.cos(_column(timestep) * math.pi / 2) ** 2
    if not hasattr(scheduler, "alphas_cumprod"):
        raise ValueError(
            f"{type(scheduler).__name__} does not tell its noise levels: leave out guidance_interval and image, and "
            'tell callbacks of the noisy images alone (callback_on_step_end_tensor_inputs=["sample"])'
        )
    if has_training_timesteps(scheduler):
        return _column(_at_timesteps(scheduler.alphas_cumprod.cpu(), timestep.flatten().cpu()).to(timestep.device))
    return 1 / (1 + _current_sigma(scheduler, timestep) ** 2)


def _at_timesteps(alphas_cumprod: Tensor, timesteps: Tensor) -> Tensor:
    """Return `alphas_cumprod` at timesteps; log SNR is interpolated between two of them."""
    lower = timesteps.long()
    signal = alphas_cumprod[lower]
    if not timesteps.is_floating_point():
        return signal
    upper = alphas_cumprod[timesteps.ceil().long()]
    log_snr = torch.lerp(signal.logit(), upper.logit(), (timesteps - lower).to(signal))
    return torch.where(timesteps == lower, signal, log_snr.sigmoid())


def _current_sigma(scheduler: SchedulerMixin, timestep: Tensor) -> Tensor:
    return _column(scheduler.sigmas[scheduler.step_index].to(timestep.device))


def _column(values: Tensor) -> Tensor:
    return rearrange(values.flatten().float(), "batch -> batch 1 1 1")


def clean_image(prediction_type: str, noisy: Tensor, prediction: Tensor, signal: Tensor) -> Tensor:
    """Return the clean image that a prediction of noise, velocity or image implies, not clipped.

    `signal` is the power of the image in the noisy images, `alphas_cumprod`; it broadcasts.
    """
    return _clean_image(prediction_type, noisy, prediction, signal.sqrt(), (1 - signal).sqrt())


def predicted_image(scheduler: SchedulerMixin, noisy: Tensor, prediction: Tensor, timestep: Tensor) -> Tensor:
    """Return the clean image that a prediction at a scheduler's timestep implies, not clipped."""
    image, noise = (factor.to(noisy.device) for factor in noise_level(scheduler, timestep))
    if is_preconditioned(scheduler):
        return scheduler.precondition_outputs(noisy / image, prediction, noise / image)
    return _clean_image(prediction_type(scheduler), noisy, prediction, image, noise)


def predicted_noise(scheduler: SchedulerMixin, noisy: Tensor, prediction: Tensor, timestep: Tensor) -> Tensor:
    """Return the noise that a prediction at a training timestep, a scalar or `(batch,)`, implies."""
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
