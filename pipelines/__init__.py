"""Diffusers pipelines: noise in, images out.

After the import diffusers knows `DenoisingPipeline`: `DiffusionPipeline.from_pretrained` loads what it has saved.
"""

import diffusers

from pipelines.denoising import DenoisingPipeline, load_pipeline
from pipelines.guidance import Guidance
from pipelines.images import (
    image_grid,
    named_grid,
    quantised,
    save_gif,
    save_image,
    save_images,
    stages_picture,
)
from pipelines.looking import interpolated, noising_stages, slerp
from pipelines.pretrained import PRETRAINED, find_pipeline, load_pretrained
from pipelines.sampling import SamplingConfig, check_sampling, draw_samples
from pipelines.schedulers import SCHEDULERS, make_scheduler

diffusers.DenoisingPipeline = DenoisingPipeline  # where its loader looks a pipeline's class up

__all__ = [
    "PRETRAINED",
    "SCHEDULERS",
    "DenoisingPipeline",
    "Guidance",
    "SamplingConfig",
    "check_sampling",
    "draw_samples",
    "find_pipeline",
    "image_grid",
    "interpolated",
    "load_pipeline",
    "load_pretrained",
    "make_scheduler",
    "named_grid",
    "noising_stages",
    "quantised",
    "save_gif",
    "save_image",
    "save_images",
    "slerp",
    "stages_picture",
]
