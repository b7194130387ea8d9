"""Values of command-line options: seeds, labels, images and paths."""

import os
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from denoiser.checks import check_seed
from denoiser.data.pictures import as_levels
from denoiser.files import check_writable
from pipelines.classes import Label
from pipelines.evaluation.judge_networks import IMAGE_SHAPE, NUM_CLASSES

PICTURES = (".png", ".jpg", ".webp")  # suffixes of a picture
MOST_SEEDS = 1_000_000
FEWEST_OF_A_CLASS = 100
LARGEST_FILE = 1 << 30  # bytes in memory: a hundred times what can be judged


def load_images(
    path: Path,
    shape: tuple[int, int, int] = IMAGE_SHAPE,
    num_classes: int = NUM_CLASSES,
    fewest_of_a_class: int = FEWEST_OF_A_CLASS,
) -> tuple[Tensor, Tensor | None]:
    """Load images and, if the file has them, labels.

    Args:
        path: A PNG file, a folder of them, in the order of their names, or an `.npz` file with "images"
            (or a single array of any name) and optional "labels". Images are `(count, height, width)`,
            or with channels second or last, uint8 from 0 to 255 or floating from 0 to 1.
        shape: Required channels (1 or 3 for PNG files), height and width.
        num_classes: Labels go from 0 to below this.
        fewest_of_a_class: Number of images that each class needs, if there are labels.

    Returns:
        uint8 `(count, channels, height, width)`, and int64 `(count,)` or None.

    Raises:
        FileNotFoundError: If there is no such folder or file, or no PNG in the folder.
        ValueError: If there is no image, or one is damaged, or of another size or range.
    """
    if path.is_dir():
        files = sorted(path.glob("*.png"))
        if not files:
            raise FileNotFoundError(f"{path} has no PNG files")
        return torch.stack([_read_png(file, shape) for file in files]), None
    if not path.is_file():
        raise FileNotFoundError(f"{path} is neither a PNG file or a folder of them, nor an .npz file")
    if path.suffix.lower() == ".png":
        return _read_png(path, shape)[None], None
    arrays = _read_npz(path)
    labels = arrays.pop("labels", None)
    if "images" not in arrays and len(arrays) != 1:
        raise ValueError(f"{path} has the arrays {', '.join(arrays) or 'none'}; call that of the images 'images'")
    images = _as_images(arrays.get("images", next(iter(arrays.values()))), path, shape)
    return images, None if labels is None else _as_labels(labels, len(images), path, num_classes, fewest_of_a_class)


def _read_png(path: Path, shape: tuple[int, int, int]) -> Tensor:
    channels, height, width = shape
    mode = "L" if channels == 1 else "RGB"
    try:
        with Image.open(path, formats=["PNG"]) as image:
            if image.size != (width, height) or image.mode != mode:  # before decoding it
                raise ValueError(
                    f"{path} is {image.size[0]}x{image.size[1]} {image.mode}; it must be {width}x{height} {mode}"
                )
            return torch.from_numpy(np.array(image)).reshape(height, width, channels).movedim(-1, 0)
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError) as error:
        raise ValueError(f"{path} cannot be read as a PNG: {error}") from error


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size <= LARGEST_FILE:
            with np.load(path, allow_pickle=False) as file:
                arrays = dict(file)
            if any(not isinstance(array, np.ndarray) for array in arrays.values()):
                raise ValueError("it holds files that are not arrays")
            return arrays
    except (zipfile.BadZipFile, zlib.error, ValueError, OSError, EOFError, RuntimeError) as error:
        raise ValueError(f"{path} cannot be read as an .npz file: {error}") from error
    raise ValueError(f"{path} unpacks to {size:,} bytes; give at most {LARGEST_FILE:,}")


def _as_images(array: np.ndarray, path: Path, shape: tuple[int, int, int]) -> Tensor:
    channels, *size = shape
    if array.shape[1:] == (*size, channels):
        array = np.moveaxis(array, -1, 1)
    elif channels == 1 and array.shape[1:] == tuple(size):
        array = array[:, None]
    if array.shape[1:] != shape:
        raise ValueError(f"{path} has images of shape {array.shape[1:]}; it must be {shape} (channels, height, width)")
    if not len(array):
        raise ValueError(f"{path} has no images; give at least one")
    return torch.from_numpy(as_levels(array, str(path)).copy())


def _as_labels(array: np.ndarray, count: int, path: Path, num_classes: int, fewest: int) -> Tensor:
    if array.shape != (count,) or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{path} has labels of shape {array.shape} and type {array.dtype}; give {count} whole numbers")
    if array.min() < 0 or array.max() >= num_classes:
        raise ValueError(f"{path} has labels from {array.min()} to {array.max()}; they go from 0 to {num_classes - 1}")
    if (least := np.bincount(array, minlength=num_classes).min()) < fewest:
        wanted = f"{fewest} of each of the {num_classes}"
        raise ValueError(f"{path} has {least} images labelled as one class; give {wanted}, or leave the labels out")
    return torch.from_numpy(array.astype(np.int64))


def parse_seeds(text: str) -> list[int]:
    """Parse seeds such as `3,17,100-120`, the ends of a range included."""
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ValueError(f"seeds '{text}' cannot be read at '{part}'; write them such as 3,17,100-120")
        lowest, highest = int(first), int(last or first)
        if lowest > highest:
            raise ValueError(f"seeds '{text}': the range '{part}' is empty; give the lower number first")
        check_seed(highest)
        if len(seeds) + highest - lowest >= MOST_SEEDS:
            raise ValueError(f"seeds '{text}' names more than {MOST_SEEDS:,}; sample them in parts")
        seeds += range(lowest, highest + 1)
    return seeds


def parse_labels(text: str) -> list[Label] | None:
    """Parse classes such as `sneaker,8,sneaker:2+bag`, mixtures with weights; None for `all`."""
    if text == "all":
        return None
    return [_parse_label(part.strip()) for part in text.split(",")]


def _parse_label(text: str) -> Label:
    if not {"+", ":"} & set(text):
        return text
    mixture: dict[int | str, float] = {}
    for part in text.split("+"):
        name, _, weight = part.partition(":")
        try:
            mixture[name.strip()] = mixture.get(name.strip(), 0) + float(weight or 1)
        except ValueError:
            raise ValueError(
                f"label '{text}': the weight '{weight}' is no number; write it such as sneaker:2+bag:1"
            ) from None
    return mixture


def check_picture_path(path: str | os.PathLike[str], *suffixes: str) -> None:
    """Raise `ValueError` or `OSError` if no picture with one of the suffixes can be written to `path`."""
    if Path(path).suffix.lower() not in suffixes:
        raise ValueError(f"{path} has no suffix among {', '.join(suffixes)}, which say what is written")
    if Path(path).is_dir():
        raise IsADirectoryError(f"{path} is a folder; give the picture another name")
    check_writable(path)


def check_apart(pictures: Sequence[str | os.PathLike[str]], folder: str | os.PathLike[str] | None = None) -> None:
    """Raise `ValueError` if two pictures have the same path, or one lies in the images' folder."""
    places = [Path(path).resolve() for path in pictures]
    for index, (path, place) in enumerate(zip(pictures, places, strict=True)):
        if place in places[:index]:
            raise ValueError(f"{path} is named for two pictures; give each a name of its own")
        if folder is not None and Path(folder).resolve() in (place, *place.parents):
            raise ValueError(f"{path} is in {folder}, the new folder for the images; give the picture another place")
