"""Diffusers' samplers by name, each with the options that few steps want."""

import inspect
import math
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
    PNDMScheduler,
    SchedulerMixin,
    UnCLIPScheduler,
    UniPCMultistepScheduler,
)
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from denoiser.checks import did_you_mean
from pipelines.clipping import REMEMBERED, clipping, of_the_training
from pipelines.predictor import predicted_image, predicted_noise

# Noise enough for data in [-1, 1] (Karras et al. 2022, table 1).
_LARGEST_SIGMA = 80.0

# What a network was trained with: all that a sampler takes over from the config of another scheduler.
_TRAINED_WITH = (
    *("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr"),
    "prediction_type",
)

# What networks for a DDPM's loop predict, and settings of a scheduler's config that stand for another process.
_PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
_PLAIN = {"use_flow_sigmas": False, "timestep_type": "discrete", "snr_shift_scale": 1.0}


class _BoundedNoise(SchedulerMixin):
    """For samplers that step in x / a, where x = a x_0 + s e, and do not clip.

    An error of the predicted noise counts sigma = s / a times. The cosine schedule ends at a sigma of 20,000, where the
    least error drowns the image; here the timesteps beyond `_LARGEST_SIGMA` share that level.
    """

    alphas_cumprod: Tensor

    def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
        """Choose the timesteps, as diffusers does."""
        self.alphas_cumprod = self.alphas_cumprod.clamp(min=1 / (1 + _LARGEST_SIGMA**2))
        super().set_timesteps(*args, **kwargs)


class BoundedEulerScheduler(_BoundedNoise, EulerDiscreteScheduler):
    """Diffusers' Euler, with bounded noise."""


class BoundedEulerAncestralScheduler(_BoundedNoise, EulerAncestralDiscreteScheduler):
    """Diffusers' ancestral Euler, with bounded noise."""


class BoundedHeunScheduler(_BoundedNoise, HeunDiscreteScheduler):
    """Diffusers' Heun, with bounded noise."""


class ExactDDIMScheduler(DDIMScheduler):
    """Diffusers' DDIM, whose steps lead to the next timestep too where they are not equally long.

    Diffusers' own are all as long as the shortest, so that each but the last stops at more noise than the next starts
    from.
    """

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> DDIMSchedulerOutput | tuple[Tensor, Tensor]:
        """Take one step (Song et al. 2021, eq. 12 and 16); arguments and result as diffusers' DDIM has them."""
        timestep = torch.as_tensor(timestep)
        later = self.timesteps[self.timesteps < int(timestep)]
        previous = int(later[0]) if len(later) else -1
        signal = self.alphas_cumprod[previous] if previous >= 0 else self.final_alpha_cumprod
        image = predicted_image(self, sample, model_output, timestep)
        if self.config.thresholding:
            image = self._threshold_sample(image)
        elif self.config.clip_sample:
            image = image.clamp(-self.config.clip_sample_range, self.config.clip_sample_range)
        noise = predicted_noise(self, sample, model_output, timestep)
        deviation = eta * self._get_variance(int(timestep), previous).sqrt()
        sample = signal.sqrt() * image + (1 - signal - deviation**2).sqrt() * noise
        if eta:
            sample += deviation * randn_tensor(sample.shape, generator=generator, device=sample.device)
        return DDIMSchedulerOutput(sample, image) if return_dict else (sample, image)


SCHEDULERS: dict[str, tuple[type[SchedulerMixin], dict[str, Any]]] = {
    "ddpm": (DDPMScheduler, {}),
    "ddim": (ExactDDIMScheduler, {}),
    "dpmsolver++": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++"}),
    "sde-dpmsolver++": (DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}),
    "unipc": (UniPCMultistepScheduler, {}),
    "deis": (DEISMultistepScheduler, {}),
    "euler": (BoundedEulerScheduler, {}),
    "euler-ancestral": (BoundedEulerAncestralScheduler, {}),
    "heun": (BoundedHeunScheduler, {}),
    "lcm": (LCMScheduler, {}),  # consistency sampling, for what scripts/distill.py makes
}

# By name, for not every version of diffusers has them all, nor every installation the packages that some need.
_STOCHASTIC = {
    *("CMStochasticIterativeScheduler", "CosineDPMSolverMultistepScheduler", "DDPMParallelScheduler", "DDPMScheduler"),
    *("DPMSolverSDEScheduler", "EulerAncestralDiscreteScheduler", "FlowMatchLCMScheduler", "LCMScheduler"),
    *("KDPM2AncestralDiscreteScheduler", "LTXEulerAncestralRFScheduler", "SASolverScheduler", "UnCLIPScheduler"),
}


