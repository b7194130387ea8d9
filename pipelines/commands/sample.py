"""Sample images from a trained pipeline: python scripts/sample.py --pipeline runs/fashion_mnist/pipeline.

Under accelerate launch the processes share the images out, and make the same ones.
"""

import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from torch import Tensor

from denoiser.checks import check_positive
from denoiser.device import compile_for_sampling, in_best_layout
from denoiser.processes import share_out, start_process
from pipelines import (
    SamplingConfig,
    check_sampling,
    find_pipeline,
    image_grid,
    interpolated,
    make_scheduler,
    named_grid,
    noising_stages,
    sample_images,
    save_gif,
    save_image,
    save_images,
    stages_picture,
)
from pipelines.commands.inputs import PICTURES, check_apart, check_picture_path, parse_labels, parse_seeds
from pipelines.commands.parser import Parser, add_sampling_arguments, check_unused, command, sampling_config
from pipelines.images import check_new_folder, in_unit_range
from pipelines.sampling import default_sampler, image_labels


def build_parser() -> Parser:
    """Return the parser of this command."""
    parser = Parser(description=__doc__)
    parser.add_argument("--config", action="config", help="YAML file; the options after it override it")
    parser.add_argument(
        "--pipeline", type=str, default="teacher", help="folder of a pipeline, student, or user/name of the Hub"
    )
    add_sampling_arguments(parser, SamplingConfig)
    parser.add_argument("--seeds", type=str | None, help="a seed for each image, instead of num_images: 3,17,100-120")
    parser.add_argument("--labels", type=str, default="all", help="classes or mixtures: sneaker,8,coat:2+bag:1")
    parser.add_argument("--compile", action="store_true", help="compile first, which pays off from thousands of images")
    parser.add_argument("--interpolate", action="store_true", help="interpolate between two seeds: --seeds 3,17")
    parser.add_argument("--output", type=str, default="samples.png", help="PNG of the grid")
    parser.add_argument("--columns", type=int | None, help="images in a row of the grid")
    parser.add_argument("--names", action="store_true", help="write class names into the grid")
    parser.add_argument("--images_dir", type=str | None, help="folder for one PNG an image")
    parser.add_argument("--gif", type=str | None, help="GIF of the denoising")
    parser.add_argument("--predictions", type=str | None, help="PNG of the predicted clean images by step")
    parser.add_argument("--noising", type=str | None, help="PNG of the samples in the forward process")
    return parser


def check_options(options: Any) -> None:
    """Raise `ValueError` or `OSError` for an option without effect, or if a picture cannot be written."""
    if options.seeds is not None:
        check_unused(SamplingConfig, options, ["seed"], "seeds are given")
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
    """Callback that records noisy and predicted clean images by step, batch by batch."""

    def __init__(self) -> None:
        self.batches: dict[str, dict[int, list[Tensor]]] = {"sample": defaultdict(list), "clean": defaultdict(list)}

    def __call__(self, _: DiffusionPipeline, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> None:
        """Record the images after a step."""
        for name, by_step in self.batches.items():
            by_step[step].append(tensors[name].cpu())

    def stages(self) -> dict[str, Tensor]:
        """Return the "sample" and the "clean" images, `(images, steps, channels, height, width)`."""
        return {
            name: torch.stack([torch.cat(batches) for batches in by_step.values()], dim=1)
            for name, by_step in self.batches.items()
        }


def sample_with_all(sample: Callable[..., Tensor], num_images: int, film: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """Share the images out among the processes, and return all of them, and their stages for a film.

    `sample` takes the indices of images and a callback for each step.
    """

    def compute(indices: Sequence[int]) -> tuple[Tensor, dict[str, Tensor]]:
        recorder = Film() if film else None
        images = sample(indices=indices, callback_on_step_end=recorder)
        return images, recorder.stages() if recorder else {}

    images, stages = zip(*share_out(range(num_images), compute), strict=True)
    return torch.cat(images), {name: torch.cat([part[name] for part in stages]) for name in stages[0]}


def save(
    images: Tensor, stages: dict[str, Tensor], names: Sequence[str] | None, noise_schedule: SchedulerMixin, options: Any
) -> dict[str, str]:
    """Save the pictures; returns the path of each."""
    grid = image_grid(images, options.columns) if names is None else named_grid(images, names, options.columns)
    save_image(grid, options.output)
    written = {"grid": options.output}
    if options.images_dir:
        save_images(images, options.images_dir)
        written["images"] = options.images_dir
    if options.gif:
        frames = [image_grid(in_unit_range(step), options.columns) for step in stages["sample"].unbind(dim=1)]
        save_gif(frames, options.gif)
        written["film"] = options.gif
    if options.predictions:
        save_image(stages_picture(stages["clean"].unbind(dim=1)), options.predictions)
        written["predictions"] = options.predictions
    if options.noising:
        save_image(stages_picture(noising_stages(images, noise_schedule)), options.noising)
        written["noising"] = options.noising
    return written


@command
def main() -> None:
    """Sample images and save them."""
    parser = build_parser()
    options = parser.instantiate(parser.parse_args(sys.argv[1:]))
    check_options(options)
    labels = parse_labels(options.labels)
    seeds = None if options.seeds is None else parse_seeds(options.seeds)
    state = start_process()
    pipeline = find_pipeline(options.pipeline).to(state.device)
    noise_schedule = pipeline.scheduler
    config = sampling_config(SamplingConfig, options, default_sampler(noise_schedule))
    pipeline.scheduler = make_scheduler(config.scheduler, noise_schedule.config)
    check_sampling(config, pipeline.unet, pipeline.scheduler, pipeline.autoguidance_scale)
    if options.names and pipeline.num_classes is None:
        raise ValueError("names are those of classes, and the network has none; leave --names out")
    for network in pipeline.networks:
        in_best_layout(network)
        if options.compile:
            compile_for_sampling(network, pipeline.device)

    arguments = {**config.arguments(), "class_labels": labels}
    if options.interpolate:
        del arguments["seed"]  # the ends have their own
        sample = partial(interpolated, pipeline, seeds or [], **arguments)
    else:
        arguments |= {} if seeds is None else {"seed": seeds, "num_images": len(seeds)}
        sample = partial(sample_images, pipeline, **arguments)
    images, stages = sample_with_all(sample, arguments["num_images"], bool(options.gif or options.predictions))

    if state.is_main_process:
        classes = image_labels(pipeline, labels, len(images)) if options.names else None
        names = None if classes is None else [pipeline.classes.name(label) for label in classes]
        for what, path in save(images, stages, names, noise_schedule, options).items():
            print(f"{what}: {path}")


if __name__ == "__main__":
    main()
