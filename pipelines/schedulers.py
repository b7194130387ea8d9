"""Diffusers' samplers by name, each with the options that few steps want."""

import inspect
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)

from denoiser.checks import did_you_mean

# Thresholding at 1 clips the predicted clean image to the range of the data, as DDPM and DDIM do by default.
_CLIPPED = {"thresholding": True, "sample_max_value": 1.0}

# These step in x / a, where x = a x_0 + s e, and do not clip: an error of the predicted noise counts sigma = s / a
# times. The cosine schedule ends at a sigma of 20,000, where the least error drowns the image; 80 is noise enough for
# data in [-1, 1] (Karras et al. 2022, table 1), and the timesteps beyond share that level.
_IN_SIGMA_SPACE = (EulerDiscreteScheduler, EulerAncestralDiscreteScheduler, HeunDiscreteScheduler)
_LARGEST_SIGMA = 80.0

# What a network was trained with: all that a sampler takes over from the config of another scheduler.
_TRAINED_WITH = (
    *("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr"),
    "prediction_type",
)

SCHEDULERS: dict[str, tuple[type[SchedulerMixin], dict[str, Any]]] = {
    "ddpm": (DDPMScheduler, {}),
    "ddim": (DDIMScheduler, {}),
    "dpmsolver++": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++", **_CLIPPED}),
    "sde-dpmsolver++": (DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++", **_CLIPPED}),
    "unipc": (UniPCMultistepScheduler, _CLIPPED),
    "deis": (DEISMultistepScheduler, _CLIPPED),
    "euler": (EulerDiscreteScheduler, {}),
    "euler-ancestral": (EulerAncestralDiscreteScheduler, {}),
    "heun": (HeunDiscreteScheduler, {}),
    "lcm": (LCMScheduler, {"clip_sample": True}),  # consistency sampling, for what scripts/distill.py makes
}


def check_scheduler_name(name: str) -> None:
    """Raise `ValueError`, with the nearest name, if there is no sampler called `name`."""
    if name not in SCHEDULERS:
        raise ValueError(f"unknown scheduler '{name}'{did_you_mean(name, SCHEDULERS)}; known: {', '.join(SCHEDULERS)}")


def check_steps(num_inference_steps: int, scheduler: SchedulerMixin) -> None:
    """Raise `ValueError` unless the scheduler can take this number of steps."""
    most = distilled_calls(scheduler.config) or scheduler.config.num_train_timesteps
    if not 1 <= num_inference_steps <= most:
        raise ValueError(f"{num_inference_steps} inference steps were asked for; the scheduler takes 1 to {most}")


def distilled_calls(config: dict[str, Any]) -> int | None:
    """Return in how many calls a network was distilled to draw whose scheduler has this config; None if it was not."""
    calls = config.get("original_inference_steps", config["num_train_timesteps"])
    return calls if calls < config["num_train_timesteps"] else None


def accepted_by_step(scheduler: SchedulerMixin, **options: Any) -> dict[str, Any]:
    """Return those of the options that the scheduler's `step` knows."""
    known = inspect.signature(scheduler.step).parameters
    return {name: value for name, value in options.items() if name in known}


def adds_noise(scheduler: SchedulerMixin) -> bool:
    """Return whether the scheduler adds noise in each step, so that an image is not a function of its first noise."""
    stochastic = isinstance(scheduler, DDPMScheduler | EulerAncestralDiscreteScheduler | LCMScheduler)
    return stochastic or scheduler.config.get("algorithm_type", "").startswith("sde")


def make_scheduler(name: str, config: dict[str, Any]) -> SchedulerMixin:
    """Return the named sampler for a network trained with the scheduler that has this `config`.

    Timesteps are spaced "trailing": from the noisiest, where pure noise belongs (Lin et al. 2024, section 3.3).

    Raises:
        ValueError: If there is no sampler of that name, or it cannot work with the noise schedule or prediction type,
            or with a distilled network.
    """
    check_scheduler_name(name)
    scheduler_class, options = SCHEDULERS[name]
    calls = distilled_calls(config)
    if scheduler_class is LCMScheduler:  # which picks its timesteps among so many, from the noisiest
        options = {**options, "original_inference_steps": calls or config["num_train_timesteps"]}
    elif calls:
        raise ValueError(f"scheduler '{name}' cannot draw with a network distilled to draw in {calls} calls; use lcm")
    try:
        scheduler = build_scheduler(scheduler_class, config, timestep_spacing="trailing", **options)
        _check_prediction_type(scheduler_class.from_config(scheduler.config))
    except (ValueError, RuntimeError, TypeError) as error:
        raise ValueError(f"scheduler '{name}' cannot take this noise schedule or network: {error}") from error
    if scheduler_class in _IN_SIGMA_SPACE:
        scheduler.alphas_cumprod = scheduler.alphas_cumprod.clamp(min=1 / (1 + _LARGEST_SIGMA**2))
    return scheduler


def build_scheduler(scheduler_class: type[SchedulerMixin], config: dict[str, Any], **options: Any) -> SchedulerMixin:
    """Return a scheduler for a network trained with the one that has this `config`."""
    known = inspect.signature(scheduler_class).parameters
    if config.get("rescale_betas_zero_snr") and "rescale_betas_zero_snr" not in known:
        raise ValueError("it knows no rescale_betas_zero_snr")
    return scheduler_class(**{key: config[key] for key in _TRAINED_WITH if key in config and key in known}, **options)


def _check_prediction_type(scheduler: SchedulerMixin) -> None:
    """Take one step, which is where diffusers' schedulers refuse a prediction type (with a `NotImplementedError`)."""
    scheduler.set_timesteps(1)
    timestep, nothing = scheduler.timesteps[0], torch.zeros(1, 1, 1, 1)
    noisy = scheduler.scale_model_input(nothing, timestep)
    scheduler.step(nothing, timestep, noisy, **accepted_by_step(scheduler, generator=torch.Generator()))
