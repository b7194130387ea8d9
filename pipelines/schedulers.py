"""Samplers by name: diffusers' schedulers with options for few steps."""

import inspect
from collections.abc import Mapping
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
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from denoiser.checks import did_you_mean
from pipelines.noise_levels import predicted_image, predicted_noise
from pipelines.spacing import LARGEST_SIGMA
from pipelines.stepping import (
    STUDENT_CALLS,
    accepted_by_step,
    check_steps,
    distilled_calls,
    sampler_of_student,
    student_timesteps,
)

# The options of a noise schedule.
_NOISE_SCHEDULE = (
    *("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr"),
    "prediction_type",
)

# Prediction types of a DDPM, and settings whose other values are of another process.
_PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
_PLAIN = {"use_flow_sigmas": False, "timestep_type": "discrete", "snr_shift_scale": 1.0}

# Options that samplers drop from their configs, and the name under which they keep the schedule's own.
_DEFAULTS = {name: parameter.default for name, parameter in inspect.signature(DDPMScheduler).parameters.items()}
_THRESHOLDING = ("dynamic_thresholding_ratio", "sample_max_value")
_KEPT = ("variance_type", "clip_sample", "clip_sample_range", "thresholding", *_THRESHOLDING)
_REMEMBERED = "_trained_with"  # diffusers saves and loads such names, and hands them to no constructor
_CLIPPED = {"thresholding": True, "sample_max_value": 1.0}  # clips to the range of the data


class _BoundedNoise(SchedulerMixin):
    """Bounds the noise of samplers that step in x / a, where x = a x_0 + s e, without clipping.

    An error of the predicted noise counts sigma = s / a times, 20,000 at the end of the cosine schedule.
    """

    alphas_cumprod: Tensor

    def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
        """Choose the timesteps, as diffusers does."""
        self.alphas_cumprod = self.alphas_cumprod.clamp(min=1 / (1 + LARGEST_SIGMA**2))
        super().set_timesteps(*args, **kwargs)


class BoundedEulerScheduler(_BoundedNoise, EulerDiscreteScheduler):
    """Diffusers' Euler, with bounded noise."""


class BoundedEulerAncestralScheduler(_BoundedNoise, EulerAncestralDiscreteScheduler):
    """Diffusers' ancestral Euler, with bounded noise."""


class BoundedHeunScheduler(_BoundedNoise, HeunDiscreteScheduler):
    """Diffusers' Heun, with bounded noise."""


class ExactDDIMScheduler(DDIMScheduler):
    """Diffusers' DDIM with exact steps between unevenly spaced timesteps.

    Diffusers' own steps are all as long as the shortest, and stop at more noise than the next step
    starts from.
    """

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: list[int] | None = None,
    ) -> None:
        """Choose the timesteps, as diffusers does, or take those that are given."""
        if timesteps is None:
            super().set_timesteps(num_inference_steps, device)
        else:
            self.num_inference_steps = len(timesteps)
            self.timesteps = torch.tensor(timesteps, device=device)

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


class StudentScheduler(ExactDDIMScheduler):
    """DDIM at the timesteps of a student of trajectories (`scripts/distill.py`), without clipping.

    A call's clean image is where the line to the next call's start points, which may be out of range.
    """

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: list[int] | None = None,
    ) -> None:
        """Choose the timesteps of so many calls; raises `ValueError` for another number than was trained."""
        if timesteps is not None or num_inference_steps is None:
            raise ValueError(f"{type(self).__name__} takes a number of steps, and chooses its own timesteps")
        check_steps(num_inference_steps, self)
        own = student_timesteps(self.config.num_train_timesteps, num_inference_steps)
        super().set_timesteps(device=device, timesteps=own)


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
    "lcm": (LCMScheduler, {}),  # for students whose calls end in clean images
}


def check_scheduler_name(name: str) -> None:
    """Raise `ValueError`, with the nearest name, if there is no sampler called `name`."""
    if name not in SCHEDULERS:
        raise ValueError(f"unknown scheduler '{name}'{did_you_mean(name, SCHEDULERS)}; known: {', '.join(SCHEDULERS)}")


def make_scheduler(name: str, config: Mapping[str, Any]) -> SchedulerMixin:
    """Return a sampler by name for a network trained with the noise schedule of `config`.

    The sampler takes over the noise schedule, the clipping of the predicted image and, for ddpm, the
    variance. Its timesteps are "trailing", from the noisiest (Lin et al. 2024, section 3.3).

    Args:
        name: A key of `SCHEDULERS`.
        config: Config of the noise schedule, or of another sampler for it.

    Raises:
        ValueError: If the name is unknown, or the sampler cannot work with the noise schedule, the
            prediction type or a distilled network.
    """
    check_scheduler_name(name)
    scheduler_class, options = SCHEDULERS[name]
    config, remembered = _as_trained(config)
    calls = distilled_calls(config)
    if calls and name != (use := sampler_of_student(config)):
        raise ValueError(f"scheduler '{name}' cannot sample from a network distilled for {calls} calls; use {use}")
    if scheduler_class is LCMScheduler:  # it picks its timesteps among so many
        options = {**options, "original_inference_steps": calls or config["num_train_timesteps"]}
    if STUDENT_CALLS in config:
        return _student_scheduler(config)
    if scheduler_class is DDPMScheduler:
        options = {**options, "variance_type": config.get("variance_type") or "fixed_small"}
    try:
        options = {**_clipping(scheduler_class, config), **options}
        scheduler = build_scheduler(scheduler_class, config, timestep_spacing="trailing", **options)
        _try_step(scheduler_class.from_config(scheduler.config))
    except (ValueError, RuntimeError, TypeError, LookupError, ArithmeticError) as error:
        raise ValueError(f"scheduler '{name}' cannot take this noise schedule or network: {error}") from error
    if remembered:
        scheduler.register_to_config(**{_REMEMBERED: remembered})
    return scheduler


