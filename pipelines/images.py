"""Pictures of many images: a grid, and a film of grids."""

import math
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image
from torchvision.utils import make_grid

from denoiser.checks import check_positive
from denoiser.files import atomic_path, check_writable


def quantised(images: Tensor) -> Tensor:
    """Return images in [0, 1] as the nearest of 256 grey levels, uint8."""
    return (images * 255).round().byte()


def image_grid(images: Tensor, columns: int | None = None, scale: int = 4) -> Image.Image:
    """Lay images out row by row, each pixel `scale` pixels wide.

    Args:
        images: `(count, channels, height, width)` in [0, 1].
        columns: Images in a row; as many as rows if None.
        scale: Enlargement, without smoothing.
    """
    columns = math.ceil(math.sqrt(len(images))) if columns is None else columns
    check_positive(columns=columns, scale=scale)
    large = images.repeat_interleave(scale, dim=2).repeat_interleave(scale, dim=3)
    return to_pil_image(quantised(make_grid(large, nrow=columns, padding=scale // 2, pad_value=0.5)).cpu())


def check_picture_path(path: str | os.PathLike[str], *suffixes: str) -> None:
    """Raise `ValueError` or `OSError` if a picture with one of the suffixes cannot be written to `path`."""
    if Path(path).suffix.lower() not in suffixes:
        raise ValueError(f"{path} has no suffix among {', '.join(suffixes)}, which say what is written")
    if Path(path).is_dir():
        raise IsADirectoryError(f"{path} is a folder; give the picture another name")
    check_writable(path)


def check_new_folder(folder: str | os.PathLike[str]) -> None:
    """Raise `OSError` if a new folder cannot be made, or something stands in its place, an empty folder aside."""
    path = Path(folder)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{folder} is not an empty folder; give a new one for the images")
    check_writable(path)


def save_image(image: Image.Image, path: str | os.PathLike[str]) -> None:
    """Write a picture, whole or not at all; its format follows from the path's suffix."""
    with atomic_path(path) as temporary:
        image.save(temporary)


def save_images(images: Tensor, folder: str | os.PathLike[str]) -> None:
    """Write one PNG an image, 00000.png and on, to a new or empty folder; all of them or none.

    Raises:
        FileExistsError: If the folder has files already.
    """
    check_new_folder(folder)
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        for index, image in enumerate(quantised(images)):
            to_pil_image(image).save(temporary / f"{index:05d}.png")


def save_gif(frames: Sequence[Image.Image], path: str | os.PathLike[str], seconds: float = 3.0) -> None:
    """Write frames as an endless GIF that takes `seconds` to the last frame and rests on it for one more."""
    durations = [round(1000 * seconds / len(frames))] * (len(frames) - 1) + [1000]  # milliseconds
    with atomic_path(path) as temporary:
        frames[0].save(temporary, save_all=True, append_images=frames[1:], duration=durations, loop=0)


def denoising_frames(steps: Sequence[Tensor], columns: int | None = None) -> list[Image.Image]:
    """Turn the noisy images after each step, `(count, channels, height, width)` in [-1, 1], into one grid a step."""
    return [image_grid((torch.as_tensor(step) / 2 + 0.5).clamp(0, 1), columns) for step in steps]
