"""Picture files and arrays as uint8 tensors, and their fitting to a size."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from typing import IO, Literal

import numpy as np
import torch
from einops import rearrange
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn.functional import interpolate, pad

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
LARGEST_FILE = 1 << 28  # bytes of a picture file
Fit = Literal["crop", "pad", "stretch"]
Background = Literal["white", "black"]
# Weights of red, green and blue in grey, of 2^16: ITU-R 601-2 as Pillow rounds it.
LUMA = (19_595, 38_470, 7_471)


@contextmanager
def readable(failure: str) -> Iterator[None]:
    """Raise `ValueError`, with the reason, for what a library raises for a damaged file, which can be anything."""
    try:
        yield
    except MemoryError:  # which is not the file's
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{failure} ({reason})") from error


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Silence Pillow's own lines of odd files; a picture that is too large for it is an error."""
    logger = logging.getLogger("PIL")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    finally:
        logger.setLevel(level)


def check_bytes(size: int) -> None:
    """Raise `ValueError` for a picture file that is too large to be read."""
    if size > LARGEST_FILE:
        raise ValueError(f"is a file of {size:,} bytes; give at most {LARGEST_FILE:,}")


def read_picture(file: str | PathLike[str] | IO[bytes], background: Background = "white") -> Tensor:
    """Read the first frame of a picture file.

    Transparent pixels show the background, a rotation in EXIF is applied, 16-bit greys are rounded to 8
    bits, and CMYK and palettes become RGB.

    Args:
        file: Path or open file, in one of `FORMATS`.
        background: "white" or "black".

    Returns:
        uint8, `(1, height, width)` for greys, `(3, height, width)` for colours.

    Raises:
        ValueError: If the file cannot be read as a picture.
    """
    with readable("cannot be read as a picture"), Image.open(file, formats=FORMATS) as image:
        ImageOps.exif_transpose(image, in_place=True)
        pixels = _from_16_bits(image, background) if image.mode.startswith("I;16") else _pixels(image, background)
    return torch.from_numpy(pixels if pixels.ndim == 3 else pixels[..., None]).permute(2, 0, 1)


def _pixels(image: Image.Image, background: Background) -> np.ndarray:
    if image.mode in ("I", "F"):
        raise ValueError("its values have 32 bits; save it with 8 or 16")
    grey = image.mode in ("1", "L", "LA")
    if image.has_transparency_data:
        below = Image.new("RGBA", image.size, background)
        image = Image.alpha_composite(below, image.convert("RGBA"))
    mode = "L" if grey else "RGB"
    return np.array(image if image.mode == mode else image.convert(mode))


def _from_16_bits(image: Image.Image, background: Background) -> np.ndarray:
    """Round 16-bit greys to 8 bits."""
    levels = np.asarray(image).astype(np.int64)
    if "transparency" in image.info:  # the level that is transparent
        levels[levels == image.info["transparency"]] = 65_535 if background == "white" else 0
    return ((levels + 128) // 257).astype(np.uint8)


def as_pixels(array: np.ndarray, what: str) -> np.ndarray:
    """Convert image arrays to uint8 `(count, channels, height, width)`; `ValueError` for others.

    Args:
        array: `(count, height, width)`, or with channels second or last, of which the smaller axis is
            that of the channels; uint8 from 0 to 255, or floating from 0 to 1.
        what: Name of the array in errors.
    """
    if array.ndim not in (3, 4) or not array.size:
        raise ValueError(
            f"{what} has shape {array.shape}; give (count, height, width), or with channels second or last"
        )
    if array.ndim == 3:
        array = array[:, None]
    elif array.shape[3] < array.shape[1]:
        array = np.moveaxis(array, 3, 1)
    return as_levels(array, what)


def as_levels(array: np.ndarray, what: str) -> np.ndarray:
    """Convert image arrays from floating values, 0 to 1, to uint8, which is left as it is; `ValueError` for others."""
    if array.dtype == np.uint8:
        return array
    if not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"{what} has {array.dtype} images; give uint8 from 0 to 255, or floating from 0 to 1")
    if not (array >= 0).all() or not (array <= 1).all():  # so for nan
        raise ValueError(
            f"{what} has values from {array.min():.4g} to {array.max():.4g}; floating images go from 0 to 1"
        )
    return (array * 255).round().astype(np.uint8)


def with_channels(image: Tensor, channels: int) -> Tensor:
    """Convert a uint8 image, `(channels, height, width)`, between grey and colour; other numbers must agree."""
    if len(image) == channels:
        return image
    if len(image) == 1 and channels == 3:
        return image.expand(3, -1, -1)
    if len(image) == 3 and channels == 1:
        weights = torch.tensor(LUMA, dtype=torch.int32)[:, None, None]
        return ((image.int() * weights).sum(dim=0, keepdim=True) + (1 << 15) >> 16).byte()
    raise ValueError(f"has {len(image)} channels, not {channels}; only grey and colour are converted")


def fitted(image: Tensor, size: tuple[int, int], fit: Fit = "crop", background: Background = "white") -> Tensor:
    """Resize a uint8 image, `(channels, height, width)`, bilinearly and antialiased.

    Args:
        image: The image.
        size: Height and width of the result.
        fit: "crop" keeps the middle of the required shape, "pad" adds background at the sides, and
            "stretch" changes the shape.
        background: Colour of the padding.
    """
    height, width = size
    _, own_height, own_width = image.shape
    if (own_height, own_width) == size:
        return image
    wide = own_width * height > own_height * width  # wider than required
    if fit == "crop":
        cut_height, cut_width = own_height, own_width
        if wide:
            cut_width = max(1, round(own_height * width / height))
        else:
            cut_height = max(1, round(own_width * height / width))
        top, left = (own_height - cut_height) // 2, (own_width - cut_width) // 2
        return _resized(image[:, top : top + cut_height, left : left + cut_width], size)
    if fit == "pad":
        inner_height = max(1, round(own_height * width / own_width)) if wide else height
        inner_width = width if wide else max(1, round(own_width * height / own_height))
        top, left = (height - inner_height) // 2, (width - inner_width) // 2
        sides = left, width - inner_width - left, top, height - inner_height - top
        return pad(_resized(image, (inner_height, inner_width)), sides, value=255 if background == "white" else 0)
    return _resized(image, size)


def _resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    # torchvision's resize differs with AVX2; torch gives the same pixels on every processor
    return interpolate(image[None], size, mode="bilinear", antialias=True)[0]


def is_grey(images: Tensor) -> bool:
    """Return whether all pixels of uint8 images, `(count, 3, height, width)`, are grey."""
    return torch.equal(*rearrange(images[:, :2], "n c h w -> c n h w")) and torch.equal(images[:, 1], images[:, 2])
