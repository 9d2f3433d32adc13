"""Folders on disk: files that appear in them whole or not at all, and one writer at a time."""

from __future__ import annotations

import logging
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
            files = _on_disk(partial, mode)
            (folder / last).unlink(missing_ok=True) if last else None
            for path in sorted(files, key=lambda path: path.name == last):
                target = folder / path.relative_to(partial)
                target.parent.mkdir(parents=True, exist_ok=True)
                path.replace(target)
        finally:
            remove(partial)
    except (OSError, SafetensorError) as error:
        raise OSError(f"{folder} cannot be written to: {reason(error)}") from error


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that a kill or a full disk leaves what was there before, or all of the new content.

    Parameters
    ----------
    path : Path
        Its folder is there. A link stays one. What is no regular file, such as a pipe, is written to as it is.
    content : bytes

    Raises
    ------
    OSError
        Where the file cannot be written.
    """
    actual = Path(os.path.realpath(path))
    new = actual.with_name(f".{secrets.token_hex(8)}.new")
    try:
        if actual.exists() and not actual.is_file():
            actual.write_bytes(content)
            return
        try:
            with new.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if actual.exists():
                shutil.copymode(actual, new)
            new.replace(actual)
        finally:
            with suppress(OSError):
                new.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(f"{path} cannot be written: {reason(error)}") from error


@contextmanager
def replacing_whole(folder: Path) -> Iterator[Path]:
    """Write a folder beside another one, whose place it takes when all of it is on the disk.

    A killed call leaves the former folder or the new one. What else it leaves are hidden folders beside it, which the
    next call for the same folder removes. Calls for folders of one parent wait for each other, where the system can
    lock a folder (not on Windows).

    Parameters
    ----------
    folder : Path
        Without links. It need not exist. All that is in it goes.

    Returns
    -------
    context manager
        Of the path of the new folder, empty. Nothing happens to the former one where the block raises.

    Raises
    ------
    OSError
        Where something cannot be written, for instance for want of space.
    """
    from safetensors import SafetensorError

    mark = secrets.token_hex(4)
    new, old = (folder.with_name(f".{folder.name}.skdiec-{kind}-{mark}") for kind in ("new", "old"))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _only_writer(folder.parent):
            put_back(folder)
            for path in _left_beside(folder, "new|old"):
                remove(path)
            new.mkdir()
            try:
                mode = _mode_of_new_files(new)
                yield new
                _on_disk(new, mode)
                if folder.exists():
                    shutil.copymode(folder, new)  # what only its owner could read stays so
                    folder.rename(old)
                    # Killed here, there is no folder: see `put_back`.
                    try:
                        new.rename(folder)
                    except BaseException:
                        old.rename(folder)
                        raise
                    old.rename(new)  # a name from which nothing is put back: it is half a folder soon
                else:
                    new.rename(folder)
            finally:
                shutil.rmtree(new, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise OSError(f"{folder} cannot be written to: {reason(error.__cause__ or error)}") from error


def put_back(folder: Path) -> None:
    """Give a folder its name again, where `replacing_whole` was killed between taking it away and giving it to another.

    Parameters
    ----------
    folder : Path
        Nothing is done where there is one.
    """
    if not os.path.lexists(folder):
        for path in _left_beside(folder, "old")[:1]:
            path.rename(folder)


def _left_beside(folder: Path, kinds: str) -> list[Path]:
    pattern = re.compile(rf"\.{re.escape(folder.name)}\.skdiec-({kinds})-[0-9a-f]{{8}}")
    try:
        return sorted(path for path in folder.parent.iterdir() if pattern.fullmatch(path.name))
    except OSError:  # a folder whose files may be read, but not listed
        return []


@contextmanager
def _only_writer(folder: Path) -> Iterator[None]:
    """Wait until no other call holds a folder, then hold it. A killed process holds nothing."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network disks lock no folders
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _on_disk(folder: Path, mode: int) -> list[Path]:
    """Have the system write all files of a folder, and give them a mode; return their paths, sorted."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        with path.open("r+b") as file:
            os.fsync(file.fileno())
        if stat.S_IMODE(path.stat().st_mode) != mode:  # safetensors makes files that only their owner reads
            path.chmod(mode)
    return files


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
