"""Where the files of a backbone are: a local folder, or a repository of the Hub."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from skdiec.backbones.config_files import exists, read_json
from skdiec.backbones.models import WEIGHTS_NAME, find_weights
from skdiec.messages import shown

INDEX_FILE = "model_index.json"
"""File that makes a folder a pipeline of diffusers, and is written last."""

_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass
class Repository:
    """A folder whose files are there, or come from the Hub when they are asked for.

    Parameters
    ----------
    name : str
        Path or Hub id.
    root : Path or None
        The folder. None where it is a repository of the Hub.
    revision : str, default=None
        Branch, tag or commit of the Hub.
    subfolder : str, default=""
        Part of the repository that counts as all of it.
    """

    name: str
    root: Path | None
    revision: str | None = None
    subfolder: str = ""
    _patterns: list[str] = field(default_factory=list)

    def fetch(self, *patterns: str) -> Path:
        """Have the files that match some patterns, and return the folder that they are in.

        Parameters
        ----------
        *patterns : str
            Paths relative to the folder, in which ``*`` stands for anything.

        Returns
        -------
        Path

        Raises
        ------
        ValueError
            Where nothing can be fetched, and nothing was before.
        """
        if self.root is not None:
            return self.root
        prefix = f"{self.subfolder}/" if self.subfolder else ""
        self._patterns += [prefix + pattern for pattern in patterns if prefix + pattern not in self._patterns]
        folder = _snapshot(self.name, self._patterns, self.revision)
        if _COMMIT.fullmatch(folder.name):  # what is fetched next is of the same commit
            self.revision = folder.name
        return folder / self.subfolder

    def json(self, path: str) -> dict[str, Any] | None:
        """Read a JSON file.

        Parameters
        ----------
        path : str

        Returns
        -------
        dict or None
            None where there is no such file.
        """
        file = self.fetch(path) / path
        return read_json(file) if exists(file) else None

    def weights(self, part: str, variant: str | None = None) -> Path:
        """Have the weights of a part, and return its folder.

        Parameters
        ----------
        part : str
            Name of the part's folder; the repository itself where it is empty.
        variant : str, default=None
            Which weights to take, where there are several. None is those without a name, or the only ones.

        Returns
        -------
        Path
        """
        prefix = f"{part}/" if part else ""
        folder = self.fetch(f"{prefix}config.json") / part
        if self.root is not None:
            return folder
        # What else is there, such as weights of half precision beside full ones, is not fetched.
        dotted = f".{variant}" if variant else ""
        plain = f"{WEIGHTS_NAME}{dotted}.safetensors"
        indexes = f"{WEIGHTS_NAME}.safetensors.index{dotted}.json", f"{plain}.index.json"
        self.fetch(prefix + plain, *(prefix + index for index in indexes))
        if any(exists(folder / index) for index in indexes):
            self.fetch(*(prefix + path.name for path in find_weights(folder, variant)))
        elif not exists(folder / plain):
            self.fetch(f"{prefix}{WEIGHTS_NAME}*.safetensors*")
        return folder


def _snapshot(name: str, patterns: Sequence[str], revision: str | None) -> Path:
    """Return a folder with the files of a Hub repository that match; from its cache where there is no network."""
    from huggingface_hub import snapshot_download

    options: dict[str, Any] = {} if revision is None else {"revision": revision}
    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns), **options))
    except Exception as error:  # the client raises its own, httpx's and the operating system's errors
        raise ValueError(
            f"backbone {name!r} is neither a local folder nor could it be fetched from the Hub: {error}"
        ) from error


@dataclass(frozen=True)
class Index:
    """What a pipeline's ``model_index.json`` says.

    Attributes
    ----------
    where : str
        How errors name the pipeline.
    kind : str
        Class of the pipeline.
    parts : dict of str to tuple of str
        Library and class of each part that there is.
    options : dict
        All else.
    """

    where: str
    kind: str
    parts: dict[str, tuple[str, str]]
    options: dict[str, Any]

    @classmethod
    def read(cls, repository: Repository) -> Index | None:
        """Read the index of a repository, None where it has none.

        Raises
        ------
        ValueError
            Where it is unreadable, or a part is no pair of library and class.
        """
        values = repository.json(INDEX_FILE)
        if values is None:
            return None
        folder = repository.fetch(INDEX_FILE)
        return cls.of(values, f"backbone {folder}", f"backbone file {folder / INDEX_FILE}")

    @classmethod
    def of(cls, values: Mapping[str, Any], where: str, file: str) -> Index:
        """Sort the values of an index.

        Parameters
        ----------
        values : mapping
        where, file : str
            How errors name the pipeline and the file.

        Returns
        -------
        Index
        """
        parts: dict[str, tuple[str, str]] = {}
        options: dict[str, Any] = {}
        for name, value in values.items():
            is_list = isinstance(value, list)
            if name.startswith("_") or name in _OPTIONS or not isinstance(value, (list, dict)):
                options[name] = value
                continue
            if not is_list or len(value) != 2 or not all(isinstance(item, (str, type(None))) for item in value):
                raise ValueError(f"{file}: {name} must be a pair [library, class]; got {shown(value)}")
            if value[1] is not None:
                parts[name] = (value[0] or "", value[1])
        return cls(where, str(values.get("_class_name", "unknown"))[:80], parts, options)


_OPTIONS = frozenset({"id2label"})
"""Options of pipelines that are no numbers or words."""
