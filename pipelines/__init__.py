"""Diffusers pipelines: sampling, restoration, training and evaluation of denoisers.

The import registers `DenoisingPipeline` with diffusers, so `DiffusionPipeline.from_pretrained` loads it.
"""

import diffusers

from pipelines.denoising import DenoisingPipeline
from pipelines.images import image_grid, named_grid, quantised, save_gif, save_image, save_images, stages_picture
from pipelines.interpolation import interpolated, noising_stages, slerp
from pipelines.predictor import Guidance
from pipelines.pretrained import PRETRAINED, find_pipeline, load_pipeline, load_pretrained
from pipelines.sampling import SamplingConfig, check_sampling, sample_images
from pipelines.schedulers import SCHEDULERS, make_scheduler

diffusers.DenoisingPipeline = DenoisingPipeline  # where its loader looks a pipeline's class up

__all__ = [
    "PRETRAINED",
    "SCHEDULERS",
    "DenoisingPipeline",
    "Guidance",
    "SamplingConfig",
    "check_sampling",
    "find_pipeline",
    "image_grid",
    "interpolated",
    "load_pipeline",
    "load_pretrained",
    "make_scheduler",
    "named_grid",
    "noising_stages",
    "quantised",
    "sample_images",
    "save_gif",
    "save_image",
    "save_images",
    "slerp",
    "stages_picture",
]
