"""Atomic writes, locks and checksums of files and folders."""

import errno
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"

# Errors of file systems without locks.
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def write_manifest(folder: Path) -> None:
    """Write the size and the SHA-256 of each file in a folder into its `manifest.json`."""
    sums = {name: {"bytes": file.stat().st_size, "sha256": sha256(file)} for name, file in _files(folder).items()}
    (folder / MANIFEST).write_text(json.dumps(sums, indent=2) + "\n", encoding="utf-8")


def check_manifest(folder: Path) -> None:
    """Raise `ValueError` unless a folder has exactly the files of its manifest, unaltered."""
    if not (folder / MANIFEST).is_file():
        raise ValueError(f"it has no {MANIFEST}")
    try:
        listed = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        sums = {name: (facts["bytes"], facts["sha256"]) for name, facts in listed.items()}
    except (AttributeError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{MANIFEST} is no manifest ({error!r})") from error
    files = _files(folder)
    if names := sorted(files.keys() ^ sums.keys()):
        raise ValueError(f"{names[0]} is {'not in the manifest' if names[0] in files else 'missing'}")
    for name, file in files.items():
        if (file.stat().st_size, sha256(file)) != sums[name]:
            raise ValueError(f"{name} is not as it was written")


def _files(folder: Path) -> dict[str, Path]:
    """Return the files in a folder, without the manifest, by name."""
    files = {file.relative_to(folder).as_posix(): file for file in sorted(folder.rglob("*")) if file.is_file()}
    files.pop(MANIFEST, None)
    return files


def sync_all(path: Path) -> None:
    """Flush a file, or a folder and all that is in it, to the disk."""
    for inner in path.rglob("*"):
        sync(inner)
    sync(path)


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    if path.is_dir() and os.name == "nt":
        return  # where folders cannot be opened
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise `OSError` if no file or folder can be made at `path`."""
    folder = next(parent for parent in Path(path).absolute().parents if parent.exists())
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise type(error)(f"{path} cannot be written ({error.strerror}: {folder}); give another place") from error


def locked(path: Path) -> BinaryIO:
    """Open a file and lock it until it is closed or the process ends.

    On Windows and on file systems without locks, it is opened with a warning.
    """
    file = path.open("ab")
    try:
        if fcntl is None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            file.close()
            raise
        logger.warning("%s cannot be locked (%s): see to it that no second run writes there", path, error.strerror)
    return file


@contextmanager
def waiting_lock(path: Path) -> Iterator[None]:
    """Hold the lock of a file; wait while another process has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        try:
            lock = locked(path)
            break
        except BlockingIOError:
            time.sleep(0.2)
    with lock:
        yield


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path for a file or folder, which replaces `path` at the end of the block.

    The new file is on the disk before it replaces the old one. If the block raises, the old one stays.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays: savers choose the format by it.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        yield temporary
        sync_all(temporary)
        if path.is_dir() and temporary.is_dir():  # a file never takes the place of a folder
            shutil.rmtree(path)
        temporary.replace(path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)
