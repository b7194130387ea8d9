"""Draw images from a trained pipeline: python scripts/sample.py, or one of yours with --pipeline runs/…/pipeline."""

import sys
from collections import defaultdict
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from denoiser.checks import check_positive
from denoiser.device import compile_to_draw, in_best_layout
from denoiser.processes import start_process
from pipelines import (
    SamplingConfig,
    check_sampling,
    draw_samples,
    find_pipeline,
    image_grid,
    interpolated,
    make_scheduler,
    named_grid,
    noising_stages,
    save_gif,
    save_image,
    save_images,
    stages_picture,
)
from pipelines.commands.parser import Parser, add_sampling_arguments, command, sampling_config
from pipelines.images import PICTURES, check_apart, check_new_folder, check_picture_path, denoising_frames
from pipelines.sampling import image_labels, own_sampler, parse_labels, parse_seeds


def build_parser() -> Parser:
    """Return the parser of this command."""
    parser = Parser(description=__doc__)
    parser.add_argument("--config", action="config", help="YAML file; the options after it override it")
    parser.add_argument("--pipeline", type=str, default="teacher", help="folder of a saved pipeline, or student")
    add_sampling_arguments(parser, SamplingConfig)
    parser.add_argument("--seeds", type=str | None, help="a seed an image, in the place of num_images: 3,17,100-120")
    parser.add_argument("--labels", type=str, default="all", help="classes or mixtures: sneaker,8,coat:2+bag:1")
    parser.add_argument("--compile", action="store_true", help="compile first, which pays from thousands of images on")
    parser.add_argument("--interpolate", action="store_true", help="the images between two seeds, such as --seeds 3,17")
    parser.add_argument("--output", type=str, default="samples.png", help="PNG of the grid")
    parser.add_argument("--columns", type=int | None, help="images in a row of the grid")
    parser.add_argument("--names", action="store_true", help="write the classes' names into the grid")
    parser.add_argument("--images_dir", type=str | None, help="folder for one PNG an image")
    parser.add_argument("--gif", type=str | None, help="GIF of the denoising")
    parser.add_argument("--predictions", type=str | None, help="PNG of the clean images predicted from step to step")
    parser.add_argument("--noising", type=str | None, help="PNG of the drawn images as the training noises them")
    return parser


def check_targets(options: Any) -> None:
    """Raise `ValueError` or `OSError` if a picture cannot be written."""
    check_picture_path(options.output, *PICTURES)
    for path, suffixes in ((options.gif, (".gif",)), (options.predictions, PICTURES), (options.noising, PICTURES)):
        if path:
            check_picture_path(path, *suffixes)
    pictures = [path for path in (options.output, options.gif, options.predictions, options.noising) if path]
    check_apart(pictures, options.images_dir)
    if options.images_dir:
        check_new_folder(options.images_dir)
    if options.columns is not None:
        check_positive(columns=options.columns)


class Film:
    """Keeps the images after each step, batch by batch.

    Attributes:
        noisy: By step.
        clean: By step: what the network took the clean images to be.
    """

    def __init__(self) -> None:
        self.noisy: dict[int, list[Tensor]] = defaultdict(list)
        self.clean: dict[int, list[Tensor]] = defaultdict(list)

    def __call__(
        self, _: DiffusionPipeline, step: int, timestep: Tensor, tensors: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Keep what the pipeline tells after a step."""
        self.noisy[step].append(tensors["sample"].cpu())
        self.clean[step].append(tensors["clean"].cpu())
        return {}


def stages(by_step: dict[int, list[Tensor]]) -> list[Tensor]:
    """Put the batches of each step together."""
    return [torch.cat(batches) for batches in by_step.values()]


@command
def main() -> None:
    """Draw images and write what was asked for."""
    parser = build_parser()
    options = parser.instantiate(parser.parse_args(sys.argv[1:]))
    check_targets(options)
    labels = parse_labels(options.labels)
    seeds = None if options.seeds is None else parse_seeds(options.seeds)
    state = start_process()
    pipeline = find_pipeline(options.pipeline).to(state.device)
    trained_with = pipeline.scheduler
    config = sampling_config(SamplingConfig, options, own_sampler(trained_with))
    pipeline.scheduler = make_scheduler(config.scheduler, trained_with.config)
    check_sampling(config, pipeline.unet, pipeline.scheduler)
    in_best_layout(pipeline.unet)
    if options.compile:
        compile_to_draw(pipeline.unet, pipeline.device)

    film = Film() if options.gif or options.predictions else None
    if options.interpolate:
        images = interpolated(pipeline, config, seeds or [], labels, callback_on_step_end=film)
    else:
        images = draw_samples(pipeline, config, labels, callback_on_step_end=film, seeds=seeds)

    written = {"grid": options.output}
    classes = image_labels(pipeline, labels, len(images)) if options.names else None
    if classes is None:
        save_image(image_grid(images, options.columns), options.output)
    else:
        reader = pipeline.classes
        save_image(named_grid(images, [reader.name(label) for label in classes], options.columns), options.output)
    if options.images_dir:
        save_images(images, options.images_dir)
        written["images"] = options.images_dir
    if film and options.gif:
        save_gif(denoising_frames(stages(film.noisy), options.columns), options.gif)
        written["film"] = options.gif
    if film and options.predictions:
        save_image(stages_picture(stages(film.clean)), options.predictions)
        written["predictions"] = options.predictions
    if options.noising:
        save_image(stages_picture(noising_stages(images, trained_with)), options.noising)
        written["noising"] = options.noising
    for what, path in written.items():
        print(f"{what}: {path}")


if __name__ == "__main__":
    main()
