"""The preparation of a set: decoding with all cores into parts, and joining the parts."""

import ctypes
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from denoiser.data.config import LARGEST_SIDE, SMALLEST, DataConfig
from denoiser.data.form import IMAGES, LABELS, VERSION, write_facts
from denoiser.data.parts import Part, check_read, digest_of, images_of, parts_of
from denoiser.data.pictures import fitted, quiet_pillow, with_channels
from denoiser.data.source import Source
from denoiser.data.split import HELD_OUT, LEFT_OUT, TRAINED, lowest_hashes, sides_of
from denoiser.device import num_cores
from denoiser.files import sync_all

PART_BYTES, LARGEST_PART = 1 << 25, 256  # bytes of a part, and images in it
SIZES_TOLD = 10
PR_SET_PDEATHSIG = 1  # as <sys/prctl.h> numbers it

OnProgress = Callable[[int, int], object]
Size = tuple[int, int]


class Preparation:
    """Makes a prepared set.

    Args:
        config: Settings of the set.
        source: Its images.
        rule: Share of the images to hold out, or a name of another rule: the source's own.
        first: The first image that can be read, `(channels, height, width)`.
        size: Height and width.
        folder: The folder that is made.
        on_progress: Called with the numbers of images that are decoded, and of all.
    """

    def __init__(
        self,
        config: DataConfig,
        source: Source,
        rule: str | float,
        first: Tensor,
        size: Size,
        folder: Path,
        on_progress: OnProgress,
    ) -> None:
        self.config, self.source, self.rule, self.folder = config, source, rule, folder
        self.size, self.on_progress = size, on_progress
        self.parts = parts_of(folder)
        channels = config.channels
        if channels and not {len(first), channels} <= {1, 3} and len(first) != channels:
            raise ValueError(
                f"{config.source} has images of {len(first)} channels, not {channels}, and only grey and colour are "
                f"converted; give --data.channels {len(first)}"
            )
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
        with self._refusals(), quiet_pillow():
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
        with self._refusals():
            sides = self._sides(parts)
        self._write(paths, parts, sides, list(chain(*unread)))
        shutil.rmtree(self.parts, ignore_errors=True)

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        """Remove the parts of a set that cannot be."""
        try:
            yield
        except ValueError:
            shutil.rmtree(self.parts, ignore_errors=True)
            raise

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
            try:
                futures = [pool.submit(_decode_part, rows, path) for path, rows in waiting.items()]
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
        digests, sizes, unread = [], [], []
        for row in rows:
            try:
                decoded = self.source.read(row, self.config.background)
            except ValueError as error:
                unread.append([self.source.names[row], str(error)])
                continue
            try:
                image = with_channels(decoded, self.channels)
            except ValueError as error:  # not of this image alone, so that none is skipped
                raise ValueError(f"{self.source.names[row]} {error}") from error
            if self.config.size is None and tuple(image.shape[1:]) != self.size:
                other = f"{_by(image.shape[1:])} ({self.source.names[row]})"
                raise ValueError(mixed_sizes(self.config, _by(self.size), other))
            images[len(read)] = fitted(image, self.size, self.config.fit, self.config.background).numpy()
            digests.append(digest_of(decoded))
            sizes.append(image.shape[1:])
            read.append(row)
        Part.of(images[: len(read)], read, digests, sizes, unread).save(path)
        return len(rows)

    def _sides(self, parts: Sequence[Part]) -> np.ndarray:
        """Return the side of each image, of those that can be read."""
        rows = np.concatenate([part.rows for part in parts])
        digests = np.concatenate([part.digests for part in parts])
        labels = None if self.source.labels is None else self.source.labels[rows]
        if isinstance(self.rule, str):
            held_out = rows >= len(self.source) - self.source.held_out
        else:
            held_out = lowest_hashes(digests, labels, self.rule)
        sides = sides_of(held_out, digests, distinct=isinstance(self.config.held_out, str))
        if not (sides == TRAINED).any():
            equal = f" that {self.config.held_out} does not have" if (sides == LEFT_OUT).any() else ""
            raise ValueError(f"{self.config.source} has no images to train on{equal}; give a source with some")
        return sides

    def _write(self, paths: Sequence[Path], parts: Sequence[Part], sides: np.ndarray, unread: list[list[str]]) -> None:
        """Write the set beside its parts, and move it to its place: a killed process leaves nothing else."""
        if self.config.channels is None and all(part.grey for part in parts):
            self.channels = 1
        rows = np.concatenate([part.rows for part in parts])
        order = np.concatenate([rows[sides == side] for side in (TRAINED, HELD_OUT)])
        labels = None if self.source.labels is None else self.source.labels[order]
        sides_by_part = np.split(sides, np.cumsum([len(part.rows) for part in parts])[:-1])
        temporary = self.parts / "set"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            digests = self._write_images(temporary / IMAGES, paths, sides_by_part, labels)
            if labels is not None:
                np.save(temporary / LABELS, labels)
            facts = self._facts(parts, sides, unread, digests)
            write_facts(temporary, facts)
            sync_all(temporary)
            if self.folder.exists():  # without a set.json
                shutil.rmtree(self.folder)
            temporary.replace(self.folder)
        except OSError:
            shutil.rmtree(temporary, ignore_errors=True)  # which gives room on a full disk
            raise

    def _write_images(
        self, path: Path, paths: Sequence[Path], sides: Sequence[np.ndarray], labels: np.ndarray | None
    ) -> list[str]:
        """Write the training images, then the held-out ones; returns the hash of each side that has some."""
        counts = [int(sum((chosen == side).sum() for chosen in sides)) for side in (TRAINED, HELD_OUT)]
        digests = [hashlib.sha256(), hashlib.sha256()]
        with path.open("wb") as file:
            shape = (sum(counts), self.channels, *self.size)
            np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
            places = [file.tell(), file.tell() + counts[0] * self.channels * self.size[0] * self.size[1]]
            for part, chosen in zip(paths, sides, strict=True):
                decoded = images_of(part)
                for side in (TRAINED, HELD_OUT):
                    images = np.ascontiguousarray(decoded[chosen == side, : self.channels])
                    digests[side].update(images.data)
                    file.seek(places[side])
                    places[side] += file.write(images.data)
        if labels is not None:
            digests[TRAINED].update(labels[: counts[0]].data)
            digests[HELD_OUT].update(labels[counts[0] :].data)
        return [digest.hexdigest() for digest, count in zip(digests, counts, strict=True) if count]

    def _facts(
        self, parts: Sequence[Part], sides: np.ndarray, unread: list[list[str]], digests: list[str]
    ) -> dict[str, Any]:
        """Return the content of `set.json`."""
        config, kept = self.config, sides != LEFT_OUT
        count = int(kept.sum())
        total = np.concatenate([part.sums for part in parts])[kept].sum(axis=0)[:, : self.channels]
        mean, mean_square = total / (count * self.size[0] * self.size[1])
        sizes = Counter(_by(size) for size in np.concatenate([part.sizes for part in parts])[kept].tolist())
        return {
            "version": VERSION,
            "source": config.source,
            "images": count,
            "shape": [self.channels, *self.size],
            "class_names": list(self.source.class_names),
            "held_out": {"images": int((sides == HELD_OUT).sum()), "rule": self.rule},
            "left_out": int((sides == LEFT_OUT).sum()),
            "resized": {"fit": config.fit, "background": config.background, "filter": "bilinear, antialiased"},
            "limit": config.limit,
            "mean": mean.round(3).tolist(),
            "standard_deviation": np.sqrt(np.maximum(mean_square - mean**2, 0)).round(3).tolist(),
            "sizes_before": dict(sizes.most_common(SIZES_TOLD)),
            "unreadable": unread,
            "sha256": digests,
        }


def first_image(source: Source, config: DataConfig) -> Tensor:
    """Return the first image that can be read, `(channels, height, width)`."""
    reason = ""
    with quiet_pillow():
        for index, name in enumerate(source.names):
            try:
                return source.read(index, config.background)
            except ValueError as error:
                reason = reason or f"{name} {error}"
    raise ValueError(f"none of the {len(source):,} images of {config.source} can be read: {reason}")


def mixed_sizes(config: DataConfig, one: str, other: str) -> str:
    """Describe images of several sizes where none is asked for."""
    return f"{config.source} has images of {one} and of {other}; give --data.size"


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


def _by(size: Sequence[int]) -> str:
    """Describe a height and a width, as pictures are: width first."""
    return f"{size[1]}x{size[0]}"
