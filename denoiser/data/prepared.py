"""Prepared sets: a folder with `images.npy`, `labels.npy` and `set.json`, made from any source.

`images.npy` is uint8, (count, channels, height, width), and `labels.npy` int64, (count,). The training
images come first, and the held-out ones last. The images are decoded in parts, which stay where a
preparation was stopped, so that the next one goes on with them.
"""

import hashlib
import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor

from denoiser.checks import pair
from denoiser.data.config import HELD_OUT_SHARE, MEMORY_SHARE, DataConfig
from denoiser.data.image_set import ImageSet
from denoiser.data.pictures import Background
from denoiser.data.preparation import FACTS, IMAGES, LABELS, VERSION, OnProgress, Preparation, Size, check_read
from denoiser.data.sources import Source, find_source
from denoiser.files import check_writable, locked


def load_sets(
    config: DataConfig,
    size: Size | None = None,
    channels: int | None = None,
    on_progress: OnProgress = lambda done, total: None,
) -> tuple[ImageSet, ImageSet | None]:
    """Load the training images and the held-out ones; what is not prepared is prepared.

    Args:
        config: Settings of the set.
        size: Height and width, if `config.size` is None.
        channels: Channels, if `config.channels` is None.
        on_progress: Called with the numbers of images that are prepared, and of all.

    Returns:
        The training images, and the held-out ones or None.

    Raises:
        ValueError: If the source has no images, or some cannot be read, or a prepared set was altered.
        FileNotFoundError: If there is no such source.
        OSError: If the prepared set cannot be written.
    """
    return open_set(prepare(config, size, channels, on_progress), config.in_memory)


def prepare(
    config: DataConfig,
    size: Size | None = None,
    channels: int | None = None,
    on_progress: OnProgress = lambda done, total: None,
) -> Path:
    """Prepare a set unless it is; returns its folder. The arguments are those of `load_sets`."""
    size = size if config.size is None else pair(config.size)
    channels = channels if config.channels is None else config.channels
    given = Path(config.source).expanduser()
    if (given / FACTS).is_file():
        _check_fits(given, size, channels, config)
        return given
    root = Path(config.root).expanduser()
    source, others = find_source(config.source, root, config.labels), None
    if isinstance(config.held_out, str):
        others = find_source(config.held_out, root, config.labels)
    source = _limited(_joined(source, others, config), config.limit)
    rule = _held_out_rule(config, source)
    settings = [size, channels, config.fit, config.background, rule, config.limit]
    digest = hashlib.sha256(json.dumps([VERSION, source.stamp, source.class_names, settings]).encode()).hexdigest()
    stem = re.sub(r"[^\w.-]+", "-", Path(config.source).name)
    folder = root / f"{stem}-{'x'.join(map(str, size or ['own']))}-{digest[:10]}"
    if not (folder / FACTS).is_file():
        check_writable(folder)
        root.mkdir(parents=True, exist_ok=True)
        with _waiting_lock(root / f".{folder.name}.lock"):
            if not (folder / FACTS).is_file():  # or another process has prepared it meanwhile
                Preparation(config, source, rule, size, channels, folder, on_progress).run()
    check_read(read_facts(folder)["unreadable"], config)
    return folder


def open_set(folder: Path, in_memory: bool | None = None) -> tuple[ImageSet, ImageSet | None]:
    """Open a prepared set, and check its hashes.

    Args:
        folder: Folder of the set.
        in_memory: Whether to read the images rather than to map their file; None for sets that take up
            to an eighth of the free memory.

    Returns:
        The training images, and the held-out ones or None.

    Raises:
        ValueError: If a file is missing, or is not as it was prepared.
    """
    facts = read_facts(folder)
    try:
        if in_memory is None:
            in_memory = (folder / IMAGES).stat().st_size * MEMORY_SHARE <= psutil.virtual_memory().available
        # mapped "c" is writable memory that is never written: torch has no tensor that is only read
        pixels = np.load(folder / IMAGES, mmap_mode=None if in_memory else "c", allow_pickle=False)
        labels = np.load(folder / LABELS, allow_pickle=False) if facts["class_names"] else None
        images, classes = torch.from_numpy(pixels), None if labels is None else torch.from_numpy(labels)
        held_out = facts["held_out"]["images"]
        parts = [
            ImageSet(images[rows], None if classes is None else classes[rows], tuple(facts["class_names"]), folder)
            for rows in (slice(len(images) - held_out), slice(len(images) - held_out, None))
            if len(images[rows])
        ]
        if [part.sha256 for part in parts] != facts["sha256"]:
            raise ValueError("its SHA-256 differs")
    except Exception as error:  # numpy's reader raises anything for a damaged file
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"{folder} is not as it was prepared ({reason}); delete the folder, and it is prepared again"
        ) from error
    return parts[0], parts[1] if held_out else None


