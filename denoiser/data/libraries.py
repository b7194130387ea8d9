"""Sources of torchvision and of the library `datasets`: data sets by name, and parquet files."""

import hashlib
import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision import datasets as torchvision_datasets

from denoiser.checks import how_to_install
from denoiser.data.fashion_mnist import load_fashion_mnist
from denoiser.data.picture_files import size_and_time
from denoiser.data.pictures import Background, as_pixels, read_picture, readable
from denoiser.data.source import PREPARED_TOO, TESTING, Classes, Source, named, numbered, stamp_of
from denoiser.files import waiting_lock

BY_TRAIN, BY_SPLIT = [{"train": True}, {"train": False}], [{"split": "train"}, {"split": "test"}]
MAKERS: dict[str, Any] = {
    "mnist": (torchvision_datasets.MNIST, BY_TRAIN),
    "kmnist": (torchvision_datasets.KMNIST, BY_TRAIN),
    "emnist": (partial(torchvision_datasets.EMNIST, split="balanced"), BY_TRAIN),
    "cifar10": (torchvision_datasets.CIFAR10, BY_TRAIN),
    "cifar100": (torchvision_datasets.CIFAR100, BY_TRAIN),
    "svhn": (torchvision_datasets.SVHN, BY_SPLIT),
}
TORCHVISION = ("fashion_mnist", *MAKERS)
SECONDS = 20  # to wait for a server's answer
HELD_OUT = re.compile(rf"(?<![a-z])({'|'.join(TESTING)})(?![a-z])", re.IGNORECASE)  # in a path


def array_source(images: np.ndarray, classes: Classes, name: str, stamp: str, held_out: int = 0) -> Source:
    """Return images `(count, channels, height, width)` in uint8 as a source."""

    def read(index: int, _: Background) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(images[index]))

    names = [f"image {index} of {name}" for index in range(len(images))]
    return Source(names, read, stamp, *classes, held_out)


def torchvision_source(name: str, root: Path) -> Source:
    """Return a data set of torchvision, its test split held out."""
    if name == "fashion_mnist":
        sets = [load_fashion_mnist(root, split, 28) for split in ("train", "test")]
        splits = [(each.images.numpy(), np.asarray(each.labels)) for each in sets]
        class_names = sets[0].class_names
    else:
        splits, class_names = _downloaded(name, root)
    images, labels = (np.concatenate(parts) for parts in zip(*splits, strict=True))
    stamp = hashlib.sha256(np.ascontiguousarray(images).data).hexdigest()
    return array_source(images, (labels.astype(np.int64), class_names), name, stamp, held_out=len(splits[1][0]))


def _downloaded(name: str, root: Path) -> tuple[list[tuple[np.ndarray, np.ndarray]], tuple[str, ...]]:
    """Return both splits of a data set of torchvision, from `root` or its mirrors, and the class names."""
    maker, options = MAKERS[name]
    try:
        with (
            waiting_lock(root / f".{name}.lock"),
            _quiet(),
            readable(f"{name} cannot be read from {root}, nor downloaded"),
        ):
            sets = [maker(root, download=True, **option) for option in options]
    except ValueError as error:
        raise FileNotFoundError(f"{error}; put its files there, or connect to the network") from error
    splits = []
    for each in sets:
        images = np.asarray(each.data)
        if name == "emnist":  # whose images are stored with rows and columns changed
            images = images.swapaxes(1, 2)
        if name != "svhn":  # which has channels second
            images = as_pixels(images, name)
        splits.append((images, np.asarray(each.labels if name == "svhn" else each.targets)))
    class_names = [str(entry).split(" - ")[-1] for entry in getattr(sets[0], "classes", range(10))]  # "0 - zero"
    if name == "emnist":  # names do not differ by case alone
        class_names = [f"small {entry}" if entry.islower() else entry for entry in class_names]
    return splits, tuple(class_names)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence torchvision's lines and bars, and wait for no server longer than `SECONDS`."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SECONDS)
    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            yield
    finally:
        socket.setdefaulttimeout(before)


def _datasets(name: str) -> Any:
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{name} is no folder of pictures, and parquet files and data sets of the Hub need {error.name}: "
            f"{how_to_install('datasets')}"
        ) from error
    return datasets


