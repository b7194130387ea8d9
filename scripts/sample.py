"""Draw images from a trained pipeline: python scripts/sample.py --pipeline runs/fashion_mnist/pipeline."""

import sys
from collections import defaultdict
from dataclasses import fields
from pathlib import Path

import torch
from accelerate import PartialState
from diffusers import DiffusionPipeline
from torch import Tensor

from denoiser.checks import check_positive
from denoiser.cli import Parser, run
from denoiser.training.device import in_best_layout
from pipelines import SamplingConfig, draw_samples, image_grid, load_pipeline, make_scheduler
from pipelines.images import check_new_folder, check_picture_path, denoising_frames, save_gif, save_image, save_images
from pipelines.sampling import parse_labels, parse_seeds


def build_parser() -> Parser:
    """Return the parser of this command."""
    parser = Parser(description=__doc__)
    parser.add_argument("--config", action="config", help="YAML file; the options after it override it")
    parser.add_argument("--pipeline", type=str, required=True, help="folder of a saved pipeline")
    parser.add_class_arguments(SamplingConfig)
    parser.add_argument("--seeds", type=str | None, help="a seed an image, in the place of num_images: 3,17,100-120")
    parser.add_argument("--labels", type=str, default="all", help="classes or mixtures: sneaker,8,coat:2+bag:1")
    parser.add_argument("--output", type=str | None, help="PNG of the grid (default: samples.png beside the pipeline)")
    parser.add_argument("--columns", type=int | None, help="images in a row of the grid")
    parser.add_argument("--images_dir", type=str | None, help="folder for one PNG an image")
    parser.add_argument("--gif", type=str | None, help="GIF of the denoising")
    return parser


def main() -> None:
    """Draw images and write what was asked for."""
    parser = build_parser()
    options = parser.instantiate(parser.parse_args(sys.argv[1:]))
    config = SamplingConfig(**{field.name: options[field.name] for field in fields(SamplingConfig)})
    output = options.output or Path(options.pipeline).parent / "samples.png"
    check_picture_path(output, ".png", ".jpg", ".webp")
    if options.gif:
        check_picture_path(options.gif, ".gif")
    if options.images_dir:
        check_new_folder(options.images_dir)
    if options.columns is not None:
        check_positive(columns=options.columns)
    labels = parse_labels(options.labels)
    seeds = None if options.seeds is None else parse_seeds(options.seeds)
    pipeline = load_pipeline(options.pipeline).to(PartialState().device)
    pipeline.scheduler = make_scheduler(config.scheduler, pipeline.scheduler.config)
    in_best_layout(pipeline.unet)

    steps: dict[int, list[Tensor]] = defaultdict(list)

    def keep(_: DiffusionPipeline, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        steps[step].append(tensors["sample"].cpu())
        return {}

    images = draw_samples(pipeline, config, labels, callback_on_step_end=keep if options.gif else None, seeds=seeds)
    save_image(image_grid(images, options.columns), output)
    print(f"grid: {output}")
    if options.images_dir:
        save_images(images, options.images_dir)
        print(f"images: {options.images_dir}")
    if options.gif:
        frames = denoising_frames([torch.cat(batches) for batches in steps.values()], options.columns)
        save_gif(frames, options.gif)
        print(f"film: {options.gif}")


if __name__ == "__main__":
    run(main)
