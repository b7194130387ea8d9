"""The preparation of a set: decoding with all cores into parts, and joining the parts."""

import ctypes
import hashlib
import json
import multiprocessing
import shutil
import signal
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from denoiser.data.config import LARGEST_SIDE, SMALLEST, DataConfig
from denoiser.data.pictures import fitted, is_grey, with_channels
from denoiser.data.sources import Source
from denoiser.device import num_cores
from denoiser.files import atomic_path

IMAGES, LABELS, FACTS = "images.npy", "labels.npy", "set.json"
VERSION = 1
PART_BYTES, LARGEST_PART = 1 << 25, 1024  # bytes of a part, and images in it
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
        unread: Name and reason of each image that cannot be read.
    """

    images: np.ndarray
    rows: np.ndarray
    digests: np.ndarray
    sizes: np.ndarray
    unread: list[list[str]]

    def save(self, path: Path) -> None:
        """Save the part atomically."""
        with atomic_path(path) as temporary:
            facts = {"rows": self.rows, "digests": self.digests, "sizes": self.sizes}
            np.savez(temporary, images=self.images, unread=np.array(json.dumps(self.unread)), **facts)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: Path) -> Self:
        """Load a part without its images."""
        with np.load(path) as saved:
            facts = {name: saved[name] for name in ("rows", "digests", "sizes")}
            return cls(np.empty(0, dtype=np.uint8), **facts, unread=json.loads(str(saved["unread"])))


def load_images(path: Path) -> np.ndarray:
    """Load the images of a part."""
    with np.load(path) as saved:
        images: np.ndarray = saved["images"]
        return images


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
        self.parts = folder.with_name(f".{folder.name}.parts")
        with _pillows_warnings():
            first = self._first()
            self.size: Size = size or (first.shape[1], first.shape[2])
            # Pictures are decoded in colour, and become grey if all of them are.
            self.channels: int = channels or (3 if len(first) in (1, 3) else len(first))
        if not all(SMALLEST <= side <= LARGEST_SIDE for side in self.size):
            shape = f"images of {_by(self.size)}"
            raise ValueError(f"{config.source} has {shape}; give --data.size, {SMALLEST} to {LARGEST_SIDE}")

    def run(self) -> None:
        """Decode what is not decoded, and write the set."""
        with _pillows_warnings():
            paths = self._decode()
        parts = [Part.load(path) for path in paths]
        check_read([entry for part in parts for entry in part.unread], self.config)
        self._write(paths, parts)
        shutil.rmtree(self.parts, ignore_errors=True)

    def _first(self) -> Tensor:
        """Return the first image that can be read."""
        reason = ""
        for index, name in enumerate(self.source.names):
            try:
                return self.source.read(index, self.config.background)
            except (ValueError, OSError) as error:
                reason = reason or f"{name} {error}"
        raise ValueError(f"none of the {len(self.source):,} images of {self.config.source} can be read: {reason}")

    def _decode(self) -> list[Path]:
        """Decode all parts that are not there yet; returns their files."""
        self.parts.mkdir(exist_ok=True)
        count = len(self.source)
        length = max(1, min(LARGEST_PART, PART_BYTES // (self.channels * self.size[0] * self.size[1])))
        paths = {start: self.parts / f"{start:010d}.npz" for start in range(0, count, length)}
        waiting = [start for start, path in paths.items() if not path.is_file()]
        done = min(count, (len(paths) - len(waiting)) * length)
        with _workers(self) as pool:
            ends = {start: min(start + length, count) for start in waiting}
            futures = [pool.submit(_decode_part, range(start, end), paths[start]) for start, end in ends.items()]
            try:
                for future in as_completed(futures):
                    done = min(count, done + future.result())
                    self.on_progress(done, count)
            finally:
                pool.shutdown(cancel_futures=True)
        return list(paths.values())

    def decode_part(self, rows: range, path: Path) -> int:
        """Decode and save the images of some rows; returns their number."""
        images = np.empty((len(rows), self.channels, *self.size), dtype=np.uint8)
        read: list[int] = []
        sizes, unread = [], []
        for row in rows:
            try:
                image = with_channels(self.source.read(row, self.config.background), self.channels)
            except (ValueError, OSError) as error:
                unread.append([self.source.names[row], " ".join(str(error).split())])
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
        facts = np.array(read, dtype=np.int64), np.array(digests, dtype=np.uint64), np.array(sizes).reshape(-1, 2)
        Part(images, *facts, unread).save(path)
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

    def _write(self, paths: Sequence[Path], parts: Sequence[Part]) -> None:
        """Write the set: the training images first, then the held-out ones."""
        rows = np.concatenate([part.rows for part in parts])
        held_out = self._held_out(rows, np.concatenate([part.digests for part in parts]))
        if held_out.all():
            raise ValueError(f"{self.config.source} has no images to train on; give a source with some")
        if self.channels == 3 and self.own_channels and all(is_grey(torch.from_numpy(load_images(p))) for p in paths):
            self.channels = 1
        order = np.concatenate([rows[~held_out], rows[held_out]])
        labels = None if self.source.labels is None else self.source.labels[order]
        with atomic_path(self.folder) as temporary:
            temporary.mkdir()
            starts = np.cumsum([len(part.rows) for part in parts])[:-1]
            chosen = np.split(held_out, starts)
            facts = self._write_images(temporary / IMAGES, paths, chosen, labels)
            if labels is not None:
                np.save(temporary / LABELS, labels)
            sizes = Counter(_by(size) for part in parts for size in part.sizes.tolist())
            facts |= {
                "sizes_before": dict(sizes.most_common(SIZES_TOLD)),
                "unreadable": [entry for part in parts for entry in part.unread],
            }
            (temporary / FACTS).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")

    def _write_images(
        self, path: Path, paths: Sequence[Path], held_out: Sequence[np.ndarray], labels: np.ndarray | None
    ) -> dict[str, Any]:
        """Write `images.npy`; returns the facts of the set."""
        counts = [int(sum((chosen == which).sum() for chosen in held_out)) for which in (False, True)]
        sums, squares, digests = np.zeros(self.channels), np.zeros(self.channels), []
        with path.open("wb") as file:
            shape = (sum(counts), self.channels, *self.size)
            np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
            for which in (False, True)[: 1 + bool(counts[1])]:
                digest = hashlib.sha256()
                for part, chosen in zip(paths, held_out, strict=True):
                    images = np.ascontiguousarray(load_images(part)[chosen == which][:, : self.channels])
                    file.write(images.data)
                    digest.update(images.data)
                    levels = images.astype(np.float32)
                    sums += levels.sum(axis=(0, 2, 3), dtype=np.float64)
                    squares += np.square(levels).sum(axis=(0, 2, 3), dtype=np.float64)
                if labels is not None:
                    digest.update((labels[counts[0] :] if which else labels[: counts[0]]).data)
                digests.append(digest.hexdigest())
        mean, mean_square = sums / (shape[0] * shape[2] * shape[3]), squares / (shape[0] * shape[2] * shape[3])
        config = self.config
        return {
            "version": VERSION,
            "source": config.source,
            "images": shape[0],
            "shape": shape[1:],
            "class_names": self.source.class_names,
            "held_out": {"images": counts[1], "rule": self.rule},
            "resized": {"fit": config.fit, "background": config.background, "filter": "bilinear, antialiased"},
            "limit": config.limit,
            "mean": mean.round(3).tolist(),
            "standard_deviation": np.sqrt(np.maximum(mean_square - mean**2, 0)).round(3).tolist(),
            "sha256": digests,
        }


_preparation: Preparation  # of a worker


def _workers(preparation: Preparation) -> Executor:
    """Return a process for each core: Pillow spends half of its time in Python, where threads wait for each other.

    Sources are not pickled, so the processes are forked, or are threads where that is not safe.
    """
    if sys.platform != "linux":
        return ThreadPoolExecutor(num_cores(), initializer=_start_worker, initargs=(preparation, False))
    context = multiprocessing.get_context("fork")
    return ProcessPoolExecutor(num_cores(), context, initializer=_start_worker, initargs=(preparation, True))


def _start_worker(preparation: Preparation, forked: bool) -> None:
    global _preparation
    _preparation = preparation
    if forked:
        torch.set_num_threads(1)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process ends the workers
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # also where that is killed


def _decode_part(rows: range, path: Path) -> int:
    return _preparation.decode_part(rows, path)


def check_read(unread: Sequence[Sequence[str]], config: DataConfig) -> None:
    """Raise `ValueError` with their names for images that cannot be read, unless they are to be skipped."""
    if not unread or config.unreadable == "skip":
        return
    named = "; ".join(f"{name} {reason}" for name, reason in unread[:NAMED])
    more = f"; and {len(unread) - NAMED:,} more" if len(unread) > NAMED else ""
    raise ValueError(
        f"{len(unread):,} images of {config.source} cannot be used: {named}{more}. Mend them, or give "
        "--data.unreadable skip"
    )


def _by(size: Sequence[int]) -> str:
    """Describe a height and a width, as pictures are: width first."""
    return f"{size[1]}x{size[0]}"


@contextmanager
def _pillows_warnings() -> Iterator[None]:
    """Silence Pillow's warnings of odd files; a picture that is too large for it is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield
