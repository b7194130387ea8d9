"""How samplers bound the clean image that they predict: as the scheduler of the training says."""

import inspect
from typing import Any

from diffusers import HeunDiscreteScheduler, SchedulerMixin

# Thresholding at 1 clips to the range of the data, for samplers that can only threshold.
_CLIPPED = {"thresholding": True, "sample_max_value": 1.0}
_THRESHOLDING = ("dynamic_thresholding_ratio", "sample_max_value")


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