def _student_scheduler(config: Mapping[str, Any]) -> SchedulerMixin:
    scheduler = build_scheduler(StudentScheduler, config, clip_sample=False)
    scheduler.register_to_config(**{STUDENT_CALLS: config[STUDENT_CALLS]})
    return scheduler


def build_scheduler(scheduler_class: type[SchedulerMixin], config: Mapping[str, Any], **options: Any) -> SchedulerMixin:
    """Return a scheduler of a class for the noise schedule of `config`; `ValueError` if it is not supported."""
    _check_process(config)
    known = inspect.signature(scheduler_class).parameters
    if config.get("rescale_betas_zero_snr") and "rescale_betas_zero_snr" not in known:
        raise ValueError(f"{scheduler_class.__name__} knows no rescale_betas_zero_snr")
    noise_schedule = {key: config[key] for key in _NOISE_SCHEDULE if key in config}
    try:
        _check_levels(DDPMScheduler(**noise_schedule).alphas_cumprod, config["num_train_timesteps"])
        return scheduler_class(**{key: value for key, value in noise_schedule.items() if key in known}, **options)
    except NotImplementedError as error:
        raise ValueError(str(error)) from error


def _check_process(config: Mapping[str, Any]) -> None:
    """Raise `ValueError` unless a scheduler's config has a DDPM's noise levels."""
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
        "network was trained with, or call the pipeline itself, which samples with its own scheduler"
    )


def _check_levels(alphas_cumprod: Tensor, count: int) -> None:
    """Raise `ValueError` unless the noise of the `count` timesteps rises."""
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
    """Take one step: it fails for an unsupported prediction type, or where pure noise gives no number."""
    scheduler.set_timesteps(1)
    timestep, sample = scheduler.timesteps[0], torch.ones(1, 1, 1, 1)
    prediction = torch.zeros_like(scheduler.scale_model_input(sample, timestep))
    options = accepted_by_step(scheduler, generator=torch.Generator())
    if not scheduler.step(prediction, timestep, sample, **options).prev_sample.isfinite().all():
        raise ValueError("its steps from the last timestep are not finite; leave some of the image there")


def _as_trained(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the config of the noise schedule that a sampler was made for, and the options to remember.

    A sampler's config lacks options of the noise schedule. Only other values than the defaults are remembered.
    """
    config = dict(config)
    if kept := dict(config.get(_REMEMBERED) or {}):
        config.pop("use_karras_sigmas", None)  # by which `_clipping` knows a sampler's config
        return {**config, **kept}, kept
    if "use_karras_sigmas" not in config and "variance_type" in config:
        kept = {name: config[name] for name in _KEPT if name in config}
    return config, kept if any(value != _DEFAULTS[name] for name, value in kept.items()) else {}


def _clipping(scheduler_class: type[SchedulerMixin], config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options with which a sampler clips the predicted image as the noise schedule does.

    `thresholding` is that of Saharia et al. (2022), section 2.3. Euler's and Heun's samplers do not clip.
    Raises `ValueError` if the sampler does not support it.
    """
    known, name = inspect.signature(scheduler_class).parameters, scheduler_class.__name__
    clips, reach = config.get("clip_sample", True), config.get("clip_sample_range", 1.0)
    if "use_karras_sigmas" in config:  # a sampler's config and no training's: Heun's has a clip_sample that is off
        clips, reach = True, 1.0
    if config.get("thresholding") and config.get("sample_max_value", 1.0) != 1:
        if "thresholding" not in known:
            raise ValueError(f"{name} knows no thresholding; use ddpm, ddim, dpmsolver++, unipc or deis")
        return {"thresholding": True, **{option: config[option] for option in _THRESHOLDING if option in config}}
    if config.get("thresholding"):  # to 1 at most, which is to clip there
        clips, reach = True, 1.0
    if "clip_sample" in known and not issubclass(scheduler_class, HeunDiscreteScheduler):
        return {"clip_sample": clips, "clip_sample_range": reach}
    if clips and reach != 1:
        raise ValueError(f"{name} does not clip at clip_sample_range {reach:g}; use ddpm or ddim")
    return _CLIPPED if clips and "thresholding" in known else {}