def check_scheduler_name(name: str) -> None:
    """Raise `ValueError`, with the nearest name, if there is no sampler called `name`."""
    if name not in SCHEDULERS:
        raise ValueError(f"unknown scheduler '{name}'{did_you_mean(name, SCHEDULERS)}; known: {', '.join(SCHEDULERS)}")


def check_steps(num_inference_steps: int, scheduler: SchedulerMixin) -> None:
    """Raise `ValueError` unless the scheduler can take this number of steps."""
    fewest, most = _fewest(scheduler), distilled_calls(scheduler.config) or scheduler.config.num_train_timesteps
    if isinstance(num_inference_steps, bool) or not isinstance(num_inference_steps, int):
        raise ValueError(f"num_inference_steps is {num_inference_steps!r}; it must be a whole number")
    if not fewest <= num_inference_steps <= most:
        raise ValueError(
            f"{num_inference_steps} inference steps were asked for; the scheduler takes {fewest} to {most} "
            f"({type(scheduler).__name__})"
        )
    if not _spaced(num_inference_steps, scheduler):
        nearest = [
            next((str(steps) for steps in way if _spaced(steps, scheduler)), "")
            for way in (range(num_inference_steps, 0, -1), range(num_inference_steps, most + 1))
        ]
        raise ValueError(
            f"{num_inference_steps} inference steps were asked for, which diffusers rounds to one more, at timestep -1;"
            f" take {' or '.join(filter(None, nearest))}"
        )


def _fewest(scheduler: SchedulerMixin) -> int:
    """Return how many steps a scheduler needs at least, where diffusers' own errors do not say it."""
    if isinstance(scheduler, PNDMScheduler) and not scheduler.config.skip_prk_steps:
        return scheduler.pndm_order  # which begins with so many steps of Runge and Kutta's
    return 2 if isinstance(scheduler, UnCLIPScheduler) else 1


def _spaced(num_inference_steps: int, scheduler: SchedulerMixin) -> bool:
    """Return whether diffusers' trailing timesteps, `np.arange(count, 0, -count / steps)`, are as many as the steps."""
    if scheduler.config.get("timestep_spacing") != "trailing" or isinstance(scheduler, LCMScheduler):
        return True
    count = scheduler.config.num_train_timesteps
    return math.ceil(count / (count / num_inference_steps)) == num_inference_steps


def equal_stride(num_inference_steps: int, scheduler: SchedulerMixin) -> int:
    """Return how many training timesteps a step takes, for schedulers that need all steps to be alike.

    Raises:
        ValueError: If the steps are too few or too many, or do not divide the training timesteps.
    """
    check_steps(num_inference_steps, scheduler)
    count = scheduler.config.num_train_timesteps
    if count % num_inference_steps:
        fitting = [steps for steps in range(1, count + 1) if count % steps == 0]
        nearest = min(fitting, key=lambda steps: abs(steps - num_inference_steps))
        raise ValueError(
            f"steps is {num_inference_steps}; it must divide the {count} training timesteps, as {nearest} does"
        )
    return count // num_inference_steps


def distilled_calls(config: dict[str, Any]) -> int | None:
    """Return in how many calls a network was distilled to draw whose scheduler has this config; None if it was not."""
    calls = config.get("original_inference_steps")
    return calls if calls and calls < config["num_train_timesteps"] else None


def accepted_by_step(scheduler: SchedulerMixin, **options: Any) -> dict[str, Any]:
    """Return those of the options that the scheduler's `step` knows."""
    known = inspect.signature(scheduler.step).parameters
    return {name: value for name, value in options.items() if name in known}


def adds_noise(scheduler: SchedulerMixin) -> bool:
    """Return whether the scheduler adds noise in each step, so that an image is not a function of its first noise."""
    names = {each.__name__ for each in type(scheduler).__mro__}
    return bool(names & _STOCHASTIC) or scheduler.config.get("algorithm_type", "").startswith("sde")


