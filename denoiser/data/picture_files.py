"""Sources of picture files: folders and zip files."""

import json
import os
import stat
import zipfile
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from torch import Tensor

from denoiser.data.form import FACTS, is_prepared
from denoiser.data.pictures import SUFFIXES, Background, check_bytes, read_picture, readable
from denoiser.data.source import WITHOUT, Classes, Parts, Source, by_folder, common_folder, numbered, stamp_of

LABELS_FILE = "dataset.json"  # as the tools of EDM and StyleGAN write it


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is one that people do not see."""
    return name.startswith(".") or name == "__MACOSX"


def listing(folder: Path, suffixes: tuple[str, ...], root: Path) -> tuple[list[Parts], list[Parts]]:
    """Return the relative paths of the files with a suffix, sorted, and of the folders, without hidden ones.

    Links are followed; each folder counts once in a sub-folder of the first level. Prepared sets, and
    their folder `root`, are left out.
    """
    left_out, seen = (os.path.realpath(folder), os.path.realpath(root)), set()
    files: list[Parts] = []
    folders: list[Parts] = []

    def fail(error: OSError) -> None:
        raise error

    for where, inner, names in os.walk(folder, followlinks=True, onerror=fail):
        parts = Path(where).relative_to(folder).parts
        place = parts[:1], os.path.realpath(where)
        if place in seen or (parts and (place[1] in left_out or (FACTS in names and is_prepared(Path(where))))):
            inner.clear()
            continue
        seen.add(place)
        inner[:] = sorted(name for name in inner if not is_hidden(name))
        folders.append(parts)
        files += [(*parts, name) for name in names if name.lower().endswith(suffixes) and not is_hidden(name)]
    return sorted(files), folders


def size_and_time(path: str | Path) -> tuple[int, int]:
    """Return the size and the time of change of a file; zeros for a broken link, which is told when it is read."""
    try:
        facts = os.stat(path)  # noqa: PTH116 (a million paths as objects take seconds)
    except OSError:
        return 0, 0
    return facts.st_size, facts.st_mtime_ns


def folder_source(folder: Path, pictures: Sequence[Parts], folders: Sequence[Parts], labels: bool) -> Source:
    """Return the pictures of a `listing`, with classes by sub-folder or by `dataset.json`."""
    names = ["/".join(parts) for parts in pictures]
    files = [f"{folder}/{name}" for name in names]
    place = next((place for place in _places(pictures) if folder.joinpath(*place, LABELS_FILE).is_file()), ())
    described = folder.joinpath(*place, LABELS_FILE)
    text = described.read_bytes() if described.is_file() else None
    classes, class_names = _classes(pictures, folders, text, place, str(folder)) if labels and pictures else (None, ())

    def read(index: int, background: Background) -> Tensor:
        with readable("cannot be read"):
            facts = os.stat(files[index])  # noqa: PTH116
            if not stat.S_ISREG(facts.st_mode):  # a pipe would be waited for
                raise ValueError("it is no file")
        check_bytes(facts.st_size)
        return read_picture(files[index], background)

    stamp = stamp_of([(name, *size_and_time(file)) for name, file in zip(names, files, strict=True)], text)
    return Source(files, read, stamp, classes, class_names)


def zip_source(path: Path, labels: bool) -> Source:
    """Return the pictures in a zip file, with classes by folder or by `dataset.json`."""
    with readable(f"{path} cannot be read as a zip file"), zipfile.ZipFile(path) as archive:
        entries = {_parts(entry.filename): entry for entry in archive.infolist()}
        entries = {parts: entry for parts, entry in sorted(entries.items()) if not any(map(is_hidden, parts))}
        pictures = [parts for parts in entries if parts[-1].lower().endswith(SUFFIXES) and not entries[parts].is_dir()]
        place = next((place for place in _places(pictures) if (*place, LABELS_FILE) in entries), ())
        described = entries.get((*place, LABELS_FILE))
        if described:
            check_bytes(described.file_size)
        text = archive.read(described) if described else None
    folders = [parts for parts, entry in entries.items() if entry.is_dir()]
    classes, class_names = _classes(pictures, folders, text, place, str(path)) if labels and pictures else (None, ())
    opened: dict[int, zipfile.ZipFile] = {}  # by process: forked ones would move each other's place in the file

    def read(index: int, background: Background) -> Tensor:
        entry = entries[pictures[index]]
        check_bytes(entry.file_size)
        with readable("cannot be read"):
            if os.getpid() not in opened:
                opened[os.getpid()] = zipfile.ZipFile(path)
            content = opened[os.getpid()].read(entry)
        return read_picture(BytesIO(content), background)

    facts = [(parts, entries[parts].CRC, entries[parts].file_size) for parts in pictures]
    names = [f"{path}/{'/'.join(parts)}" for parts in pictures]
    return Source(names, read, stamp_of(facts, text), classes, class_names)


def _parts(name: str) -> Parts:
    """Return the parts of a path in a zip file, which some tools write with backslashes."""
    return tuple(part for part in name.replace("\\", "/").split("/") if part not in ("", ".")) or ("",)


def _places(pictures: Sequence[Parts]) -> list[Parts]:
    """Return the folders where `dataset.json` may lie: those that hold all pictures, outermost first."""
    common = common_folder(pictures) if pictures else ()
    return [common[:end] for end in range(len(common) + 1)]


def _classes(
    pictures: Sequence[Parts], folders: Sequence[Parts], text: bytes | None, place: Parts, where: str
) -> Classes:
    """Return the classes of `dataset.json`, whose names are relative to its place, or by folder."""
    if text is None:
        return by_folder(pictures, folders, where)
    return _described(text, ["/".join(parts[len(place) :]) for parts in pictures], f"{where}: {LABELS_FILE}")


def _described(text: bytes, names: Sequence[str], where: str) -> Classes:
    """Return the labels of `dataset.json`: `{"labels": [["00000/img00000000.png", 6], …]}`, or null for none."""
    with readable(f"{where} cannot be read"):
        described = json.loads(text)
        pairs = described.get("labels")
        if "labels" not in described:
            raise ValueError('it has no "labels"; give {"labels": null} where there are none')
        by_name = {"/".join(_parts(name)): label for name, label in pairs or []}
    if pairs is None:
        return None, ()
    if missing := [name for name in names if name not in by_name]:
        raise ValueError(f"{where} has no label for {missing[0]}; give each picture one, or {WITHOUT}")
    with readable(f"{where} cannot be read"):
        labels = np.array([by_name[name] for name in names])
    return numbered(labels, where)