def read_facts(folder: Path) -> dict[str, Any]:
    """Return the content of a prepared set's `set.json`."""
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        if facts["version"] != VERSION:
            raise ValueError(f"version {facts['version']}, not {VERSION}")
        if not isinstance(facts["class_names"], list) or not 0 <= facts["held_out"]["images"] < facts["images"]:
            raise ValueError("values of another kind")
        return {**facts, "shape": tuple(map(int, facts["shape"]))}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{folder / FACTS} cannot be read ({error!r}); delete the folder, and prepare it anew"
        ) from error


def _check_fits(folder: Path, size: Size | None, channels: int | None, config: DataConfig) -> None:
    """Raise `ValueError` for a setting that a prepared set does not have."""
    facts = read_facts(folder)
    own_channels, *own_size = facts["shape"]
    if size not in (None, tuple(own_size)) or channels not in (None, own_channels):
        wanted = f"size {size or 'of its own'}, channels {channels or 'of its own'}"
        raise ValueError(f"{folder} is prepared as {facts['shape']}, not with {wanted}; prepare its source anew")
    for name in ("fit", "background", "held_out", "limit", "labels"):
        if getattr(config, name) != getattr(DataConfig, name):
            raise ValueError(f"{name} is {getattr(config, name)}, and {folder} is prepared already; leave it out")


def _joined(source: Source, others: Source | None, config: DataConfig) -> Source:
    """Return a source with the held-out images of another one at its end."""
    if others is None:
        return source
    count = len(source) - source.held_out  # of whose own held-out images none is used
    labels = None
    if (source.labels is None) != (others.labels is None):
        raise ValueError(f"only one of {config.source} and {config.held_out} has classes; give both of a kind")
    if source.labels is not None and others.labels is not None:
        if unknown := set(others.class_names) - set(source.class_names):
            raise ValueError(f"{config.held_out} has the class {min(unknown)}, which {config.source} has not")
        renumbered = np.array([source.class_names.index(name) for name in others.class_names])
        labels = np.concatenate([source.labels[:count], renumbered[others.labels]])

    def read(index: int, background: Background) -> Tensor:
        return source.read(index, background) if index < count else others.read(index - count, background)

    names, stamp = [*source.names[:count], *others.names], f"{source.stamp} {others.stamp}"
    return Source(names, read, stamp, labels, source.class_names, held_out=len(others))


def _limited(source: Source, limit: int | None) -> Source:
    """Return `limit` images of a source, evenly picked."""
    count = len(source)
    if limit is None or limit >= count:
        return source
    kept = np.arange(limit) * count // limit
    labels = None if source.labels is None else source.labels[kept]
    return Source(
        [source.names[int(index)] for index in kept],
        lambda index, background: source.read(int(kept[index]), background),
        source.stamp,
        labels,
        source.class_names,
        held_out=int((kept >= count - source.held_out).sum()),
    )


def _held_out_rule(config: DataConfig, source: Source) -> str | float:
    """Return which images are held out: those of another source, the source's own, or a share."""
    if isinstance(config.held_out, str):
        return f"those of {config.held_out}"
    if config.held_out is None:
        return "the source's own" if source.held_out else HELD_OUT_SHARE
    return config.held_out


@contextmanager
def _waiting_lock(path: Path) -> Iterator[None]:
    """Hold a lock; wait while another process has it."""
    while True:
        try:
            lock = locked(path)
            break
        except BlockingIOError:
            time.sleep(0.2)
    with lock:
        yield
