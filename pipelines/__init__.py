"""Diffusers pipelines: noise in, images out."""

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