def make_scheduler(name: str, config: dict[str, Any]) -> SchedulerMixin:
    """Return the named sampler for a network trained with the scheduler that has this `config`.

    It takes over the noise schedule, the clipping of the predicted image, and, for ddpm, the variance. Timesteps are
    spaced "trailing": from the noisiest, where pure noise belongs (Lin et al. 2024, section 3.3).

    Raises:
        ValueError: If there is no sampler of that name, or it cannot work with the noise schedule or prediction type,
            or with a distilled network.
    """
    check_scheduler_name(name)
    scheduler_class, options = SCHEDULERS[name]
    config, remembered = of_the_training(config)
    calls = distilled_calls(config)
    if scheduler_class is LCMScheduler:  # which picks its timesteps among so many, from the noisiest
        options = {**options, "original_inference_steps": calls or config["num_train_timesteps"]}
    elif calls:
        raise ValueError(f"scheduler '{name}' cannot draw with a network distilled to draw in {calls} calls; use lcm")
    if scheduler_class is DDPMScheduler:
        options = {**options, "variance_type": config.get("variance_type") or "fixed_small"}
    try:
        options = {**clipping(scheduler_class, config), **options}
        scheduler = build_scheduler(scheduler_class, config, timestep_spacing="trailing", **options)
        _try_step(scheduler_class.from_config(scheduler.config))
    except (ValueError, RuntimeError, TypeError, LookupError, ArithmeticError) as error:
        raise ValueError(f"scheduler '{name}' cannot take this noise schedule or network: {error}") from error
    if remembered:
        scheduler.register_to_config(**{REMEMBERED: remembered})
    return scheduler


def build_scheduler(scheduler_class: type[SchedulerMixin], config: dict[str, Any], **options: Any) -> SchedulerMixin:
    """Return a scheduler for a network trained with the one that has this `config`.

    Raises:
        ValueError: If it does not know this noise schedule, or the config has none that a DDPM could be trained with.
    """
    _check_process(config)
    known = inspect.signature(scheduler_class).parameters
    if config.get("rescale_betas_zero_snr") and "rescale_betas_zero_snr" not in known:
        raise ValueError(f"{scheduler_class.__name__} knows no rescale_betas_zero_snr")
    trained_with = {key: config[key] for key in _TRAINED_WITH if key in config}
    try:
        _check_levels(DDPMScheduler(**trained_with).alphas_cumprod, config["num_train_timesteps"])
        return scheduler_class(**{key: value for key, value in trained_with.items() if key in known}, **options)
    except NotImplementedError as error:
        raise ValueError(str(error)) from error


def _check_process(config: dict[str, Any]) -> None:
    """Raise `ValueError` if a scheduler's config is not one of a DDPM's noise levels."""
    name, prediction_type = config.get("_class_name", "the scheduler"), config.get("prediction_type", "epsilon")
    other = [key for key, plain in _PLAIN.items() if config.get(key, plain) not in (plain, None)]
    if "beta_schedule" not in config:
        reason = f"{name} has no beta_schedule"
    elif prediction_type not in _PREDICTION_TYPES:
        reason = f"{name} has prediction_type {prediction_type}, not one of {', '.join(_PREDICTION_TYPES)}"
    elif other:
        reason = f"{name} has {other[0]} {config[other[0]]}"
    else:
        return
    raise ValueError(
        f"{reason}, so that its noise levels are not a DDPM's; save the pipeline with the DDPMScheduler that its "
        "network was trained with, or call the pipeline itself, which draws with the scheduler that it has"
    )


def _check_levels(alphas_cumprod: Tensor, count: int) -> None:
    """Raise `ValueError` unless each of `count` training timesteps has more noise than the one before."""
    if len(alphas_cumprod) != count:
        raise ValueError(f"num_train_timesteps is {count} and there are {len(alphas_cumprod)} betas; make them agree")
    before = torch.cat([torch.ones(1), alphas_cumprod[:-1]])
    wrong = ~((alphas_cumprod >= 0) & (alphas_cumprod < before))  # so for nan
    if wrong.any():
        timestep = int(wrong.nonzero()[0])
        raise ValueError(
            f"alphas_cumprod is {alphas_cumprod[timestep]:g} at timestep {timestep}, after {before[timestep]:g}; it "
            "must fall, so give betas above 0 and below 1"
        )


def _try_step(scheduler: SchedulerMixin) -> None:
    """Take one step, where diffusers' schedulers refuse a prediction type, or find no number for pure noise."""
    scheduler.set_timesteps(1)
    timestep, sample = scheduler.timesteps[0], torch.ones(1, 1, 1, 1)
    prediction = torch.zeros_like(scheduler.scale_model_input(sample, timestep))
    options = accepted_by_step(scheduler, generator=torch.Generator())
    if not scheduler.step(prediction, timestep, sample, **options).prev_sample.isfinite().all():
        raise ValueError("its steps from the last timestep are not finite; leave some of the image there")
