"""Images as pictures: grids, rows of stages, GIFs and PNG files."""

import math
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from einops import rearrange
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image
from torchvision.utils import make_grid

from denoiser.checks import check_positive, plain_arguments
from denoiser.files import atomic_path, check_writable


def in_unit_range(images: Tensor) -> Tensor:
    """Map images from [-1, 1] to [0, 1] and clip them."""
    return (images / 2 + 0.5).clamp(0, 1)


def quantised(images: Tensor) -> Tensor:
    """Round images in [0, 1] to uint8."""
    return (images * 255).round().byte()


def _greys_or_colours(images: Tensor) -> Tensor:
    """Return images of one or three channels; other channels are put side by side."""
    return images if images.shape[1] in (1, 3) else rearrange(images, "b c h w -> b 1 h (c w)")


@plain_arguments
def image_grid(images: Tensor, columns: int | None = None, scale: int = 4) -> Image.Image:
    """Return a grid of images, row by row.

    Args:
        images: `(count, channels, height, width)` in [0, 1]. Other channels than one or three stand side
            by side in grey.
        columns: Images in a row; by default the square root of their number.
        scale: Enlargement, without smoothing.
    """
    columns = math.ceil(math.sqrt(len(images))) if columns is None else columns
    check_positive(columns=columns, scale=scale)
    large = _greys_or_colours(images).repeat_interleave(scale, dim=2).repeat_interleave(scale, dim=3)
    return to_pil_image(quantised(make_grid(large, nrow=columns, padding=scale // 2, pad_value=0.5)).cpu())


@plain_arguments
def named_grid(images: Tensor, names: Sequence[str], columns: int | None = None, scale: int = 4) -> Image.Image:
    """Return an `image_grid` with a name for each image.

    Names stand left of the rows if each row has one name, otherwise under each image.
    """
    columns = min(math.ceil(math.sqrt(len(images))) if columns is None else columns, len(images))
    rows = [names[start : start + columns] for start in range(0, len(images), columns)]
    if all(len(set(row)) == 1 for row in rows):
        return _with_row_names(image_grid(images, columns, scale), [row[0] for row in rows])
    cells = [_with_caption(image_grid(image[None], 1, scale), name) for image, name in zip(images, names, strict=True)]
    width, height = cells[0].size
    picture = Image.new("RGB", (columns * width, len(rows) * height), "white")
    for index, cell in enumerate(cells):
        picture.paste(cell, (index % columns * width, index // columns * height))
    return picture


def _with_row_names(grid: Image.Image, names: Sequence[str]) -> Image.Image:
    """Write a name at the left of each row."""
    height = grid.height / len(names)
    font = ImageFont.load_default(height / 4)
    margin = math.ceil(max(font.getlength(name) for name in names) + height / 4)
    picture = Image.new("RGB", (margin + grid.width, grid.height), "white")
    picture.paste(grid, (margin, 0))
    for row, name in enumerate(names):
        end = (margin - height / 8, (row + 0.5) * height)
        ImageDraw.Draw(picture).text(end, name, fill="black", font=font, anchor="rm")
    return picture


def _with_caption(cell: Image.Image, name: str) -> Image.Image:
    """Write a name under an image, in the largest font that fits."""
    size, gap = cell.height / 5, cell.width // 16
    size *= min(1, cell.width / ImageFont.load_default(size).getlength(name))
    picture = Image.new("RGB", (cell.width + gap, math.ceil(cell.height * 1.25) + gap), "white")
    picture.paste(cell, (gap // 2, gap // 2))
    place = (picture.width / 2, cell.height + gap)
    ImageDraw.Draw(picture).text(place, name, fill="black", font=ImageFont.load_default(size), anchor="ma")
    return picture


@plain_arguments
def stages_picture(stages: Sequence[Tensor], columns: int = 10, scale: int = 4) -> Image.Image:
    """Return a picture of how images change: a row an image, stages from left to right.

    Args:
        stages: The images at each stage, `(count, channels, height, width)` in [-1, 1], clipped.
        columns: Largest number of stages shown, evenly picked, with the last.
        scale: Enlargement, without smoothing.
    """
    check_positive(stages=len(stages), columns=columns)
    shown = min(columns, len(stages))
    picked = [stages[len(stages) - 1 - index * len(stages) // shown] for index in reversed(range(shown))]
    by_image = rearrange(torch.stack(picked), "stage image c h w -> (image stage) c h w")
    return image_grid(in_unit_range(by_image), columns=shown, scale=scale)


def save_image(image: Image.Image, path: str | os.PathLike[str]) -> None:
    """Save a picture atomically, in the format of the path's suffix."""
    with atomic_path(path) as temporary:
        image.save(temporary)


def check_new_folder(folder: str | os.PathLike[str]) -> None:
    """Raise `OSError` unless `folder` is empty, or can be made."""
    path = Path(folder)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{folder} is not an empty folder; give a new one for the images")
    check_writable(path)


def save_images(images: Tensor, folder: str | os.PathLike[str]) -> None:
    """Save images as 00000.png and on in a new or empty folder; all of them or none."""
    check_new_folder(folder)
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        for index, image in enumerate(quantised(_greys_or_colours(images))):
            to_pil_image(image).save(temporary / f"{index:05d}.png")


def save_gif(frames: Sequence[Image.Image], path: str | os.PathLike[str], seconds: float = 3.0) -> None:
    """Save an endless GIF of `seconds` up to the last frame, which stays for one more."""
    durations = [round(1000 * seconds / len(frames))] * (len(frames) - 1) + [1000]  # milliseconds
    with atomic_path(path) as temporary:
        frames[0].save(temporary, save_all=True, append_images=frames[1:], duration=durations, loop=0)
