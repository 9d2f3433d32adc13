"""Folders on disk: files that appear in them whole or not at all, and one writer at a time."""

from __future__ import annotations

import logging
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

LOCK_FILE = ".lock"
"""File that the one call which writes to a folder holds locked. It stays there."""

PARTIAL_FOLDER = ".skdiec.partial"
"""Subfolder of files that are being written. A killed call leaves it, and the next one removes it."""

_PATIENCE_SECONDS = 2.0


def as_folder(folder: Any) -> Path:
    """Return the path of a folder that exists or can be made.

    Parameters
    ----------
    folder : path

    Returns
    -------
    Path

    Raises
    ------
    ValueError
        For what is no path, and for the path of something else.
    """
    if isinstance(folder, str) and not folder:
        raise ValueError("folder must be a path or None; got an empty name")
    try:
        path = Path(folder)
    except TypeError:
        raise ValueError(f"folder must be a path or None; got {type(folder).__name__}") from None
    try:
        is_folder = stat.S_ISDIR(os.stat(path).st_mode)
    except FileNotFoundError:
        return path
    except (OSError, ValueError) as error:  # too long, below a file, not readable, a null character
        raise ValueError(f"folder cannot be used: {reason(error)}; got {str(path)[:200]!r}") from error
    if not is_folder:
        raise ValueError(f"folder must be a folder; {path} is a file")
    return path


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make a folder, and be its only writer: other threads and processes wait, and say so after two seconds.

    Parameters
    ----------
    folder : Path

    Returns
    -------
    context manager

    Raises
    ------
    ValueError
        Where the folder cannot be made or written to.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder / LOCK_FILE)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=_PATIENCE_SECONDS)
        except Timeout:
            logger.warning("waiting for another call that trains a backbone in %s", folder)
            lock.acquire()
    except (OSError, NotImplementedError) as error:
        raise ValueError(f"folder {folder} cannot be written to: {reason(error)}") from error
    try:
        try:
            with replacing(folder):
                pass  # removes what a killed call left, and tries whether files can be made
        except OSError as error:
            raise ValueError(f"folder {error}") from error
        yield
    finally:
        lock.release()


@contextmanager
def replacing(folder: Path, *, last: str = "") -> Iterator[Path]:
    """Write files to a subfolder, whence they go to the folder one by one when all are complete and on the disk.

    Parameters
    ----------
    folder : Path
        Made where it does not exist.
    last : str, default=""
        Name of the file that comes last. It is removed before any other is replaced, so that its presence says
        that the files belong together.

    Returns
    -------
    context manager
        Of the path of the subfolder, empty. What is there at the end replaces files of the same names; all else stays.

    Raises
    ------
    OSError
        Where something cannot be written, for instance for want of space.
    """
    from safetensors import SafetensorError

    partial = folder / PARTIAL_FOLDER
    try:
        remove(partial)
        partial.mkdir(parents=True)
        try:
            mode = _mode_of_new_files(partial)
            yield partial
            files = sorted(path for path in partial.rglob("*") if path.is_file())
            for path in files:
                with path.open("r+b") as file:
                    os.fsync(file.fileno())
                if stat.S_IMODE(path.stat().st_mode) != mode:  # safetensors makes files that only their owner reads
                    path.chmod(mode)
            (folder / last).unlink(missing_ok=True) if last else None
            for path in sorted(files, key=lambda path: path.name == last):
                target = folder / path.relative_to(partial)
                target.parent.mkdir(parents=True, exist_ok=True)
                path.replace(target)
        finally:
            remove(partial)
    except (OSError, SafetensorError) as error:
        raise OSError(f"{folder} cannot be written to: {reason(error)}") from error


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it, where there is one.

    Parameters
    ----------
    path : Path
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def reason(error: BaseException) -> str:
    """Return what went wrong, without the number and the file that the system adds.

    Parameters
    ----------
    error : BaseException

    Returns
    -------
    str
    """
    return getattr(error, "strerror", None) or str(error)


def _mode_of_new_files(folder: Path) -> int:
    # To ask for the umask is to set it, for all threads.
    probe = folder / "mode"
    probe.touch()
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    return mode
