"""Restore or change images with a trained pipeline: python scripts/restore.py denoise --noise 0.5.

Without --images it takes the first images of FashionMNIST's test split. Where it knows the undamaged images, it prints
PSNR and SSIM beside those of scikit-image's classical ways.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from denoiser.checks import check_between, check_positive, check_seed
from denoiser.data import load_fashion_mnist
from denoiser.device import in_best_layout
from denoiser.processes import start_process
from denoiser.randomness import RESTORATION, seeded_generator
from pipelines import DenoisingPipeline, find_pipeline, make_scheduler, save_image, save_images, stages_picture
from pipelines.classes import Label
from pipelines.commands.inputs import load_images
from pipelines.commands.parser import Parser, command
from pipelines.evaluation.markdown import markdown_table
from pipelines.evaluation.restoration import biharmonic, non_local_means, psnr, ssim
from pipelines.images import PICTURES, check_apart, check_new_folder, check_picture_path, in_unit_range
from pipelines.restoration import denoised, inpainted, inverted, reconstructed
from pipelines.sampling import image_labels, parse_labels
from pipelines.schedulers import distilled_calls

UNDAMAGED = "undamaged"
Labels = list[Label] | None
TASKS = {
    "denoise": "take Gaussian noise away, in one call of the network",
    "inpaint": "fill a hole (RePaint)",
    "change": "noise images in part and draw them anew from there, maybe as another class (SDEdit)",
    "invert": "lead images back to the noise that DDIM draws them from, and forth again, maybe as another class",
}


def build_parser() -> Parser:
    """Return the parser of this command."""
    parser = Parser(description=__doc__)
    tasks = parser.add_subcommands(dest="task")
    for task, what in TASKS.items():
        tasks.add_subcommand(task, task_parser(task), help=what)
    return parser


def task_parser(task: str) -> Parser:
    """Return the parser of a task's options."""
    parser = Parser(description=TASKS[task])
    parser.add_argument("--pipeline", type=str, default="teacher", help="folder of a saved pipeline, or 'teacher'")
    parser.add_argument("--images", type=str | None, help="PNG file, folder of them or .npz file (default: test split)")
    parser.add_argument("--num_images", type=int, default=8, help="images of the test split")
    parser.add_argument("--data_root", type=str, default="data", help="folder of FashionMNIST")
    parser.add_argument("--labels", type=str | None, help="classes of the images, if known: sneaker,8,coat:2+bag:1")
    parser.add_argument("--output", type=str, default="restored.png", help="PNG: a row an image, from damage to result")
    parser.add_argument("--images_dir", type=str | None, help="folder for one PNG a result")
    match task:
        case "denoise":
            parser.add_argument(
                "--sigma", type=float | None, help="its standard deviation, images in [-1, 1] (default: estimated)"
            )
            parser.add_argument("--noise", type=float | None, help="noise to add first, to see what comes back")
            parser.add_argument("--seed", type=int, default=0, help="of the noise to add")
        case "inpaint":
            parser.add_argument("--mask", type=str | None, help="PNG, white where the images are to be filled")
            parser.add_argument("--hole", type=int | None, help="side of a square in the middle, in its place")
            parser.add_argument("--steps", type=int, default=50, help="steps of the denoising")
            parser.add_argument("--jump_length", type=int, default=10, help="steps that are taken back and again")
            parser.add_argument("--resamplings", type=int, default=5, help="how often each of them is taken")
            parser.add_argument("--seed", type=int, default=0, help="of what is filled in")
        case "change":
            parser.add_argument("--strength", type=float, default=0.5, help="share of the steps; 1 keeps nothing")
            parser.add_argument("--steps", type=int, default=20, help="steps of the scheduler")
            parser.add_argument("--scheduler", type=str, default="sde-dpmsolver++", help="as in sample.py")
            parser.add_argument("--guidance_scale", type=float, default=1.0, help="classifier-free guidance; 1 is none")
            parser.add_argument("--seed", type=int, default=0, help="of the noise")
        case "invert":
            parser.add_argument("--steps", type=int, default=20, help="steps of DDIM")
            parser.add_argument("--iterations", type=int, default=10, help="calls of the network to undo a step")
            parser.add_argument("--new_labels", type=str | None, help="classes to draw them as (default: their own)")
    return parser


def denoise(pipeline: DenoisingPipeline, images: Tensor, labels: Labels, options: Any) -> dict[str, Tensor]:
    """Take noise away, which is added first if asked for."""
    if options.noise is None:
        return {"given": images, "restored": denoised(pipeline, images, options.sigma, labels)}
    if not 0 < options.noise <= 1000:
        raise ValueError(f"noise is {options.noise}; it must be above 0 and up to 1000")
    noise = torch.randn(images.shape, generator=seeded_generator(RESTORATION, options.seed))
    noisy = images + options.noise * noise
    return {
        UNDAMAGED: images,
        "damaged": noisy,
        "non-local means": non_local_means(noisy, options.noise),
        "restored": denoised(pipeline, noisy, options.sigma, labels),
    }


