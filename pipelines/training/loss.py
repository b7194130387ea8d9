"""The denoising loss, its weights, and the checks of its noise schedule."""

import inspect
import math
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from denoiser.checks import check_positive

MIN_SNR_GAMMA = 5.0
_PREDICTIONS = ("epsilon", "v_prediction", "sample")
_VARIANCES = ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned", "learned_range")


def prediction_target(noise_schedule: DDPMScheduler, images: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """Return the target of the prediction, shaped as `images`.

    It is the noise (Ho et al. 2020, eq. 14), the velocity (Salimans & Ho 2022, appendix D) or the
    clean image.
    """
    match noise_schedule.config.prediction_type:
        case "epsilon":
            return noise
        case "v_prediction":
            return noise_schedule.get_velocity(images, noise, timesteps)
        case "sample":
            return images
        case other:
            raise ValueError(f"prediction_type is '{other}'; it is one of epsilon, v_prediction, sample")


def check_noise_schedule(noise_schedule: DDPMScheduler) -> None:
    """Raise `ValueError` if a noise schedule cannot be trained with, or one of its options has no effect.

    Each timestep has both signal and noise. Only the last may be pure noise, if the network does not
    predict the noise (Lin et al. 2024, section 3.1).
    """
    config, betas = noise_schedule.config, noise_schedule.betas
    count = config.num_train_timesteps
    check_positive(num_train_timesteps=count)
    if len(betas) != count:
        raise ValueError(f"the noise schedule has num_train_timesteps {count} and {len(betas)} betas; make them agree")
    if not ((betas >= 0) & (betas <= 1)).all():  # so for nan
        raise ValueError(
            f"the noise schedule's betas go from {betas.min():.4g} to {betas.max():.4g}; each is a share of variance, "
            "0 to 1"
        )
    signal = noise_schedule.alphas_cumprod
    with_signal = signal if config.prediction_type == "epsilon" else signal[:-1]
    if not (signal < 1).all() or not (with_signal > 0).all():
        raise ValueError(
            f"the share of noise goes from {1 - signal[0]:.4g} to {1 - signal[-1]:.4g}; it must be above 0, below 1: "
            "raise the lowest beta, lower the highest, or predict the velocity where the schedule ends in noise alone"
        )
    _check_options(config)
    for name, reason in _without_effect(config).items():
        if config[name] != inspect.signature(DDPMScheduler).parameters[name].default:
            raise ValueError(f"{name} is {config[name]}, and changes nothing: {reason}; leave it out")


def _check_options(config: Mapping[str, Any]) -> None:
    """Raise `ValueError` for the first option of a noise schedule with an invalid value."""
    for name, known in (("variance_type", _VARIANCES), ("prediction_type", _PREDICTIONS)):
        if config[name] not in known:
            raise ValueError(f"{name} is '{config[name]}'; it is one of {', '.join(known)}")
    if not 0 < config["clip_sample_range"] < math.inf:
        raise ValueError(f"clip_sample_range is {config['clip_sample_range']}; it must be above 0")
    if config["thresholding"] and not 0 < config["dynamic_thresholding_ratio"] <= 1:
        raise ValueError(
            f"dynamic_thresholding_ratio is {config['dynamic_thresholding_ratio']}; it is above 0, up to 1"
        )
    if config["thresholding"] and not 1 <= config["sample_max_value"] < math.inf:
        raise ValueError(f"sample_max_value is {config['sample_max_value']}; it must be at least 1")
    if config["variance_type"] in ("learned", "learned_range"):
        raise ValueError(
            f"variance_type is '{config['variance_type']}', and these networks predict no variance; use fixed_small"
        )
    if config["variance_type"] == "fixed_large_log":
        raise ValueError("variance_type is 'fixed_large_log', with which diffusers samples nan; use fixed_large")


def _without_effect(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the options of a noise schedule that have no effect beside the others, with the reason."""
    idle = dict.fromkeys(
        ("timestep_spacing", "steps_offset"), "a training uses every timestep, a sampler spaces its own"
    )
    if config["trained_betas"] is not None:
        idle |= dict.fromkeys(("beta_schedule", "beta_start", "beta_end"), "trained_betas are given")
    elif config["beta_schedule"] == "squaredcos_cap_v2":
        idle |= dict.fromkeys(("beta_start", "beta_end"), "squaredcos_cap_v2 has no ends to choose")
    if config["thresholding"] and config["sample_max_value"] == 1:
        idle["thresholding"] = "at sample_max_value 1 it clips there, as clip_sample does by default"
    if config["thresholding"]:
        idle["clip_sample_range"] = "thresholding takes the place of clipping"
    else:
        idle |= dict.fromkeys(("dynamic_thresholding_ratio", "sample_max_value"), "thresholding is off")
        if not config["clip_sample"]:
            idle["clip_sample_range"] = "clip_sample is off"
    return idle


def loss_weights(noise_schedule: DDPMScheduler, weighting: str) -> Tensor:
    """Return the weight of each timestep's loss, `(num_train_timesteps,)` in float32.

    "prediction" weights all timesteps alike. "min_snr" is min(SNR, gamma) for the error of the image
    (Hang et al. 2023, eq. 8), divided by SNR for that of the noise and by SNR + 1 for the velocity's.

    Raises:
        ValueError: If the weighting or the prediction type is unknown.
    """
    if weighting == "prediction":
        return torch.ones(len(noise_schedule.alphas_cumprod))
    signal = noise_schedule.alphas_cumprod.cpu().double()  # not every device has float64
    snr = signal / (1 - signal)
    divisors = {"epsilon": snr, "v_prediction": snr + 1, "sample": torch.ones_like(snr)}
    prediction_type = noise_schedule.config.prediction_type
    for name, known in ((weighting, ("prediction", "min_snr")), (prediction_type, divisors)):
        if name not in known:
            raise ValueError(f"'{name}' is none of {', '.join(known)}")
    return (snr.clamp(max=MIN_SNR_GAMMA) / divisors[prediction_type]).float()


def denoising_loss(
    model: nn.Module,
    noise_schedule: DDPMScheduler,
    images: Tensor,
    noise: Tensor,
    timesteps: Tensor,
    class_labels: Tensor | None,
) -> Tensor:
    """Return the mean squared error of each image, `(batch,)` in float32 (Ho et al. 2020, eq. 14).

    Args:
        model: Network with `UNet2DModel`'s call contract.
        noise_schedule: Noise level of each timestep, and prediction type.
        images: `(batch, channels, height, width)` in [-1, 1].
        noise: Standard normal, shaped as `images`.
        timesteps: `(batch,)`.
        class_labels: `(batch,)`, or None for an unconditional network.
    """
    noisy = noise_schedule.add_noise(images, noise, timesteps)
    labels = {} if class_labels is None else {"class_labels": class_labels}
    prediction = model(noisy, timesteps, **labels).sample
    target = prediction_target(noise_schedule, images, noise, timesteps)
    return squared_errors(prediction, target)


def squared_errors(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared error of each image, `(batch,)` in float32."""
    return mse_loss(prediction.float(), target.float(), reduction="none").mean(dim=(1, 2, 3))
