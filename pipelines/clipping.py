"""How samplers bound the clean image that they predict: as the scheduler of the training says."""

import inspect
from collections.abc import Mapping
from typing import Any

from diffusers import DDPMScheduler, HeunDiscreteScheduler, SchedulerMixin

# Thresholding at 1 clips to the range of the data, for samplers that can only threshold.
_CLIPPED = {"thresholding": True, "sample_max_value": 1.0}
_THRESHOLDING = ("dynamic_thresholding_ratio", "sample_max_value")
# What samplers leave out of their own configs, or change there, and the name under which they keep the training's.
_DEFAULTS = {name: parameter.default for name, parameter in inspect.signature(DDPMScheduler).parameters.items()}
_KEPT = ("variance_type", "clip_sample", "clip_sample_range", "thresholding", *_THRESHOLDING)
REMEMBERED = "_trained_with"  # diffusers saves and loads what begins so, and hands it to no constructor


def of_the_training(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a config as the training had it, and of its options those that the next sampler shall remember.

    A sampler for another sampler's config would else go by what is left there. Nothing is remembered of the defaults.
    """
    config = dict(config)
    if kept := dict(config.get(REMEMBERED) or {}):
        config.pop("use_karras_sigmas", None)  # which tells a sampler's own clipping
        return {**config, **kept}, kept
    if "use_karras_sigmas" not in config and "variance_type" in config:
        kept = {name: config[name] for name in _KEPT if name in config}
    return config, kept if any(value != _DEFAULTS[name] for name, value in kept.items()) else {}


def clipping(scheduler_class: type[SchedulerMixin], config: dict[str, Any]) -> dict[str, Any]:
    """Return the options with which a sampler clips, or thresholds, as the scheduler of this `config` does.

    The predicted clean image is clipped to plus and minus `clip_sample_range` with `clip_sample`, the default, or, with
    `thresholding`, to a quantile of its own values and divided by that (Saharia et al. 2022, section 2.3). Euler's and
    Heun's samplers do not clip.

    Raises:
        ValueError: If the sampler cannot.
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
