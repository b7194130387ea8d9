"""FashionMNIST (Xiao et al. 2017): finding, checking and resizing its files."""

import gzip
import hashlib
import logging
import shutil
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.datasets import FashionMNIST
from torchvision.datasets.utils import download_url

from denoiser.checks import check_positive, pair, plain_arguments
from denoiser.data.image_set import ImageSet
from denoiser.files import atomic_path

logger = logging.getLogger(__name__)

CLASS_NAMES = tuple(FashionMNIST.classes)
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")

# Of the decompressed files: the .gz bytes differ from mirror to mirror.
BYTES = {
    "train-images-idx3-ubyte": 47_040_016,
    "train-labels-idx1-ubyte": 60_008,
    "t10k-images-idx3-ubyte": 7_840_016,
    "t10k-labels-idx1-ubyte": 10_008,
}
SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
PREFIX = {"train": "train", "test": "t10k"}
IMAGE_HEADER, LABEL_HEADER = 16, 8  # bytes before the data in an idx file of three dimensions and of one


@plain_arguments
def load_fashion_mnist(
    root: str | Path = "data", split: Literal["train", "test"] = "train", size: int | Sequence[int] = 16
) -> ImageSet:
    """Load one split of FashionMNIST at a given size.

    The files are looked for in `root`, in torchvision's `FashionMNIST/raw` there, and in the folder of
    the Debian package `dataset-fashion-mnist`. Otherwise torchvision's mirrors are asked. Each file is
    checked by hash.

    Args:
        root: Data folder.
        split: "train" (60,000 images) or "test" (10,000).
        size: Height and width, or one number for both. From 28x28, images are resized, antialiased.

    Returns:
        Images `(count, 1, height, width)` in uint8, with labels and class names.

    Raises:
        ValueError: If a file is corrupt, the split is unknown or the size not positive.
        FileNotFoundError: If a file is in none of the three places.
    """
    if split not in PREFIX:
        raise ValueError(f"split is '{split}'; it is one of {', '.join(PREFIX)}")
    height, width = pair(size)
    check_positive(height=height, width=width)
    images, labels = _read_split(Path(root).expanduser(), split)
    # torchvision's resize with AVX2; torch gives the same pixels on every processor
    return ImageSet(interpolate(images, (height, width), mode="bilinear", antialias=True), labels, CLASS_NAMES)


def _read_split(root: Path, split: str) -> tuple[Tensor, Tensor]:
    images = _read_verified(root, f"{PREFIX[split]}-images-idx3-ubyte")[IMAGE_HEADER:]
    labels = _read_verified(root, f"{PREFIX[split]}-labels-idx1-ubyte")[LABEL_HEADER:]
    pixels = rearrange(torch.frombuffer(images, dtype=torch.uint8), "(n h w) -> n 1 h w", h=28, w=28)
    return pixels, torch.frombuffer(labels, dtype=torch.uint8).long()


def _read_verified(root: Path, name: str) -> bytearray:
    """Return the decompressed bytes of one file, from the first place that has it."""
    path = _find(root, name) or _download(root, name)
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read(BYTES[name] + 1)  # and no more, however much an archive may hold
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is corrupt ({error}); {_expectation(name)}") from error
    if hashlib.sha256(content).hexdigest() != SHA256[name]:
        raise ValueError(f"{path} is corrupt; {_expectation(name)}")
    return bytearray(content)


def _expectation(name: str) -> str:
    return f"the SHA-256 of the decompressed file should be {SHA256[name]}; delete it to have it fetched again"


def _find(root: Path, name: str) -> Path | None:
    for folder in (root, root / "FashionMNIST" / "raw", DEBIAN_FOLDER):
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                return path
    return None


def _download(root: Path, name: str) -> Path:
    file_name = f"{name}.gz"
    path = root / "FashionMNIST" / "raw" / file_name
    for mirror in FashionMNIST.mirrors:
        with tempfile.TemporaryDirectory() as folder:
            try:
                download_url(f"{mirror}{file_name}", folder, md5=dict(FashionMNIST.resources)[file_name])
            except (OSError, RuntimeError) as error:  # no network, or not the file that was asked for
                logger.warning("no %s from %s: %s", file_name, mirror, error)
                continue
            with atomic_path(path) as temporary:
                shutil.copyfile(Path(folder) / file_name, temporary)
            return path
    raise FileNotFoundError(
        f"{name} (SHA-256 {SHA256[name]}) was not found: put FashionMNIST's four files into {root}, "
        "or install the Debian package dataset-fashion-mnist, or connect to the network for torchvision's download"
    )
