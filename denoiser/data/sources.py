"""What image sets are made from, by name or path."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from denoiser.checks import did_you_mean
from denoiser.data.libraries import TORCHVISION, array_source, hub_source, parquet_source, torchvision_source
from denoiser.data.picture_files import folder_source, listing, size_and_time, zip_source
from denoiser.data.pictures import SUFFIXES, as_pixels, readable
from denoiser.data.source import PREPARED_TOO, Source, check_classes, numbered, path_of, stamp_of

HUB_NAME = re.compile(r"\w[\w.-]*/[\w.-]+")


def find_source(source: str, root: Path, labels: bool = True) -> Source:
    """Return the source of a name or path, without its classes unless `labels`.

    Raises:
        ValueError: If it has no image, or its classes are not clear, or an extra is not installed.
        FileNotFoundError: If there is none.
    """
    path = path_of(source)
    if source in TORCHVISION:
        found = torchvision_source(source, root)
    elif path.is_dir():
        found = _folder(path, labels, root)
    elif path.is_file():
        found = _file(path, labels)
    elif HUB_NAME.fullmatch(source):
        found = hub_source(source, labels)
    else:
        known = ", ".join(TORCHVISION)
        raise FileNotFoundError(
            f"{source} is neither a folder, nor a file, nor a data set{did_you_mean(source, TORCHVISION)}; give one of "
            f"{known}, user/name of the Hugging Face Hub, or a path; {PREPARED_TOO}"
        )
    if not len(found):
        raise ValueError(f"{source} has no images; give a source with some")
    if not labels:
        return replace(found, labels=None, class_names=())
    check_classes(found, source)
    return found


def _folder(folder: Path, labels: bool, root: Path) -> Source:
    files, folders = listing(folder, (*SUFFIXES, ".parquet"), root)
    if tables := [folder.joinpath(*parts) for parts in files if parts[-1].lower().endswith(".parquet")]:
        return parquet_source(tables, folder, labels)
    return folder_source(folder, files, folders, labels)


def _file(path: Path, labels: bool) -> Source:
    match path.suffix.lower():
        case ".zip":
            return zip_source(path, labels)
        case ".npz" | ".npy":
            return _arrays(path, labels)
        case ".parquet":
            return parquet_source([path], path, labels)
    raise ValueError(f"{path} has no suffix among .zip, .npz, .npy, .parquet; a set of pictures is a folder")


def _arrays(path: Path, with_labels: bool) -> Source:
    """Return the images of an .npy file, or of an .npz file with "images" and, if there are, "labels" or "label"."""
    with readable(f"{path} cannot be read as arrays"):
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
        arrays = {"images": loaded} if isinstance(loaded, np.ndarray) else {name: loaded[name] for name in loaded}
        if not all(isinstance(array, np.ndarray) for array in arrays.values()):
            raise ValueError("it holds files that are not arrays")
    labels = arrays.pop("labels" if "labels" in arrays else "label", None)
    if len(arrays) != 1:
        raise ValueError(
            f"{path} has the arrays {', '.join(arrays) or 'none'}; call that of the images 'images', that of the "
            "labels 'labels', and leave others out"
        )
    images = as_pixels(next(iter(arrays.values())), str(path))
    if labels is not None and labels.shape != images.shape[:1]:
        raise ValueError(f"{path} has labels of shape {labels.shape} for {len(images)} images; give one for each")
    classes = (None, ()) if labels is None or not with_labels else numbered(labels, str(path))
    return array_source(images, classes, str(path), stamp_of(str(path.absolute()), size_and_time(path)))
