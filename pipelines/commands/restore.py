"""Restore or change images with a trained pipeline: python scripts/restore.py denoise --noise 0.5.

Without --images it takes held-out images of the set that the pipeline was trained on. Where the original images are
known, it prints PSNR and SSIM beside those of scikit-image's classical methods.
"""

import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from denoiser.checks import check_between, check_positive, check_seed
from denoiser.data import DataConfig
from denoiser.device import in_best_layout
from denoiser.processes import start_process, tell
from denoiser.randomness import RESTORATION, seeded_generator
from pipelines import DenoisingPipeline, find_pipeline, make_scheduler, save_image, save_images, stages_picture
from pipelines.classes import Label
from pipelines.commands.inputs import PICTURES, check_apart, check_picture_path, load_images, parse_labels
from pipelines.commands.parser import Mode, Parser, call_mode, command, needed, subcommands
from pipelines.commands.sets import data_of_run, load_set
from pipelines.evaluation.markdown import markdown_table
from pipelines.evaluation.spaces import some_rows
from pipelines.images import check_new_folder, in_unit_range
from pipelines.restoration import denoised, inpainted, inverted, reconstructed
from pipelines.sampling import image_labels
from pipelines.stepping import distilled_calls

with needed("restore"):
    from pipelines.evaluation.restoration import biharmonic, non_local_means, psnr, ssim

ORIGINAL = "original"
Labels = list[Label] | None
Stages = dict[str, Tensor]  # images by stage, in [-1, 1]


def denoise(
    pipeline: DenoisingPipeline,
    images: Tensor,
    labels: Labels,
    sigma: float | None = None,
    noise: float | None = None,
    seed: int | None = None,
) -> Stages:
    """Remove Gaussian noise, in one network call.

    Args:
        sigma: Its standard deviation, images in [-1, 1]; by default estimated.
        noise: Standard deviation of noise to add first, to see what comes back.
        seed: Seed of the added noise; 0 by default.
    """
    if noise is None and seed is not None:
        raise ValueError(f"seed is {seed}, of noise to add; give noise too, or leave it out")
    if noise is None:
        return {"given": images, "restored": denoised(pipeline, images, sigma, labels)}
    if not 0 < noise <= 1000:
        raise ValueError(f"noise is {noise}; it must be above 0 and up to 1000")
    noisy = images + noise * torch.randn(images.shape, generator=seeded_generator(RESTORATION, seed or 0))
    return {
        ORIGINAL: images,
        "damaged": noisy,
        "non-local means": non_local_means(noisy, noise),
        "restored": denoised(pipeline, noisy, sigma, labels),
    }


def inpaint(
    pipeline: DenoisingPipeline,
    images: Tensor,
    labels: Labels,
    mask: str | None = None,
    hole: int | None = None,
    steps: int = 50,
    jump_length: int = 10,
    resamplings: int = 5,
    seed: int = 0,
) -> Stages:
    """Fill a hole (RePaint).

    Args:
        mask: PNG, white where the images are to be filled.
        hole: Side of a square in the middle, instead of a mask.
        steps: Denoising steps.
        jump_length: Steps in a jump back.
        resamplings: Number of times that each step is taken.
        seed: Seed of the filled pixels.
    """
    known = read_mask(mask, hole, pipeline.image_shape)
    restored = inpainted(pipeline, images, known, labels, steps, jump_length, resamplings, seed)
    damaged, smooth = images * known, biharmonic(images, known)
    return {ORIGINAL: images, "damaged": damaged, "biharmonic": smooth, "restored": restored}


def change(
    pipeline: DenoisingPipeline,
    images: Tensor,
    labels: Labels,
    strength: float = 0.5,
    steps: int = 20,
    scheduler: str = "sde-dpmsolver++",
    guidance_scale: float = 1.0,
    autoguidance_scale: float | None = None,
    seed: int = 0,
) -> Stages:
    """Add noise and sample from there, also as another class (SDEdit).

    Args:
        strength: Fraction of the steps; 1 keeps nothing.
        steps: Steps of the sampler.
        scheduler: Sampler, as in sample.py.
        guidance_scale: Scale of classifier-free guidance; 1 is none.
        autoguidance_scale: Scale of autoguidance; 1 is none, and by default it is the pipeline's own.
        seed: Seed of the noise.
    """
    pipeline.scheduler = make_scheduler(scheduler, pipeline.scheduler.config)
    changed = pipeline(
        len(images),
        labels,
        guidance_scale,
        steps,
        seed=seed,
        image=images,
        strength=strength,
        output_type="pt",
        autoguidance_scale=autoguidance_scale,
    )[0]
    return {"given": images, "changed": 2 * changed - 1}


def invert(
    pipeline: DenoisingPipeline,
    images: Tensor,
    labels: Labels,
    steps: int = 20,
    iterations: int = 10,
    new_labels: str | None = None,
) -> Stages:
    """Invert images to DDIM's noise and back, also as another class.

    Args:
        steps: Steps of DDIM.
        iterations: Network calls to invert a step.
        new_labels: Classes to generate them as; by default their own.
    """
    noise = inverted(pipeline, images, labels, steps, iterations)
    if new_labels is None:
        return {ORIGINAL: images, "restored": reconstructed(pipeline, noise, labels, steps)}
    classes = image_labels(pipeline, parse_labels(new_labels), len(images))
    return {"given": images, "changed": reconstructed(pipeline, noise, classes, steps)}