def parquet_source(paths: Sequence[Path], place: Path, labels: bool) -> Source:
    """Return the images of a parquet file, or of a folder of them, whose test and validation splits are held out."""
    name = str(place)
    library = _datasets(name)
    held_out = [path for path in paths if HELD_OUT.search(str(path.relative_to(place)))]
    splits = [[path for path in paths if path not in held_out], held_out]
    library.disable_progress_bars()
    with readable(f"{name} cannot be read as parquet"):
        tables = [library.Dataset.from_parquet([str(path) for path in split]) for split in splits if split]
    stamp = stamp_of([(path.name, str(path.relative_to(place)), *size_and_time(path)) for path in paths])
    return _table_source(tables, name, stamp, labels)


def hub_source(name: str, labels: bool) -> Source:
    """Return a data set of the Hugging Face Hub, from its cache or the network."""
    library = _datasets(name)
    try:
        with (
            readable(f"{name} is neither a path here nor a data set that the Hugging Face Hub gives"),
            _offline_if(name),
        ):
            splits = library.load_dataset(name)
    except ValueError as error:
        raise FileNotFoundError(f"{error}; connect to the network, or give a folder; {PREPARED_TOO}") from error
    first = "train" if "train" in splits else next(iter(splits))
    other = [split for split in ("test", "validation") if split in splits and split != first][:1]
    tables = [splits[split] for split in (first, *other)]
    return _table_source(tables, name, stamp_of([table._fingerprint for table in tables]), labels)


@contextmanager
def _offline_if(name: str) -> Iterator[None]:
    """Let the libraries look into their cache alone if the Hub does not answer, or they try for half a minute."""
    from datasets import config
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError

    before = constants.HF_HUB_OFFLINE, config.HF_HUB_OFFLINE
    try:
        HfApi().dataset_info(name, timeout=SECONDS)
    except HfHubHTTPError:  # an answer, which is for the library to tell
        pass
    except Exception:  # of several kinds of clients
        constants.HF_HUB_OFFLINE = config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, config.HF_HUB_OFFLINE = before


def _table_source(tables: Sequence[Any], name: str, stamp: str, with_labels: bool) -> Source:
    """Return the images of tables of the library `datasets`, the second of which is held out."""
    library, features = _datasets(name), tables[0].features
    if any(table.features != features for table in tables):
        raise ValueError(f"{name} has other columns for training than for testing; give tables of one kind")
    columns = [column for column, kind in features.items() if _holds_pictures(kind, library)]
    if len(columns) != 1:
        raise ValueError(f"{name} has {len(columns)} columns of pictures, among {', '.join(features)}; give one")
    column = columns[0]
    if isinstance(features[column], library.Image):
        tables = [table.cast_column(column, library.Image(decode=False)) for table in tables]
    classes = _table_classes(tables, name) if with_labels else (None, ())
    starts = np.cumsum([0, *map(len, tables)])

    def read(index: int, background: Background) -> Tensor:
        with readable("cannot be read"):
            which = int(np.searchsorted(starts, index, side="right")) - 1
            value = tables[which][int(index - starts[which])][column]
            content = value.get("bytes") if isinstance(value, dict) else value
            if content is None:
                content = Path(value["path"]).read_bytes()
        return read_picture(BytesIO(content), background)

    names = [f"row {index} of {name}" for index in range(starts[-1])]
    return Source(names, read, stamp, *classes, held_out=sum(map(len, tables[1:])))


def _holds_pictures(kind: Any, library: Any) -> bool:
    """Return whether a column has pictures: as the library marks them, or as bytes."""
    if isinstance(kind, dict):
        return "bytes" in kind
    return isinstance(kind, library.Image) or (isinstance(kind, library.Value) and kind.dtype.endswith("binary"))


def _table_classes(tables: Sequence[Any], name: str) -> Classes:
    """Return the classes of the column of labels: that of the name, or the first of the library's kind."""
    features = tables[0].features
    marked = [key for key, kind in features.items() if hasattr(kind, "names")]
    key = next((key for key in ("label", "labels", *marked) if key in features), None)
    if key is None or not len(tables[0]):
        return None, ()
    values = [value for table in tables for value in table.data.column(key).to_pylist()]
    if hasattr(features[key], "names"):
        return np.array([-1 if value is None else value for value in values]), tuple(features[key].names)
    if all(isinstance(value, str) for value in values):
        return named(values)
    return numbered(np.array(values), name)
