"""A folder of results, in which only what was written before is replaced."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from skdiec.cli.console import Console, Report, shown_path

MANIFEST_FILE = ".skdiec-files.json"
"""What was written to a folder, and how large and how old each file was then."""

WORK_FOLDER = ".work"
MODEL_FOLDER = "model"
CLUSTERS_FOLDER = "clusters"

_LONGEST_NAME = 100  # of a folder, so that it suits any disk


def default_output(folder: Path) -> Path:
    """Return where the results for a folder of images, or a list of them, go.

    Parameters
    ----------
    folder : Path

    Returns
    -------
    Path
        Beside it.
    """
    actual = Path(os.path.abspath(folder))
    name = actual.stem if actual.is_file() else actual.name
    if not name:
        raise ValueError(f"--out must say where results go, since nothing can be beside {shown_path(folder)}")
    beside = folder.parent if folder.name not in ("", "..") else actual.parent
    return beside / f"{name}-clusters"


def check_new(path: Path, *, overwrite: bool) -> None:
    """Raise ValueError for a file that cannot be made, or is there already.

    Parameters
    ----------
    path : Path
    overwrite : bool
        Whether it may be there.
    """
    if path.is_dir():
        raise ValueError(f"--out must be a file; {shown_path(path)} is a folder")
    if not overwrite and os.path.lexists(path):
        raise ValueError(f"{shown_path(path)} is there already: --overwrite replaces it")
    if not path.parent.is_dir():
        raise ValueError(f"there is no folder {shown_path(path.parent)} for {path.name}")


class OutputFolder:
    """A folder of results.

    Parameters
    ----------
    path : Path
        Made where it does not exist.
    console : Console
        For warnings.

    Raises
    ------
    ValueError
        For a folder that holds something else.

    Attributes
    ----------
    path : Path
    """

    def __init__(self, path: Path, console: Console) -> None:
        self.path, self._console = path, console
        manifest = path / MANIFEST_FILE
        try:
            if path.exists() and not path.is_dir():
                raise ValueError(f"--out must be a folder; {shown_path(path)} is a file")
            names = sorted(entry.name for entry in path.iterdir()) if path.exists() else []
            if names and MANIFEST_FILE not in names:
                raise ValueError(
                    f"--out must be a folder that is new, empty or of earlier results; {shown_path(path)} has "
                    f"{shown_path(names[0])}"
                )
            path.mkdir(parents=True, exist_ok=True)
            self._written: dict[str, list] = dict(json.loads(manifest.read_text())) if names else {}
            self._save()
        except OSError as error:
            raise ValueError(
                f"{shown_path(path)} cannot be written to: {error.strerror or error}; --out says where results go"
            ) from error
        except (json.JSONDecodeError, TypeError, UnicodeDecodeError) as error:
            raise ValueError(f"{shown_path(manifest)} is damaged: {error}. Choose another folder with --out") from error

    @property
    def work(self) -> Path:
        """Where unfinished work is kept."""
        return self.path / WORK_FOLDER

    def check_free(self, names: Iterable[str]) -> None:
        """Raise ValueError where something that was not written by this has a name that is needed.

        Parameters
        ----------
        names : iterable of str
        """
        strangers = [name for name in names if os.path.lexists(self.path / name) and name not in self._written]
        if strangers:
            raise ValueError(
                f"{shown_path(self.path / strangers[0])} was not written by skdiec: move it, or choose another folder "
                "with --out"
            )

    def write(self, files: Mapping[str, bytes]) -> None:
        """Write files, of which each appears whole or not at all. Earlier ones that people have changed are kept.

        Parameters
        ----------
        files : mapping of str to bytes
        """
        from skdiec.backbones.folders import replacing

        for name in files:
            self.keep_changed(name)
        with replacing(self.path) as partial:
            for name, content in files.items():
                (partial / name).write_bytes(content)
        self.note(files)

    def note(self, names: Iterable[str]) -> None:
        """Remember that these were written.

        Parameters
        ----------
        names : iterable of str
        """
        self._written |= {name: _state(self.path / name) for name in names}
        self._save()

    def keep_changed(self, name: str) -> None:
        """Give a file another name, where people have changed it.

        Parameters
        ----------
        name : str
        """
        path = self.path / name
        if os.path.lexists(path) and _state(path) != self._written.get(name):
            self.set_aside(name)

    def set_aside(self, name: str) -> None:
        """Give a file or folder another name, and say so.

        Parameters
        ----------
        name : str
        """
        path = self.path / name
        kept = next(_other_names(path))
        path.rename(kept)
        self._console.warn(f"{shown_path(path)} was changed since it was written: it is kept as {kept.name}")

    def lay_out(self, groups: Mapping[str, Sequence[Path]], *, copy: bool, report: Report | None = None) -> None:
        """Copy or link files into one folder for each group.

        Parameters
        ----------
        groups : mapping of str to sequence of Path
            By the folder's name.
        copy : bool
            Else they are linked.
        report : callable, default=None
            Called as ``report(done, total)``.
        """
        n_done, total = 0, sum(map(len, groups.values()))
        try:
            for name, paths in groups.items():
                folder = self.path / CLUSTERS_FOLDER / name
                folder.mkdir(parents=True, exist_ok=True)
                taken = {entry.name.casefold() for entry in folder.iterdir()}
                for path in paths:
                    target = folder / _free_name(path.name, taken)
                    taken.add(target.name.casefold())
                    _copy(path, target) if copy else target.symlink_to(os.path.abspath(path))
                    self._written[f"{CLUSTERS_FOLDER}/{name}/{target.name}"] = _state(target)
                    n_done += 1
                    if report is not None:
                        report(n_done, total)
        finally:
            self._save()

    def clear_layout(self) -> None:
        """Remove the copies and links of an earlier call, but what people have changed."""
        folders = set()
        n_kept = 0
        for name in [name for name in self._written if name.startswith(f"{CLUSTERS_FOLDER}/")]:
            path = self.path / name
            folders |= {path.parent}
            if os.path.lexists(path):
                if _state(path) == self._written[name]:
                    path.unlink()
                else:
                    n_kept += 1
            del self._written[name]
        for folder in [*sorted(folders), self.path / CLUSTERS_FOLDER]:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        if n_kept:
            self._console.warn(f"{n_kept} files in {shown_path(self.path / CLUSTERS_FOLDER)} were changed: they stay")
        self._save()

    def _save(self) -> None:
        from skdiec.backbones.folders import write_whole

        write_whole(self.path / MANIFEST_FILE, json.dumps(self._written).encode())


def folder_names(n_clusters: int, names: Mapping[int, str]) -> list[str]:
    """Return the name of each cluster's folder: its number, or its name as far as disks take it.

    Parameters
    ----------
    n_clusters : int
    names : mapping of int to str

    Returns
    -------
    list of str
        No two alike, by any disk's rules.

    Examples
    --------
    >>> folder_names(11, {1: "cats/dogs", 2: "CATS_dogs", 3: ".."})[:4]
    ['00', 'cats_dogs', 'CATS_dogs 02', '03']
    """
    width = len(str(n_clusters - 1))
    found: list[str] = []
    taken = {f"{cluster:0{width}}" for cluster in range(n_clusters)}
    for cluster in range(n_clusters):
        number = f"{cluster:0{width}}"
        marks = (mark if mark.isprintable() and mark not in '<>:"/\\|?*' else "_" for mark in names.get(cluster, ""))
        name = "".join(marks)[:_LONGEST_NAME].strip(" .") or number
        if name != number and name.casefold() in taken:
            name = f"{name} {number}"
        taken.add(name.casefold())
        found.append(name)
    return found


def _state(path: Path) -> list:
    """Return what tells a file from one that was changed: its size and its time, or where a link leads."""
    if path.is_symlink():
        return [os.readlink(path)]
    status = path.stat()
    return ["folder"] if path.is_dir() else [status.st_size, status.st_mtime_ns]


def _copy(path: Path, target: Path) -> None:
    """Copy a file, or nothing."""
    try:
        shutil.copy2(path, target)
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def _free_name(name: str, taken: set[str]) -> str:
    if name.casefold() not in taken:
        return name
    return next(path.name for path in _other_names(Path(name)) if path.name.casefold() not in taken)


def _other_names(path: Path) -> Iterator[Path]:
    """Yield names for another file beside one, that nothing has."""
    number = 1
    while True:
        other = path.with_name(f"{path.stem}.{number}{path.suffix}")
        if not os.path.lexists(other):
            yield other
        number += 1