MODES = (denoise, inpaint, change, invert)
GIVEN = ("pipeline", "images", "labels")


def build_parser(data: Mapping[str, Any] | None = None) -> Parser:
    """Return the parser of this command; options of the set default to those of `data`."""
    return subcommands(__doc__, MODES, GIVEN, partial(common_options, data=data or {}))


def common_options(parser: Parser, mode: Mode, data: Mapping[str, Any]) -> None:
    """Add the options of all modes."""
    parser.add_argument("--pipeline", type=str, default="teacher", help="folder of a pipeline, or user/name of the Hub")
    parser.add_argument("--images", type=str | None, help="PNG file, folder of them or .npz file (default: held out)")
    parser.add_argument("--num_images", type=int | None, help="images of the set's held-out ones (default: 8)")
    parser.add_class_arguments(DataConfig, "data")
    parser.set_defaults(dict(data))
    parser.add_argument("--labels", type=str | None, help="classes of the images, if known: sneaker,8,coat:2+bag:1")
    parser.add_argument("--output", type=str, default="restored.png", help="PNG: a row an image, from damage to result")
    parser.add_argument("--images_dir", type=str | None, help="folder for one PNG a result")


def read_mask(path: str | None, hole: int | None, shape: tuple[int, int, int]) -> Tensor:
    """Return 1 for known pixels and 0 for those to fill, `(1, 1, height, width)`."""
    _, height, width = shape
    if (path is None) == (hole is None):
        raise ValueError("give either mask, a PNG that is white where images are to be filled, or hole, its side")
    if path is not None:
        masks, _ = load_images(Path(path), (1, height, width))
        if len(masks) != 1:
            raise ValueError(f"{path} has {len(masks)} masks; give one, for all images")
        return (masks < 128).float()
    assert hole is not None
    check_between(1, min(height, width), hole=hole)
    known = torch.ones(1, 1, height, width)
    top, left = (height - hole) // 2, (width - hole) // 2
    known[:, :, top : top + hole, left : left + hole] = 0
    return known


def read_images(options: Any, pipeline: DenoisingPipeline) -> Tensor:
    """Return the images to restore, in [-1, 1]."""
    if options.images is not None and options.num_images is not None:
        raise ValueError(f"num_images is {options.num_images}, of the held-out ones; leave it out with images")
    if options.images is not None:
        images, _ = load_images(Path(options.images), pipeline.image_shape)
    else:
        num_images = 8 if options.num_images is None else options.num_images
        check_positive(num_images=num_images)
        train, held_out = load_set(DataConfig(**vars(options.data)), pipeline)
        if held_out is None:
            tell(["no images are held out: these were trained on"])
        shown = train if held_out is None else held_out
        images = shown.images[some_rows(shown, num_images)]
    return images.float() / 127.5 - 1


def metrics_table(stages: Stages) -> str:
    """Return a table of PSNR and SSIM of each stage."""
    original = stages[ORIGINAL]
    rows = [
        [name, f"{psnr(original, images):.1f}", f"{ssim(original, images):.3f}"]
        for name, images in stages.items()
        if name != ORIGINAL
    ]
    return markdown_table([f"mean of {len(original)} images", "PSNR (dB)", "SSIM"], rows)


@command
def main() -> None:
    """Restore images, and print and save the result."""
    mode, options = build_parser().parse_mode(MODES, sys.argv[1:])
    mode, options = build_parser(data_of_run(options.pipeline)).parse_mode(MODES, sys.argv[1:])
    check_picture_path(options.output, *PICTURES)
    check_apart([options.output], options.images_dir)
    if options.images_dir:
        check_new_folder(options.images_dir)
    if options.get("seed") is not None:
        check_seed(options.seed)
    labels = None if options.labels is None else parse_labels(options.labels)
    if options.labels == "all":
        raise ValueError("labels is 'all'; name the classes of the images, or leave them out")
    state = start_process()
    if not state.is_main_process:
        return  # a restoration is not shared out
    pipeline = find_pipeline(options.pipeline).to(state.device)
    if distilled_calls(pipeline.scheduler.config):
        raise ValueError(f"{options.pipeline} is distilled, for a few noise levels only; restore with teacher")
    for network in pipeline.networks:
        in_best_layout(network)
    images = read_images(options, pipeline)
    labels = None if options.labels is None else image_labels(pipeline, labels, len(images))

    stages = call_mode(mode, options, pipeline=pipeline, images=images, labels=labels)
    if mode is inpaint and options.images:
        del stages[ORIGINAL]  # the user's images may have had the hole before
    stages = {name: images.cpu() for name, images in stages.items()}
    if ORIGINAL in stages:
        print(metrics_table(stages))
    save_image(stages_picture([*stages.values()]), options.output)
    print(f"picture: {options.output} ({', '.join(stages)}, from left to right)")
    if options.images_dir:
        save_images(in_unit_range([*stages.values()][-1]), options.images_dir)
        print(f"images: {options.images_dir}")


if __name__ == "__main__":
    main()
