"""What image sets are made from: folders, zip files, arrays, and data sets of torchvision and the Hugging Face Hub."""

import hashlib
import json
import os
import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision import datasets as torchvision_datasets

from denoiser.checks import did_you_mean
from denoiser.data.fashion_mnist import load_fashion_mnist
from denoiser.data.pictures import LARGEST_FILE, SUFFIXES, Background, as_pixels, read_picture

TORCHVISION = ("fashion_mnist", "mnist", "kmnist", "emnist", "cifar10", "cifar100", "svhn")
FILES = (".zip", ".npz", ".npy", ".parquet")
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
LABELS_FILE = "dataset.json"  # of zip files, as the tools of EDM and StyleGAN write them


@dataclass(frozen=True)
class Source:
    """Images that a set is made from.

    Attributes:
        names: Name of each image, for errors.
        read: Reads the image of an index, `(channels, height, width)` in uint8, over a background where
            it is transparent. Raises `ValueError` or `OSError` for an image that cannot be read.
        stamp: Text that changes when an image does.
        labels: Class of each image; None without classes.
        class_names: Name of each class.
        held_out: Number of images at the end that are the source's own held-out split.
    """

    names: Sequence[str]
    read: Callable[[int, Background], Tensor]
    stamp: str
    labels: np.ndarray | None = None
    class_names: tuple[str, ...] = ()
    held_out: int = 0

    def __len__(self) -> int:
        return len(self.names)


def find_source(source: str, root: Path, labels: bool = True) -> Source:
    """Return the source of a name or path, without its classes unless `labels`.

    Raises:
        ValueError: If it has no image, or its classes are not clear.
        FileNotFoundError: If there is none.
        ImportError: If an extra is needed that is not installed.
    """
    path = Path(source).expanduser()
    if source in TORCHVISION:
        found = _torchvision_set(source, root)
    elif path.is_dir():
        parquet = sorted(path.rglob("*.parquet"))
        found = _parquet(parquet, str(path)) if parquet else _folder(path, labels)
    elif path.is_file():
        found = _file(path, labels)
    elif HUB_NAME.fullmatch(source):
        found = _hub_set(source)
    else:
        known = ", ".join(TORCHVISION)
        raise FileNotFoundError(
            f"{source} is neither a folder, nor a file, nor a data set{did_you_mean(source, TORCHVISION)}; give one of "
            f"{known}, user/name of the Hugging Face Hub, or a path"
        )
    if not len(found):
        raise ValueError(f"{source} has no images; give a source with some")
    if found.labels is not None and labels:
        _check_labels(found, source)
        return found
    return Source(found.names, found.read, found.stamp, held_out=found.held_out)


def _check_labels(source: Source, name: str) -> None:
    """Raise `ValueError` unless each class has an image and a name of its own."""
    labels, class_names = source.labels, source.class_names
    assert labels is not None
    by_lower: dict[str, str] = {}
    for class_name in class_names:
        if (other := by_lower.setdefault(class_name.lower(), class_name)) is not class_name:
            raise ValueError(f"{name} has two classes of the same name, {other} and {class_name}; rename one")
    if labels.min() < 0 or labels.max() >= len(class_names):
        raise ValueError(
            f"{name} has labels from {labels.min()} to {labels.max()}, and {len(class_names)} classes; number them "
            "from 0"
        )
    counts = np.bincount(labels, minlength=len(class_names))
    if (empty := int(counts.argmin())) >= 0 and not counts[empty]:
        raise ValueError(
            f"{name} has no image of the class {class_names[empty]}; remove the class, or number the labels without "
            "gaps, or leave them out (labels false)"
        )


