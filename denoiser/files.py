"""Files and folders that appear whole or not at all."""

import errno
import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

# What a file system says that has no locks.
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def sync_all(path: Path) -> None:
    """Have a file, or a folder and all that is in it, written to the disk before going on."""
    for inner in path.rglob("*"):
        sync(inner)
    sync(path)


def sync(path: Path) -> None:
    """Have a file, or the names in a folder, written to the disk before going on."""
    if path.is_dir() and os.name == "nt":
        return  # where folders cannot be opened
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise `OSError` if no file or folder can be made at `path`: better to learn it now than after an hour."""
    folder = next(parent for parent in Path(path).absolute().parents if parent.exists())
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise type(error)(f"{path} cannot be written ({error.strerror}: {folder}); give another place") from error


def locked(path: Path) -> BinaryIO:
    """Open a file, made if missing, and lock it until it is closed or the process ends, however it ends.

    Where there are no locks, as on Windows and on some network file systems, a warning says so.

    Raises:
        BlockingIOError: If another has locked it.
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
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside `path` to write a file or a folder to, and move it into place if all went well.

    What stood at `path` before is replaced once the new is on the disk; if the block raises, it stays and the
    temporary is removed.

    Args:
        path: Where the file or folder shall be; its parent is made if missing.

    Raises:
        OSError: If the place cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays, because savers choose the format by it.
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
