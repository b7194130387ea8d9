"""Prepared sets: a folder with `images.npy`, `labels.npy` and `set.json`, made from any source.

`images.npy` is uint8, (count, channels, height, width), and `labels.npy` int64, (count,). The training
images come first, and the held-out ones last. The images are decoded in parts, which stay where a
preparation was stopped, so that the next one goes on with them.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from denoiser.checks import pair
from denoiser.data.config import HELD_OUT_SHARE, MEMORY_SHARE, DataConfig
from denoiser.data.form import FACTS, IMAGES, LABELS, VERSION, is_prepared, read_facts
from denoiser.data.image_set import ImageSet, evenly
from denoiser.data.parts import check_read, parts_of
from denoiser.data.pictures import Background, readable
from denoiser.data.preparation import OnProgress, Preparation, Size, first_image, mixed_sizes
from denoiser.data.source import Source, path_of
from denoiser.data.sources import find_source
from denoiser.device import free_memory
from denoiser.files import check_writable, waiting_lock

logger = logging.getLogger(__name__)


def load_sets(
    config: DataConfig, on_progress: OnProgress = lambda done, total: None
) -> tuple[ImageSet, ImageSet | None]:
    """Load the training images and the held-out ones; what is not prepared is prepared.

    Args:
        config: Settings of the set.
        on_progress: Called with the numbers of images that are prepared, and of all.

    Returns:
        The training images, and the held-out ones or None.

    Raises:
        ValueError: If the source has no images, or some cannot be read, or a prepared set was altered.
        FileNotFoundError: If there is no such source.
        OSError: If the prepared set cannot be written.
    """
    return open_set(prepare(config, on_progress), config.in_memory, config.labels)


def prepare(config: DataConfig, on_progress: OnProgress = lambda done, total: None) -> Path:
    """Prepare a set unless it is; returns its folder. The arguments are those of `load_sets`."""
    size = None if config.size is None else pair(config.size)
    given = path_of(config.source)
    if is_prepared(given):
        _check_agrees(given, size, config)
        return given
    root = path_of(config.root)
    source = _find(config, root)
    rule = _held_out_rule(config, source)
    source = _limited(source, config.limit, source.held_out if isinstance(rule, str) else 0)
    first = first_image(source, config)
    size = size or (first.shape[1], first.shape[2])
    told = "another source" if isinstance(config.held_out, str) else rule  # whose stamp is in the source's
    settings = [size, config.channels, config.fit, config.background, told, config.limit]
    digest = hashlib.sha256(json.dumps([VERSION, source.stamp, source.class_names, settings]).encode()).hexdigest()
    stem = re.sub(r"[^\w-]+", "-", given.resolve().stem).strip("-")[:40]
    folder = root / f"{stem}-{size[0]}x{size[1]}-{digest[:10]}"
    if not (folder / FACTS).is_file():
        check_writable(folder)
        with waiting_lock(root / f".{folder.name}.lock"):
            if not (folder / FACTS).is_file():  # or another process has prepared it meanwhile
                Preparation(config, source, rule, first, size, folder, on_progress).run()
    elif parts_of(folder).exists():  # of a process that was killed after its last step
        shutil.rmtree(parts_of(folder), ignore_errors=True)
    facts = read_facts(folder)
    check_read(facts["unreadable"], config)
    if config.size is None and len(facts["sizes_before"]) > 1:  # as prepared with its size named
        raise ValueError(mixed_sizes(config, *list(facts["sizes_before"])[:2]))
    return folder


def open_set(folder: Path, in_memory: bool | None = None, labels: bool = True) -> tuple[ImageSet, ImageSet | None]:
    """Open a prepared set, and check its hashes.

    Args:
        folder: Folder of the set.
        in_memory: Whether to read the images rather than to map their file; None for sets that take up
            to an eighth of the free memory, shared by the processes of this machine.
        labels: Whether the images' classes are used.

    Returns:
        The training images, and the held-out ones or None.

    Raises:
        ValueError: If a file is missing, or is not as it was prepared.
    """
    facts = read_facts(folder)
    count, names = facts["images"] - facts["held_out"]["images"], facts["class_names"]
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    with readable(f"{folder} is not as it was prepared; delete the folder, and prepare it anew"):
        if in_memory is None:
            needed = (folder / IMAGES).stat().st_size * processes
            in_memory = needed * MEMORY_SHARE <= free_memory()
        # mapped "c" is writable memory that is never written: torch has no tensor that is only read
        pixels = np.load(folder / IMAGES, mmap_mode=None if in_memory else "c", allow_pickle=False)
        if pixels.shape != (facts["images"], *facts["shape"]):
            raise ValueError(f"the shape of its images is {pixels.shape}")
        images = torch.from_numpy(pixels)
        classes = torch.from_numpy(np.load(folder / LABELS, allow_pickle=False)) if names else None
        sides = [slice(count), slice(count, None)][: len(facts["sha256"])]
        sets = [ImageSet(images[side], None if classes is None else classes[side], names, folder) for side in sides]
        if [each.sha256 for each in sets] != facts["sha256"]:
            raise ValueError("its SHA-256 differs")
    if not labels:
        sets = [replace(each, labels=None, class_names=()) for each in sets]
    return sets[0], sets[1] if len(sets) == 2 else None


def _check_agrees(folder: Path, size: Size | None, config: DataConfig) -> None:
    """Raise `ValueError` for a setting that is not the one of a prepared set; defaults are those of any."""
    facts, channels = read_facts(folder), config.channels
    own_channels, *own_size = facts["shape"]
    if size not in (None, tuple(own_size)) or channels not in (None, own_channels):
        wanted = f"size {size or 'of its own'}, channels {channels or 'of its own'}"
        raise ValueError(f"{folder} is prepared as {facts['shape']}, not with {wanted}; prepare its source anew")
    held_out = _those_of(config.held_out) if isinstance(config.held_out, str) else config.held_out
    given = {"fit": config.fit, "background": config.background, "held_out": held_out, "limit": config.limit}
    prepared = {**facts["resized"], "held_out": facts["held_out"]["rule"], "limit": facts["limit"]}
    for name, value in given.items():
        if value not in (getattr(DataConfig, name), prepared[name]):
            own = "none" if prepared[name] is None else prepared[name]
            raise ValueError(
                f"{name} is {getattr(config, name)}, and {folder} was prepared with {name} {own}; leave it out, or "
                "prepare its source anew"
            )


def _find(config: DataConfig, root: Path) -> Source:
    """Return the source, with the held-out images at its end if they are from another one."""
    source = find_source(config.source, root, config.labels)
    if not isinstance(config.held_out, str):
        return source
    if is_prepared(path_of(config.held_out)):
        raise ValueError(
            f"held_out is {config.held_out}, which is prepared already; give the source that it was made of"
        )
    others = find_source(config.held_out, root, config.labels)
    count = len(source) - source.held_out  # of whose own held-out images none is used
    labels = None
    if (source.labels is None) != (others.labels is None):
        raise ValueError(f"only one of {config.source} and {config.held_out} has classes; give both of a kind")
    if source.labels is not None and others.labels is not None:
        if unknown := set(others.class_names) - set(source.class_names):
            raise ValueError(f"{config.held_out} has the class {min(unknown)}, which {config.source} does not have")
        renumbered = np.array([source.class_names.index(name) for name in others.class_names])
        labels = np.concatenate([source.labels[:count], renumbered[others.labels]])

    def read(index: int, background: Background) -> Tensor:
        return source.read(index, background) if index < count else others.read(index - count, background)

    names, stamp = [*source.names[:count], *others.names], f"{source.stamp} {others.stamp}"
    return Source(names, read, stamp, labels, source.class_names, held_out=len(others))


def _limited(source: Source, limit: int | None, held_out: int) -> Source:
    """Return `limit` images of a source, evenly picked: of the last `held_out` and of the others in proportion."""
    count = len(source)
    if limit is None or limit >= count:
        return source
    wanted = max(1, round(limit * held_out / count)) if held_out else 0
    first = count - held_out
    kept = torch.cat([evenly(first, max(1, limit - wanted)), first + evenly(held_out, wanted)]).numpy()
    labels = None if source.labels is None else source.labels[kept]
    return Source(
        [source.names[int(index)] for index in kept],
        lambda index, background: source.read(int(kept[index]), background),
        source.stamp,
        labels,
        source.class_names,
        held_out=wanted,
    )


def _held_out_rule(config: DataConfig, source: Source) -> str | float:
    """Return which images are held out: those of another source, the source's own, or a share."""
    if isinstance(config.held_out, str):
        return _those_of(config.held_out)
    if config.held_out is None:
        return "the source's own" if source.held_out else HELD_OUT_SHARE
    if source.held_out:
        logger.warning(
            "%s has %s held-out images of its own, of which some are trained on now, as held_out is %s; leave that out "
            "to compare with others",
            config.source,
            f"{source.held_out:,}",
            config.held_out,
        )
    return float(config.held_out)


def _those_of(source: str) -> str:
    return f"those of {source}"