def _numbered(labels: np.ndarray, name: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return labels as int64, and their numbers as class names."""
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{name} has labels of shape {labels.shape} and type {labels.dtype}; give whole numbers")
    return labels.astype(np.int64), tuple(map(str, range(int(labels.max()) + 1)))


def _stamp(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


# folders and zip files


def _by_class(paths: Sequence[Path], labels: bool, where: str) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Return classes by the first folder of relative paths; None if the pictures lie flat, or in one folder."""
    tops = [path.parts[0] if len(path.parts) > 1 else "" for path in paths]
    class_names = tuple(sorted(set(tops)))
    if len(class_names) < 2 or not labels:
        return None, ()
    if "" in class_names:
        raise ValueError(
            f"{where} has pictures beside folders of pictures; give each class a folder of its own, or leave the "
            "classes out (labels false)"
        )
    by_name = {name: index for index, name in enumerate(class_names)}
    return np.array([by_name[top] for top in tops], dtype=np.int64), class_names


def _folder(folder: Path, labels: bool) -> Source:
    """Return the pictures in a folder and its sub-folders; links are followed, each folder once."""
    files = sorted(_pictures(folder))
    paths = [path.relative_to(folder) for path in files]
    classes, class_names = _by_class(paths, labels, str(folder))
    if labels and (classes is not None):
        inner = {entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")}
        if empty := sorted(inner - set(class_names)):
            raise ValueError(
                f"{folder} has no picture of the class {empty[0]}; remove the folder, or leave the classes out (labels "
                "false)"
            )
    facts = [(path.as_posix(), *_size_and_time(file)) for path, file in zip(paths, files, strict=True)]

    def read(index: int, background: Background) -> Tensor:
        if (size := files[index].stat().st_size) > LARGEST_FILE:
            raise ValueError(f"is a file of {size:,} bytes; give at most {LARGEST_FILE:,}")
        return read_picture(files[index], background)

    return Source([str(file) for file in files], read, _stamp(facts), classes, class_names)


def _pictures(folder: Path) -> Iterator[Path]:
    """Yield the picture files of a folder and its sub-folders, without hidden ones."""
    seen = set()
    for where, inner, files in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(where)) in seen:
            inner.clear()
            continue
        seen.add(real)
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        for name in files:
            if not name.startswith(".") and name.lower().endswith(SUFFIXES):
                yield Path(where, name)


def _size_and_time(path: Path) -> tuple[int, int]:
    """Return the size and the time of change of a file; zeros for a broken link, which is told when it is read."""
    try:
        facts = path.stat()
    except OSError:
        return 0, 0
    return facts.st_size, facts.st_mtime_ns


def _file(path: Path, labels: bool) -> Source:
    match path.suffix.lower():
        case ".zip":
            return _zip(path, labels)
        case ".npz" | ".npy":
            return _arrays(path)
        case ".parquet":
            return _parquet([path], str(path))
    raise ValueError(f"{path} has no suffix among {', '.join(FILES)}; a set of pictures is a folder")


def _zip(path: Path, labels: bool) -> Source:
    """Return the pictures in a zip file, with the labels of its `dataset.json` if it has one."""
    try:
        archive = _archive(path, os.getpid())
    except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
        raise ValueError(f"{path} cannot be read as a zip file ({error})") from error
    entries = sorted(
        (
            entry
            for entry in archive.infolist()
            if entry.filename.lower().endswith(SUFFIXES)
            and not any(part.startswith((".", "__MACOSX")) for part in Path(entry.filename).parts)
        ),
        key=lambda entry: entry.filename,
    )
    names = [entry.filename for entry in entries]
    if LABELS_FILE in archive.namelist():
        classes, class_names = _edm_labels(archive, names, path) if labels and entries else (None, ())
    else:
        classes, class_names = _by_class([Path(name) for name in names], labels, str(path))

    def read(index: int, background: Background) -> Tensor:
        entry = entries[index]
        if entry.file_size > LARGEST_FILE:
            raise ValueError(f"unpacks to {entry.file_size:,} bytes; give at most {LARGEST_FILE:,}")
        try:
            with _archive(path, os.getpid()).open(entry) as file:
                return read_picture(file, background)
        except (zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:  # also of an encrypted file
            raise ValueError(f"cannot be read ({error})") from error

    facts = [(entry.filename, entry.CRC, entry.file_size) for entry in entries]
    labelled = None if classes is None else classes.tolist()
    shown = [f"{path}/{name}" for name in names]
    return Source(shown, read, _stamp(facts, labelled), classes, class_names)


@lru_cache(maxsize=4)
def _archive(path: Path, process: int) -> zipfile.ZipFile:
    """Open a zip file once in a process: forked ones would move each other's place in it."""
    return zipfile.ZipFile(path)


def _edm_labels(
    archive: zipfile.ZipFile, names: Sequence[str], path: Path
) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Return the labels of `dataset.json`: `{"labels": [["00000/img00000000.png", 6], …]}`, or null for none."""
    try:
        content = json.loads(archive.read(LABELS_FILE))
        pairs = content.get("labels")
        if pairs is None:
            return None, ()
        by_name = {str(name).replace("\\", "/"): label for name, label in pairs}
        labels = np.array([by_name[name] for name in names])
    except KeyError as error:
        raise ValueError(f"{path}: {LABELS_FILE} has no label for {error}; give each picture one") from error
    except (ValueError, TypeError, AttributeError, RecursionError, zipfile.BadZipFile, RuntimeError) as error:
        raise ValueError(f"{path}: {LABELS_FILE} cannot be read ({' '.join(str(error).split())})") from error
    return _numbered(labels, f"{path}: {LABELS_FILE}")


# arrays


def _arrays(path: Path) -> Source:
    """Return the images of an .npy file, or of an .npz file with "images" and, if there are, "labels"."""
    try:
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
        arrays = {"images": loaded} if isinstance(loaded, np.ndarray) else {name: loaded[name] for name in loaded}
    except Exception as error:  # numpy's reader raises anything for a damaged file
        raise ValueError(f"{path} cannot be read as arrays ({' '.join(str(error).split())})") from error
    given = arrays.pop("labels", None)
    if "images" not in arrays and len(arrays) != 1:
        raise ValueError(f"{path} has the arrays {', '.join(arrays) or 'none'}; call that of the images 'images'")
    images = as_pixels(arrays.get("images", next(iter(arrays.values()))), str(path))
    labels, class_names = (None, ()) if given is None else _numbered(given, str(path))
    if labels is not None and len(labels) != len(images):
        raise ValueError(f"{path} has {len(labels)} labels for {len(images)} images; give one for each")
    return _of_arrays(images, labels, class_names, str(path), _stamp(str(path.absolute()), *_size_and_time(path)))


def _of_arrays(
    images: np.ndarray,
    labels: np.ndarray | None,
    class_names: tuple[str, ...],
    name: str,
    stamp: str,
    held_out: int = 0,
) -> Source:
    """Return images `(count, channels, height, width)` in uint8 as a source."""

    def read(index: int, _: Background) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(images[index]))

    return Source(
        [f"image {index} of {name}" for index in range(len(images))], read, stamp, labels, class_names, held_out
    )


# torchvision


def _torchvision_set(name: str, root: Path) -> Source:
    """Return a data set of torchvision, its test split held out."""
    if name == "fashion_mnist":
        sets = [load_fashion_mnist(root, split, 28) for split in ("train", "test")]
        splits = [(each.images.numpy(), np.asarray(each.labels)) for each in sets]
        class_names = sets[0].class_names
    else:
        splits, class_names = _downloaded(name, root)
    images, labels = (np.concatenate(parts) for parts in zip(*splits, strict=True))
    stamp = hashlib.sha256(np.ascontiguousarray(images).data).hexdigest()
    return _of_arrays(images, labels.astype(np.int64), class_names, name, stamp, held_out=len(splits[1][0]))


def _downloaded(name: str, root: Path) -> tuple[list[tuple[np.ndarray, np.ndarray]], tuple[str, ...]]:
    """Return both splits of a data set of torchvision, from `root` or its mirrors, and the class names."""
    maker, options = {
        "mnist": (torchvision_datasets.MNIST, [{"train": True}, {"train": False}]),
        "kmnist": (torchvision_datasets.KMNIST, [{"train": True}, {"train": False}]),
        "emnist": (partial(torchvision_datasets.EMNIST, split="balanced"), [{"train": True}, {"train": False}]),
        "cifar10": (torchvision_datasets.CIFAR10, [{"train": True}, {"train": False}]),
        "cifar100": (torchvision_datasets.CIFAR100, [{"train": True}, {"train": False}]),
        "svhn": (torchvision_datasets.SVHN, [{"split": "train"}, {"split": "test"}]),
    }[name]
    try:
        sets = [maker(root, download=True, **option) for option in options]
    except (OSError, RuntimeError, ModuleNotFoundError) as error:  # scipy reads svhn
        reason = " ".join(str(error).split())
        raise FileNotFoundError(
            f"{name} is not in {root}, and cannot be downloaded ({reason}); put its files there, or connect to the "
            "network"
        ) from error
    splits = []
    for each in sets:
        images = np.asarray(each.data)
        if name == "emnist":  # whose images are stored with rows and columns changed
            images = images.swapaxes(1, 2)
        if name != "svhn":  # which has channels second
            images = as_pixels(images, name)
        splits.append((images, np.asarray(each.labels if name == "svhn" else each.targets)))
    class_names: Sequence[Any] = getattr(sets[0], "classes", range(10))
    return splits, tuple(str(entry).split(" - ")[-1] for entry in class_names)  # "0 - zero"


# parquet files and the Hugging Face Hub


def _datasets() -> Any:
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise ImportError(f"{error}; pip install 'denoiser[datasets]'") from error
    return datasets


def _parquet(paths: Sequence[Path], name: str) -> Source:
    """Return the images of local parquet files, whose names tell a test or validation split."""
    library = _datasets()
    held_out = [path for path in paths if re.search("test|validation", path.name)]
    splits = [[path for path in paths if path not in held_out], held_out]
    if not splits[0]:
        splits = [held_out, []]
    try:
        tables = [library.Dataset.from_parquet([str(path) for path in split]) for split in splits if split]
    except Exception as error:  # pyarrow and datasets raise their own kinds for a damaged file
        raise ValueError(f"{name} cannot be read as parquet ({' '.join(str(error).split())})") from error
    return _of_tables(tables, name, _stamp([(path.name, *_size_and_time(path)) for path in paths]))


def _hub_set(name: str) -> Source:
    """Return a data set of the Hugging Face Hub, from its cache or the network."""
    library = _datasets()
    try:
        splits = library.load_dataset(name)
    except Exception as error:  # of the network, the Hub or the data set, each with its own kinds
        reason = " ".join(str(error).split())
        raise FileNotFoundError(
            f"{name} is neither a path here nor a data set that the Hugging Face Hub gives ({reason}); connect to the "
            "network, or give a folder"
        ) from error
    first = "train" if "train" in splits else next(iter(splits))
    other = next((split for split in ("test", "validation") if split in splits and split != first), None)
    tables = [splits[first], *([splits[other]] if other else [])]
    return _of_tables(tables, name, _stamp([table._fingerprint for table in tables]))


def _of_tables(tables: Sequence[Any], name: str, stamp: str) -> Source:
    """Return the images of tables of the library `datasets`, the second of which is held out."""
    library, features = _datasets(), tables[0].features
    kinds = [column for column, kind in features.items() if _holds_pictures(kind, library)]
    if len(kinds) != 1:
        raise ValueError(f"{name} has {len(kinds)} columns of pictures, among {', '.join(features)}; give one with one")
    column = kinds[0]
    named = [key for key, kind in features.items() if isinstance(kind, library.ClassLabel)]
    key = next((key for key in ("label", "labels", *named) if key in features), None)
    if isinstance(features[column], library.Image):
        tables = [table.cast_column(column, library.Image(decode=False)) for table in tables]
    labels, class_names = (None, ()) if key is None else _labels_of_tables(tables, key, name)
    starts = np.cumsum([0, *map(len, tables)])

    def read(index: int, background: Background) -> Tensor:
        which = int(np.searchsorted(starts, index, side="right")) - 1
        value = tables[which][int(index - starts[which])][column]
        content = value.get("bytes") if isinstance(value, dict) else value
        if content is None and not (isinstance(value, dict) and value.get("path")):
            raise ValueError("is empty")
        if content is None:
            return read_picture(value["path"], background)
        return read_picture(BytesIO(content), background)

    names = [f"row {index} of {name}" for index in range(starts[-1])]
    return Source(names, read, stamp, labels, class_names, held_out=len(tables[1]) if len(tables) > 1 else 0)


def _holds_pictures(kind: Any, library: Any) -> bool:
    """Return whether a column has pictures: as the library marks them, or as bytes."""
    if isinstance(kind, dict):
        return "bytes" in kind
    return isinstance(kind, library.Image) or (isinstance(kind, library.Value) and kind.dtype.endswith("binary"))


def _labels_of_tables(tables: Sequence[Any], key: str, name: str) -> tuple[np.ndarray, tuple[str, ...]]:
    values = [value for table in tables for value in table[key]]
    kind = tables[0].features[key]
    if hasattr(kind, "names"):
        return np.array(values, dtype=np.int64), tuple(kind.names)
    if all(isinstance(value, str) for value in values):
        class_names = tuple(sorted(set(values)))
        by_name = {entry: index for index, entry in enumerate(class_names)}
        return np.array([by_name[value] for value in values], dtype=np.int64), class_names
    return _numbered(np.array(values), name)