def inpaint(pipeline: DenoisingPipeline, images: Tensor, labels: Labels, options: Any) -> dict[str, Tensor]:
    """Fill a hole."""
    known = read_mask(options.mask, options.hole, pipeline.image_shape)
    counts = (options.steps, options.jump_length, options.resamplings)
    restored = inpainted(pipeline, images, known, labels, *counts, options.seed)
    stages = {"damaged": images * known, "biharmonic": biharmonic(images, known), "restored": restored}
    # of images that a user gives, nobody knows what was in the hole
    return {UNDAMAGED: images, **stages} if options.images is None else stages


def change(pipeline: DenoisingPipeline, images: Tensor, labels: Labels, options: Any) -> dict[str, Tensor]:
    """Noise images in part and draw them anew from there."""
    pipeline.scheduler = make_scheduler(options.scheduler, pipeline.scheduler.config)
    (changed,) = pipeline(
        batch_size=len(images),
        class_labels=labels,
        guidance_scale=options.guidance_scale,
        num_inference_steps=options.steps,
        seed=options.seed,
        image=images,
        strength=options.strength,
        output_type="pt",
        return_dict=False,
    )
    return {"given": images, "changed": 2 * changed - 1}


def invert(pipeline: DenoisingPipeline, images: Tensor, labels: Labels, options: Any) -> dict[str, Tensor]:
    """Lead images back to noise, and forth again."""
    noise = inverted(pipeline, images, labels, options.steps, options.iterations)
    if options.new_labels is None:
        return {UNDAMAGED: images, "restored": reconstructed(pipeline, noise, labels, options.steps)}
    new_labels = image_labels(pipeline, parse_labels(options.new_labels), len(images))
    return {"given": images, "changed": reconstructed(pipeline, noise, new_labels, options.steps)}


RESTORE = {"denoise": denoise, "inpaint": inpaint, "change": change, "invert": invert}


def read_mask(path: str | None, hole: int | None, shape: tuple[int, int, int]) -> Tensor:
    """Return 1 where a pixel is known and 0 where it is to be filled, `(1, 1, height, width)`."""
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


def read_images(options: Any, shape: tuple[int, int, int]) -> Tensor:
    """Return the images to restore, in [-1, 1]."""
    if options.images is not None:
        images, _ = load_images(Path(options.images), shape)
    else:
        check_positive(num_images=options.num_images)
        if shape[0] != 1:
            raise ValueError(
                f"the pipeline draws images of {shape[0]} channels, FashionMNIST's are grey; give --images"
            )
        images = load_fashion_mnist(options.data_root, "test", shape[1:]).images[: options.num_images]
    return images.float() / 127.5 - 1


def figures(stages: dict[str, Tensor]) -> str:
    """Return a table of how near each stage is to the undamaged images."""
    truth = stages[UNDAMAGED]
    rows = [
        [name, f"{psnr(truth, images):.1f}", f"{ssim(truth, images):.3f}"]
        for name, images in stages.items()
        if name != UNDAMAGED
    ]
    return markdown_table([f"mean of {len(truth)} images", "PSNR (dB)", "SSIM"], rows)


@command
def main() -> None:
    """Restore images, and write and print what came of them."""
    parser = build_parser()
    parsed = parser.parse_args(sys.argv[1:])
    options = parsed[parsed.task]
    check_picture_path(options.output, *PICTURES)
    check_apart([options.output], options.images_dir)
    if options.images_dir:
        check_new_folder(options.images_dir)
    if "seed" in options:
        check_seed(options.seed)
    labels = None if options.labels is None else parse_labels(options.labels)
    if options.labels == "all":
        raise ValueError("labels is 'all'; name the classes of the images, or leave them out")
    state = start_process()
    pipeline = find_pipeline(options.pipeline).to(state.device)
    if distilled_calls(pipeline.scheduler.config):
        raise ValueError(f"{options.pipeline} is distilled, for a few noise levels only; restore with teacher")
    in_best_layout(pipeline.unet)
    images = read_images(options, pipeline.image_shape)
    labels = None if options.labels is None else image_labels(pipeline, labels, len(images))

    stages = {name: images.cpu() for name, images in RESTORE[parsed.task](pipeline, images, labels, options).items()}
    if UNDAMAGED in stages:
        print(figures(stages))
    save_image(stages_picture([*stages.values()]), options.output)
    print(f"picture: {options.output} ({', '.join(stages)}, from left to right)")
    if options.images_dir:
        save_images(in_unit_range([*stages.values()][-1]), options.images_dir)
        print(f"images: {options.images_dir}")


if __name__ == "__main__":
    main()
