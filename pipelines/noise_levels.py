"""Noise levels of diffusers' schedulers: how much of the clean image and how much noise a network sees."""

import math

import torch
from diffusers import IPNDMScheduler, SchedulerMixin
from einops import rearrange
from torch import Tensor


def noise_level(scheduler: SchedulerMixin, timestep: Tensor) -> tuple[Tensor, Tensor]:
    """Return the factors of the clean image and of the standard normal noise in what a network sees at a timestep.

    Args:
        scheduler: After its `set_timesteps`, and after `scale_model_input` if it scales.
        timestep: One of its timesteps, or `(batch,)` of them.

    Returns:
        Two of `(1 or batch, 1, 1, 1)` in float32, on the device of the timestep.

    Raises:
        ValueError: If the scheduler does not tell.
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
    """Return what the scheduler takes the network to predict; a few have it in their class, not in their config."""
    own = "v_prediction" if isinstance(scheduler, IPNDMScheduler) else "flow_prediction"
    return scheduler.config.get("prediction_type") or own


def has_training_timesteps(scheduler: SchedulerMixin) -> bool:
    """Return whether the scheduler's timesteps are those of a DDPM, each with its entry in `alphas_cumprod`."""
    continuous = scheduler.config.get("timestep_type") == "continuous"
    return hasattr(scheduler, "alphas_cumprod") and not continuous and not is_flow(scheduler)


def is_preconditioned(scheduler: SchedulerMixin) -> bool:
    """Return whether the scheduler takes the network to be wrapped as in Karras et al. (2022), eq. 7."""
    return hasattr(scheduler, "precondition_outputs")


def is_flow(scheduler: SchedulerMixin) -> bool:
    """Return whether the scheduler mixes image and noise linearly (Lipman et al. 2023); call it after `set_timesteps`.

    Diffusers gives these schedulers no common base. A flow's timesteps are its shares of noise times their number.
    """
    if hasattr(scheduler, "alphas_cumprod"):
        return bool(scheduler.config.get("use_flow_sigmas"))
    if not hasattr(scheduler, "sigmas"):
        return False
    shares = scheduler.timesteps / scheduler.config.num_train_timesteps
    return torch.allclose(scheduler.sigmas[: len(shares)].to(shares), shares)


def _signal(scheduler: SchedulerMixin, timestep: Tensor) -> Tensor:
    """Return the power of the image where the powers of image and noise sum to one, `(1 or batch, 1, 1, 1)`."""
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
    """Return the entries of `alphas_cumprod` at timesteps; between two of them, log SNR is interpolated."""
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
