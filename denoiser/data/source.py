"""The images that a set is made from, and their classes."""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import numpy as np
from torch import Tensor

from denoiser.data.pictures import Background

Classes = tuple[np.ndarray | None, tuple[str, ...]]  # label of each image, and name of each class
Parts = tuple[str, ...]  # of a relative path
TRAINING = ("train", "training")
TESTING = ("test", "testing", "val", "valid", "validation", "dev", "eval", "evaluation")
PREPARED_TOO = "the folder of a prepared set is a source too"
WITHOUT = "leave the classes out (labels false)"


@dataclass(frozen=True)
class Source:
    """Images that a set is made from.

    Attributes:
        names: Name of each image, for errors.
        read: Reads the image of an index, `(channels, height, width)` in uint8, over a background where
            it is transparent. Raises `ValueError` for an image that cannot be read.
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


def path_of(text: str) -> Path:
    """Return a path, with the home folder for ~ if there is one."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)


def stamp_of(*parts: object) -> str:
    """Return a hash of what tells one source from another."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def numbered(labels: np.ndarray, name: str) -> Classes:
    """Return labels as int64, and their numbers as class names."""
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{name} has labels of shape {labels.shape} and type {labels.dtype}; give whole numbers")
    highest = int(labels.max())
    if highest >= len(labels):
        raise ValueError(
            f"{name} has {len(labels):,} labels up to {highest:,}; number the classes from 0 without gaps, or {WITHOUT}"
        )
    return labels.astype(np.int64), tuple(map(str, range(highest + 1)))


def named(values: Sequence[str]) -> Classes:
    """Return classes by their names, in the order of the numbers in them and of the alphabet."""
    class_names = tuple(sorted(set(values), key=lambda name: (_natural(name), name)))  # of "1" and "01" too
    by_name = {name: index for index, name in enumerate(class_names)}
    return np.array([by_name[value] for value in values], dtype=np.int64), class_names


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a sorting key with "9" before "10"."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name) if part]


def by_folder(pictures: Sequence[Parts], folders: Iterable[Parts], where: str) -> Classes:
    """Return classes by the sub-folders of the innermost folder that holds all pictures; none if they lie flat there.

    Args:
        pictures: Relative path of each picture.
        folders: Relative paths of all folders, of which those beside the pictures' must not be empty.
        where: Name of the source, for errors.
    """
    parents = [picture[:-1] for picture in pictures]
    common = common_folder(pictures)
    depth = len(common)
    holding = {parent[:end] for parent in set(parents) for end in range(len(parent) + 1)}
    for folder in folders:
        if folder not in holding and folder[:-1] == common[: len(folder) - 1]:
            raise ValueError(f"{where} has no picture in {'/'.join(folder)}; remove that folder, or {WITHOUT}")
    if holding <= {common[:end] for end in range(depth + 1)}:
        return None, ()
    if common in parents:
        raise ValueError(
            f"{where} has pictures beside folders of pictures; give each class a folder of its own, or {WITHOUT}"
        )
    classes = named([parent[depth] for parent in parents])
    _check_no_splits(classes[1], "/".join([where, *common]), where)
    return classes


def _check_no_splits(class_names: Sequence[str], folder: str, where: str) -> None:
    """Raise `ValueError` for folders that are all named as splits."""
    by_name = {name.lower(): name for name in class_names}
    training = [by_name[name] for name in TRAINING if name in by_name]
    testing = [by_name[name] for name in TESTING if name in by_name]
    if training and testing and len(training) + len(testing) == len(class_names):
        unpack = "" if Path(where).is_dir() else "unpack it, and "
        raise ValueError(
            f"{where} has splits for folders, not classes ({', '.join(class_names)}); {unpack}give "
            f"--data.source {folder}/{training[0]} --data.held_out {folder}/{testing[0]}"
        )


def common_folder(pictures: Sequence[Parts]) -> Parts:
    """Return the innermost folder that holds all pictures."""
    parents = [picture[:-1] for picture in pictures]
    first, last = min(parents), max(parents)  # between which, in order, are all others
    return tuple(one for one, _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False)))


def check_classes(source: Source, name: str) -> None:
    """Raise `ValueError` unless each class has an image and a name of its own."""
    labels, class_names = source.labels, source.class_names
    if labels is None:
        return
    counts_by_name = Counter(class_name.lower() for class_name in class_names)
    if same := [class_name for class_name in class_names if counts_by_name[class_name.lower()] > 1]:
        raise ValueError(f"{name} has two classes of the same name, {same[0]} and {same[1]}; rename one")
    if labels.min() < 0 or labels.max() >= len(class_names):
        raise ValueError(
            f"{name} has labels from {labels.min()} to {labels.max()}, and {len(class_names)} classes; number them "
            "from 0"
        )
    counts = np.bincount(labels, minlength=len(class_names))
    if not counts.all():
        raise ValueError(
            f"{name} has no image of the class {class_names[int(counts.argmin())]}; number the classes from 0 without "
            f"gaps, or {WITHOUT}"
        )
