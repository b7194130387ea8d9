"""Diffusers pipelines: noise in, images out."""

from pipelines.denoising import DenoisingPipeline, load_pipeline
from pipelines.guidance import Guidance
from pipelines.images import image_grid, quantised, save_gif, save_image, save_images
from pipelines.sampling import SamplingConfig, check_sampling, draw_samples
from pipelines.schedulers import SCHEDULERS, make_scheduler

__all__ = [
    "SCHEDULERS",
    "DenoisingPipeline",
    "Guidance",
    "SamplingConfig",
    "check_sampling",
    "draw_samples",
    "image_grid",
    "load_pipeline",
    "make_scheduler",
    "quantised",
    "save_gif",
    "save_image",
    "save_images",
]
