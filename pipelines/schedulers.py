"""Diffusers' samplers by name, each with the options that few steps want."""

from typing import Any

from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)

from denoiser.checks import did_you_mean

# Thresholding at 1 clips the predicted clean image to the range of the data, as DDPM and DDIM do by default.
_CLIPPED = {"thresholding": True, "sample_max_value": 1.0}

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
}


def check_scheduler_name(name: str) -> None:
    """Raise `ValueError`, with the nearest name, if there is no sampler called `name`."""
    if name not in SCHEDULERS:
        raise ValueError(f"unknown scheduler '{name}'{did_you_mean(name, SCHEDULERS)}; known: {', '.join(SCHEDULERS)}")


def check_steps(num_inference_steps: int, scheduler: SchedulerMixin) -> None:
    """Raise `ValueError` unless the scheduler can take this number of steps."""
    most = scheduler.config.num_train_timesteps
    if not 1 <= num_inference_steps <= most:
        raise ValueError(f"{num_inference_steps} inference steps were asked for; the scheduler takes 1 to {most}")


def make_scheduler(name: str, config: dict[str, Any]) -> SchedulerMixin:
    """Return the named sampler for a network trained with the scheduler that has this `config`.

    Timesteps are spaced "trailing": from the noisiest, where pure noise belongs (Lin et al. 2024, section 3.3).

    Raises:
        ValueError: If there is no sampler of that name.
    """
    check_scheduler_name(name)
    scheduler_class, options = SCHEDULERS[name]
    return scheduler_class.from_config(config, timestep_spacing="trailing", **options)
