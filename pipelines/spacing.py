"""Timesteps of a sampler's steps."""

import inspect
import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from diffusers import LCMScheduler, SchedulerMixin
from torch import Tensor

from pipelines.noise_levels import has_training_timesteps
from pipelines.stepping import STUDENT_CALLS

Spacing = Literal["timesteps", "log-snr"]
SPACINGS: tuple[Spacing, ...] = get_args(Spacing)

LARGEST_SIGMA = 80.0  # noise enough for data in [-1, 1] (Karras et al. 2022, table 1)
# Options of schedulers with which they choose their steps themselves, and refuse timesteps.
OWN_STEPS = (
    *("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas", "use_flow_sigmas"),
    STUDENT_CALLS,
)
LAST = 0.01  # of the timesteps: where the last step starts


def takes_timesteps(scheduler: SchedulerMixin) -> bool:
    """Return whether a scheduler takes the steps between given timesteps; a student's sampler has its own."""
    if isinstance(scheduler, LCMScheduler) or any(scheduler.config.get(option) for option in OWN_STEPS):
        return False
    return "timesteps" in inspect.signature(scheduler.set_timesteps).parameters and has_training_timesteps(scheduler)


def used_spacing(given: str | None, own: str | None, scheduler: SchedulerMixin) -> str:
    """Return the spacing of a call: the one that was given, or the pipeline's own if the scheduler takes it."""
    return given or (own if own and takes_timesteps(scheduler) else "timesteps")


def check_spacing(spacing: str | None, scheduler: SchedulerMixin | None = None) -> None:
    """Raise `ValueError` if there is no such spacing, or if the scheduler, when given, does not support it."""
    if spacing is not None and spacing not in SPACINGS:
        raise ValueError(f"spacing is '{spacing}'; it is one of {', '.join(SPACINGS)}")
    if spacing == "log-snr" and scheduler is not None and not takes_timesteps(scheduler):
        raise ValueError(
            f"spacing is 'log-snr', and {type(scheduler).__name__} chooses its timesteps itself; leave it out, or make "
            "one of the samplers ddpm, ddim, dpmsolver++ and sde-dpmsolver++"
        )


def spaced_timesteps(alphas_cumprod: Tensor, steps: int) -> list[int]:
    """Return timesteps whose noise levels are evenly spaced in log SNR (Lu et al. 2022, section 3.3).

    They go from a noise level sigma of 80, or the largest below it, to the timestep at a hundredth of
    the noise schedule.

    Args:
        alphas_cumprod: Signal powers of the noise schedule, falling.
        steps: Number of timesteps, up to the number of signal powers.

    Returns:
        Strictly falling timesteps.
    """
    count, log_snr = len(alphas_cumprod), alphas_cumprod.cpu().double().clamp(min=1e-12).logit()
    highest, lowest = float(log_snr[round(LAST * count)]), max(float(log_snr[-1]), -2 * math.log(LARGEST_SIGMA))
    levels = torch.linspace(lowest, highest, steps, dtype=torch.double)
    nearest = (log_snr - levels[:, None]).abs().argmin(dim=1).tolist()
    timesteps, above = [], count
    for step, timestep in enumerate(nearest):  # where the levels are denser than the timesteps, each is taken once
        above = min(max(timestep, steps - 1 - step), above - 1)
        timesteps.append(above)
    return timesteps


def check_timesteps(timesteps: Sequence[int], count: int) -> None:
    """Raise `ValueError` unless timesteps are whole numbers that fall strictly, from below `count`."""
    if not isinstance(timesteps, Sequence) or any(type(timestep) is not int for timestep in timesteps):
        raise ValueError(f"timesteps are {timesteps!r}; give a list of whole numbers")
    falling = all(later < earlier for earlier, later in zip([count, *timesteps], [*timesteps, -1], strict=True))
    if not timesteps or not falling:
        raise ValueError(f"timesteps are {timesteps}; give falling ones, from at most {count - 1} to at least 0")
