"""FashionMNIST (Xiao et al. 2017): where its files come from, and how they become one tensor."""

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
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.datasets import FashionMNIST
from torchvision.datasets.utils import download_url

from denoiser.checks import check_positive, pair
from denoiser.data.image_set import ImageSet
from denoiser.files import atomic_path
from denoiser.plain import plain_arguments

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
COUNT = {"train": 60_000, "test": 10_000}
IMAGE_HEADER, LABEL_HEADER = 16, 8  # bytes before the data in an idx file of three dimensions and of one


@plain_arguments
def load_fashion_mnist(
    root: str | Path = "data", split: Literal["train", "test"] = "train", size: int | Sequence[int] = 16
) -> ImageSet:
    """Load one split of FashionMNIST at the size asked for.

    The files are looked for in `root` (itself, or torchvision's `FashionMNIST/raw` in it), then in the folder of the
    Debian package `dataset-fashion-mnist`, then downloaded from torchvision's mirrors into `root`. Each is checked by
    hash. The resized images are cached in `root`.

    Args:
        root: Data folder; made if missing.
        split: "train" (60,000 images) or "test" (10,000).
        size: Height and width, or one number for both. The images are 28x28; others are resized, antialiased.

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
    root = Path(root).expanduser()
    cache = root / f"fashion_mnist_{split}_{height}x{width}.safetensors"
    tensors = _read_cache(cache, (COUNT[split], 1, height, width))
    if tensors is None:
        tensors = _read_split(root, split)
        # As torchvision's resize does where the processor has AVX2, and with the same pixels where it has not.
        tensors["images"] = interpolate(tensors["images"], (height, width), mode="bilinear", antialias=True)
        _write_cache(cache, tensors)
    return ImageSet(tensors["images"], tensors["labels"], CLASS_NAMES)


def _read_split(root: Path, split: str) -> dict[str, Tensor]:
    images = _read_verified(root, f"{PREFIX[split]}-images-idx3-ubyte")[IMAGE_HEADER:]
    labels = _read_verified(root, f"{PREFIX[split]}-labels-idx1-ubyte")[LABEL_HEADER:]
    return {
        "images": rearrange(torch.frombuffer(images, dtype=torch.uint8), "(n h w) -> n 1 h w", h=28, w=28),
        "labels": torch.frombuffer(labels, dtype=torch.uint8).long(),
    }


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


def _read_cache(path: Path, shape: tuple[int, ...]) -> dict[str, Tensor] | None:
    """Return the cached tensors, or None if there are none or they are not as they were written."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in ("images", "labels")}
            images, labels = tensors["images"], tensors["labels"]
            fits = images.shape == shape and labels.shape == shape[:1]
            fits = fits and (images.dtype, labels.dtype) == (torch.uint8, torch.int64)
            if fits and (file.metadata() or {}).get("sha256") == _fingerprint(tensors):
                return tensors
    except SafetensorError as error:
        logger.warning("%s cannot be read (%s); making it anew", path, error)
        return None
    logger.warning("%s was altered; making it anew", path)
    return None


def _write_cache(path: Path, tensors: dict[str, Tensor]) -> None:
    try:
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, metadata={"sha256": _fingerprint(tensors)})
    except (OSError, SafetensorError) as error:
        logger.warning("the resized images are not cached: %s", error)


def _fingerprint(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(tensors[name].contiguous().numpy().data)
    return digest.hexdigest()
