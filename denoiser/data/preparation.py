"""The preparation of a set: decoding with all cores into parts, and joining the parts."""

import ctypes
import hashlib
import json
import logging
import multiprocessing
import os
import shutil
import signal
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, fields
from itertools import chain
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from denoiser.data.config import LARGEST_SIDE, SMALLEST, DataConfig
from denoiser.data.form import IMAGES, LABELS, VERSION, write_facts
from denoiser.data.pictures import fitted, is_grey, readable, with_channels
from denoiser.data.source import Source
from denoiser.device import num_cores
from denoiser.files import atomic_path, sync_all

PART_BYTES, LARGEST_PART = 1 << 25, 256  # bytes of a part, and images in it
NAMED = 5  # images that an error names
SIZES_TOLD = 10
PR_SET_PDEATHSIG = 1  # as <sys/prctl.h> numbers it

OnProgress = Callable[[int, int], object]
Size = tuple[int, int]


@dataclass(frozen=True)
class Part:
    """A decoded part of a source, in the order of its rows.

    Attributes:
        images: `(count, channels, height, width)`, uint8.
        rows: `(count,)` indices into the source, without those that cannot be read.
        digests: `(count,)` uint64, hashes of the images.
        sizes: `(count, 2)` heights and widths before resizing.
        sums: `(2, channels)`, sums of the values and of their squares.
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

    def save(self, path: Path) -> None:
        """Save the part atomically."""
        with atomic_path(path) as temporary:
            np.savez(temporary, **{field.name: getattr(self, field.name) for field in fields(self)})

    @classmethod
    def load(cls, path: Path) -> Self:
        """Load a part without its images."""
        with _part_of(path) as saved:
            names = [field.name for field in fields(cls) if field.name != "images"]
            return cls(np.empty(0, dtype=np.uint8), **{name: saved[name] for name in names})


@contextmanager
def _part_of(path: Path) -> Iterator[Any]:
    with readable(f"{path} is damaged; delete it, and start again"), np.load(path) as saved:
        yield saved


class Preparation:
    """Makes a prepared set.

    Args:
        config: Settings of the set.
        source: Its images.
        rule: Share of the images to hold out, or a name of another rule: the source's own.
        size: Height and width; None for the images' own.
        channels: 1 or 3, or those of an array; None for the images' own.
        folder: The folder that is made.
        on_progress: Called with the numbers of images that are decoded, and of all.
    """

    def __init__(
        self,
        config: DataConfig,
        source: Source,
        rule: str | float,
        size: Size | None,
        channels: int | None,
        folder: Path,
        on_progress: OnProgress,
    ) -> None:
        self.config, self.source, self.rule, self.folder = config, source, rule, folder
        self.own_size, self.own_channels = size is None, channels is None
        self.on_progress = on_progress
        self.parts = parts_of(folder)
        with _quiet_pillow():
            first = self._first()
        self.size: Size = size or (first.shape[1], first.shape[2])
        # Pictures are decoded in colour, and become grey if all of them are.
        self.channels: int = channels or (3 if len(first) in (1, 3) else len(first))
        if not all(SMALLEST <= side <= LARGEST_SIDE for side in self.size):
            shape = f"images of {_by(self.size)}"
            raise ValueError(f"{config.source} has {shape}; give --data.size, {SMALLEST} to {LARGEST_SIDE}")

    def run(self) -> None:
        """Decode what is not decoded, and write the set."""
        try:
            self._run()
        except OSError as error:
            reason = error.strerror or str(error)
            raise type(error)(
                f"{self.folder} cannot be prepared ({reason}); make room, or give another --data.root; the same "
                "command goes on with the rest"
            ) from error

    def _run(self) -> None:
        with _quiet_pillow():
            paths = self._decode()
        parts = [Part.load(path) for path in paths]
        unread = [json.loads(str(part.unread)) for part in parts]
        try:
            check_read(list(chain(*unread)), self.config)
        except ValueError:
            for path, entries in zip(paths, unread, strict=True):
                if entries:  # which may be mended
                    path.unlink()
            raise
        self._write(paths, parts, list(chain(*unread)))
        shutil.rmtree(self.parts, ignore_errors=True)

    def _first(self) -> Tensor:
        """Return the first image that can be read."""
        reason = ""
        for index, name in enumerate(self.source.names):
            try:
                return self.source.read(index, self.config.background)
            except ValueError as error:
                reason = reason or f"{name} {error}"
        raise ValueError(f"none of the {len(self.source):,} images of {self.config.source} can be read: {reason}")

    def _decode(self) -> list[Path]:
        """Decode all parts that are not there yet; returns their files."""
        self.parts.mkdir(exist_ok=True)
        count = len(self.source)
        length = max(1, min(LARGEST_PART, PART_BYTES // (self.channels * self.size[0] * self.size[1])))
        rows_of = {
            self.parts / f"{start:010d}.npz": range(count)[start : start + length] for start in range(0, count, length)
        }
        waiting = {path: rows for path, rows in rows_of.items() if not path.is_file()}
        done = count - sum(map(len, waiting.values()))
        self.on_progress(done, count)
        with _workers(self) as pool:
            futures = [pool.submit(_decode_part, rows, path) for path, rows in waiting.items()]
            try:
                for future in as_completed(futures):
                    done += future.result()
                    self.on_progress(done, count)
            except BrokenProcessPool as error:
                raise OSError("a process that decodes was killed, which too little memory can do") from error
            finally:
                pool.shutdown(cancel_futures=True)
        return list(rows_of)

    def decode_part(self, rows: range, path: Path) -> int:
        """Decode and save the images of some rows; returns their number."""
        images = np.empty((len(rows), self.channels, *self.size), dtype=np.uint8)
        read: list[int] = []
        sizes, unread = [], []
        for row in rows:
            try:
                image = with_channels(self.source.read(row, self.config.background), self.channels)
            except ValueError as error:
                unread.append([self.source.names[row], str(error)])
                continue
            if self.own_size and tuple(image.shape[1:]) != self.size:
                other = f"{_by(image.shape[1:])} ({self.source.names[row]})"
                raise ValueError(
                    f"{self.config.source} has images of {_by(self.size)} and of {other}; give --data.size"
                )
            images[len(read)] = fitted(image, self.size, self.config.fit, self.config.background).numpy()
            sizes.append(image.shape[1:])
            read.append(row)
        images = images[: len(read)]
        digests = [int.from_bytes(hashlib.sha256(image.data).digest()[:8], "big") for image in images]
        sums = [
            np.sum(values, axis=(0, 2, 3), dtype=np.int64) for values in (images, np.square(images, dtype=np.uint16))
        ]
        Part(
            images,
            rows=np.array(read, dtype=np.int64),
            digests=np.array(digests, dtype=np.uint64),
            sizes=np.array(sizes, dtype=np.int64).reshape(-1, 2),
            sums=np.array(sums),
            grey=np.array(self.channels == 3 and is_grey(torch.from_numpy(images))),
            unread=np.array(json.dumps(unread)),
        ).save(path)
        return len(rows)

    def _held_out(self, rows: np.ndarray, digests: np.ndarray) -> np.ndarray:
        """Return which of the images are held out: the source's own, or those with the lowest hashes.

        So equal images are on the same side, and a set that grows keeps most of the others where they are.
        """
        if isinstance(self.rule, str):
            return rows >= len(self.source) - self.source.held_out
        count = round(self.rule * len(rows))
        held_out = digests <= np.sort(digests)[count - 1] if count else np.zeros(len(rows), dtype=bool)
        return held_out if not held_out.all() else ~held_out

    def _write(self, paths: Sequence[Path], parts: Sequence[Part], unread: list[list[str]]) -> None:
        """Write the set beside its parts, and move it to its place: a killed process leaves nothing else."""
        rows = np.concatenate([part.rows for part in parts])
        held_out = self._held_out(rows, np.concatenate([part.digests for part in parts]))
        if held_out.all():
            raise ValueError(f"{self.config.source} has no images to train on; give a source with some")
        if self.own_channels and all(part.grey for part in parts):
            self.channels = 1
        order = np.concatenate([rows[~held_out], rows[held_out]])
        labels = None if self.source.labels is None else self.source.labels[order]
        chosen = np.split(held_out, np.cumsum([len(part.rows) for part in parts])[:-1])
        temporary = self.parts / "set"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            digests = self._write_images(temporary / IMAGES, paths, chosen, labels)
            if labels is not None:
                np.save(temporary / LABELS, labels)
            facts = self._facts(parts, int(held_out.sum()), unread, digests)
            write_facts(temporary, facts)
            sync_all(temporary)
            if self.folder.exists():  # without a set.json
                shutil.rmtree(self.folder)
            temporary.replace(self.folder)
        except OSError:
            shutil.rmtree(temporary, ignore_errors=True)  # which gives room on a full disk
            raise

    def _write_images(
        self, path: Path, paths: Sequence[Path], held_out: Sequence[np.ndarray], labels: np.ndarray | None
    ) -> list[str]:
        """Write the training images, then the held-out ones; returns the hash of each side that has some."""
        counts = [int(sum((chosen == side).sum() for chosen in held_out)) for side in (False, True)]
        digests = [hashlib.sha256(), hashlib.sha256()]
        with path.open("wb") as file:
            shape = (sum(counts), self.channels, *self.size)
            np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
            places = [file.tell(), file.tell() + counts[0] * self.channels * self.size[0] * self.size[1]]
            for part, chosen in zip(paths, held_out, strict=True):
                with _part_of(part) as saved:
                    decoded = saved["images"]
                for side in (False, True):
                    images = np.ascontiguousarray(decoded[chosen == side, : self.channels])
                    digests[side].update(images.data)
                    file.seek(places[side])
                    places[side] += file.write(images.data)
        if labels is not None:
            digests[False].update(labels[: counts[0]].data)
            digests[True].update(labels[counts[0] :].data)
        return [digest.hexdigest() for digest, count in zip(digests, counts, strict=True) if count]

    def _facts(
        self, parts: Sequence[Part], held_out: int, unread: list[list[str]], digests: list[str]
    ) -> dict[str, Any]:
        """Return the content of `set.json`."""
        config, count = self.config, sum(len(part.rows) for part in parts)
        total = np.sum([part.sums for part in parts], axis=0)[:, : self.channels]
        mean, mean_square = total / (count * self.size[0] * self.size[1])
        sizes = Counter(_by(size) for part in parts for size in part.sizes.tolist())
        return {
            "version": VERSION,
            "source": config.source,
            "images": count,
            "shape": [self.channels, *self.size],
            "class_names": list(self.source.class_names),
            "held_out": {"images": held_out, "rule": self.rule},
            "resized": {"fit": config.fit, "background": config.background, "filter": "bilinear, antialiased"},
            "limit": config.limit,
            "mean": mean.round(3).tolist(),
            "standard_deviation": np.sqrt(np.maximum(mean_square - mean**2, 0)).round(3).tolist(),
            "sizes_before": dict(sizes.most_common(SIZES_TOLD)),
            "unreadable": unread,
            "sha256": digests,
        }


def parts_of(folder: Path) -> Path:
    """Return the folder of the parts of a set, while it is prepared."""
    return folder.with_name(f".{folder.name}.parts")


_preparation: Preparation  # of a worker


def _workers(preparation: Preparation) -> Executor:
    """Return a process for each core: Pillow spends half of its time in Python, where threads wait for each other.

    Sources are not pickled, so the processes are forked, or are threads where that is not safe.
    """
    if sys.platform != "linux":
        return ThreadPoolExecutor(num_cores(), initializer=_start_worker, initargs=(preparation, None))
    context = multiprocessing.get_context("fork")
    return ProcessPoolExecutor(num_cores(), context, initializer=_start_worker, initargs=(preparation, os.getpid()))


def _start_worker(preparation: Preparation, forked_from: int | None) -> None:
    global _preparation
    _preparation = preparation
    if forked_from is not None:
        torch.set_num_threads(1)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process ends the workers
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # also where that is killed
        if os.getppid() != forked_from:  # as it was before that call
            os._exit(1)


def _decode_part(rows: range, path: Path) -> int:
    return _preparation.decode_part(rows, path)


def check_read(unread: Sequence[Sequence[str]], config: DataConfig) -> None:
    """Raise `ValueError` with their names for images that cannot be read, unless they are to be skipped."""
    if not unread or config.unreadable == "skip":
        return
    named = "; ".join(f"{name} {reason}" for name, reason in unread[:NAMED])
    more = f"; and {len(unread) - NAMED:,} more" if len(unread) > NAMED else ""
    count = f"{len(unread):,} image" + "s" * (len(unread) > 1)
    raise ValueError(
        f"{count} of {config.source} cannot be used: {named}{more}. Mend them, or give --data.unreadable skip"
    )


def _by(size: Sequence[int]) -> str:
    """Describe a height and a width, as pictures are: width first."""
    return f"{size[1]}x{size[0]}"


@contextmanager
def _quiet_pillow() -> Iterator[None]:
    """Silence Pillow's own lines of odd files; a picture that is too large for it is an error."""
    logger = logging.getLogger("PIL")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    finally:
        logger.setLevel(level)
