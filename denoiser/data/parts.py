"""Decoded parts of a source, as files."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from denoiser.data.config import DataConfig
from denoiser.data.pictures import is_grey, readable, with_channels
from denoiser.files import atomic_path

NAMED = 5  # images that an error names


@dataclass(frozen=True)
class Part:
    """A decoded part of a source, in the order of its rows.

    Attributes:
        images: `(count, channels, height, width)`, uint8.
        rows: `(count,)` indices into the source, without those that cannot be read.
        digests: `(count,)` uint64, hashes of the images before their conversion.
        sizes: `(count, 2)` heights and widths before resizing.
        sums: `(count, 2, channels)`, sums of the values and of their squares.
        grey: Whether all pixels are grey.
        unread: JSON of the name and the reason of each image that cannot be read.
    """

    images: np.ndarray
    rows: np.ndarray
    digests: np.ndarray
    sizes: np.ndarray
    sums: np.ndarray
    grey: np.ndarray
    unread: np.ndarray

    @classmethod
    def of(
        cls,
        images: np.ndarray,
        rows: Sequence[int],
        digests: Sequence[int],
        sizes: Sequence[Sequence[int]],
        unread: Sequence[Sequence[str]],
    ) -> Self:
        """Return the part of some images, with their sums."""
        sums = [np.sum(values, axis=(2, 3), dtype=np.int64) for values in (images, np.square(images, dtype=np.uint16))]
        return cls(
            images,
            rows=np.array(rows, dtype=np.int64),
            digests=np.array(digests, dtype=np.uint64),
            sizes=np.array(sizes, dtype=np.int64).reshape(-1, 2),
            sums=np.stack(sums, axis=1),
            grey=np.array(images.shape[1] == 3 and is_grey(torch.from_numpy(images))),
            unread=np.array(json.dumps(unread)),
        )

    def save(self, path: Path) -> None:
        """Save the part atomically."""
        with atomic_path(path) as temporary:
            np.savez(temporary, **{field.name: getattr(self, field.name) for field in fields(self)})

    @classmethod
    def load(cls, path: Path) -> Self:
        """Load a part without its images."""
        with _opened(path) as saved:
            names = [field.name for field in fields(cls) if field.name != "images"]
            return cls(np.empty(0, dtype=np.uint8), **{name: saved[name] for name in names})


def images_of(path: Path) -> np.ndarray:
    """Return the images of a saved part."""
    with _opened(path) as saved:
        images: np.ndarray = saved["images"]
        return images


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    with readable(f"{path} is damaged; delete it, and start again"), np.load(path) as saved:
        yield saved


def parts_of(folder: Path) -> Path:
    """Return the folder of the parts of a set, while it is prepared."""
    return folder.with_name(f".{folder.name}.parts")


def digest_of(image: Tensor) -> int:
    """Return a hash of 64 bits of an image as decoded, which is the same for a grey one in one channel and in three."""
    image = with_channels(image, 3) if len(image) == 1 else image
    digest = hashlib.sha256(str(tuple(image.shape)).encode())
    digest.update(image.contiguous().numpy().data)
    return int.from_bytes(digest.digest()[:8], "big")


def check_read(unread: Sequence[Sequence[str]], config: DataConfig) -> None:
    """Raise `ValueError` with their names for images that cannot be read, unless they are to be skipped."""
    if not unread or config.unreadable == "skip":
        return
    named = "; ".join(f"{name} {reason}" for name, reason in unread[:NAMED])
    more = f"; and {len(unread) - NAMED:,} more" if len(unread) > NAMED else ""
    count = f"{len(unread):,} image" + "s" * (len(unread) > 1)
    raise ValueError(
        f"{count} of {config.source} cannot be used: {named}{more}. Repair or remove them, or give "
        "--data.unreadable skip"
    )
