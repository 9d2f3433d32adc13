"""Models on disk: folders of JSON, arrays and diffusers pipelines, written as a whole and read with caution."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skdiec._version import __version__
from skdiec.backbones import Backbone, load_backbone
from skdiec.backbones.config_files import Fields, opened_tensors, read_json
from skdiec.backbones.folders import as_folder, put_back, reason, replacing_whole
from skdiec.backbones.hashing import update_hash
from skdiec.messages import shown

FORMAT = 1
"""Version of what is written. It grows with each change that an earlier reader would misunderstand."""

_UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
"""For each former format, what makes its values those of the next one."""

VALUES_FILE = "model.json"
ARRAYS_FILE = "model.safetensors"
CARD_FILE = "README.md"
BACKBONE_FOLDERS = ("backbone", "frozen_backbone")
"""Where backbones are. The second one is that of a fit which trained the first."""

MAX_VALUES_BYTES = 2**24
"""Bytes that the JSON may have. What can be long, such as names of files, is among the arrays."""

DTYPES = {
    "bool": "BOOL",
    **{f"int{bits}": f"I{bits}" for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": f"U{bits}" for bits in (8, 16, 32, 64)},
    **{f"float{bits}": f"F{bits}" for bits in (16, 32, 64)},
}
"""Types that arrays can have, and what safetensors calls them."""

Expected = tuple[str, tuple[int, ...]]
"""Type and shape of an array."""

_BACKBONE_FILES = (
    "model_index.json",
    "skdiec.json",
    "condition.safetensors",
    "scheduler/scheduler_config.json",
    *(
        f"{part}/{file}"
        for part in ("unet", "transformer", "vae", "vqvae", "movq")
        for file in (
            "config.json",
            "diffusion_pytorch_model*.safetensors",
            "diffusion_pytorch_model.safetensors.index.json",
        )
    ),
)
_HUB_FILES = (
    VALUES_FILE,
    ARRAYS_FILE,
    *(f"{folder}/{file}" for folder in BACKBONE_FOLDERS for file in _BACKBONE_FILES),
)
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_MAX_BACKBONE_FILES = 1000
_KEYS = {"format", "skdiec", "class", "parameters", "fitted", "fortran_order", "backbones"}


# Writing


def write_model(
    folder: str | os.PathLike,
    values: Mapping[str, Any],
    arrays: Mapping[str, NDArray],
    backbones: Sequence[Backbone],
    card: str,
    check: Callable[[Path], object],
    *,
    reference: str | None = None,
    overwrite: bool = False,
) -> None:
    """Write a model as a folder: all of it, or nothing.

    Parameters
    ----------
    folder : path
        Made where it does not exist.
    values : mapping
        ``"class"``, a str, and ``"parameters"`` and ``"fitted"``, mappings of what JSON can hold.
    arrays : mapping of str to ndarray
        Of the types of `DTYPES`.
    backbones : sequence of Backbone
        One for each of `BACKBONE_FOLDERS` that is to be made.
    card : str
        Text of the README.
    check : callable
        Called with the new folder before it takes its place. It raises ValueError for what could not be loaded.
    reference : str, default=None
        Path or Hub id of the only backbone, which is then named instead of written.
    overwrite : bool, default=False
        Whether a model that is in the folder is replaced.

    Raises
    ------
    ValueError
        For a folder that holds something else, or a model without `overwrite`; and where `reference` has other weights
        than the backbone, and for what `check` refuses.
    OSError
        Where the folder cannot be written to.
    """
    from safetensors.numpy import save_file

    path = Path(os.path.realpath(as_folder(folder)))
    _check_replaceable(path, overwrite=overwrite)
    if reference is None:
        places = [{"folder": name} for name, _ in zip(BACKBONE_FOLDERS, backbones, strict=False)]
    else:
        places = [{"reference": reference, "weights": weights_hash(backbones[0])}]
        if weights_hash(load_backbone(reference)) != places[0]["weights"]:
            raise ValueError(f"backbone='reference': {shown(reference)} has other weights now than when fit read them")
    fortran = [name for name, array in arrays.items() if array.flags.f_contiguous and not array.flags.c_contiguous]
    record = {"format": FORMAT, "skdiec": __version__, **values, "fortran_order": fortran, "backbones": places}
    text = json.dumps(record, indent=1, allow_nan=False) + "\n"
    if len(text) > MAX_VALUES_BYTES:
        raise ValueError(f"the model's parameters take more than {MAX_VALUES_BYTES} bytes; pass long ones as arrays")
    with replacing_whole(path) as new:
        _check_replaceable(path, overwrite=overwrite)  # again: another call may just have written it
        if reference is None:
            for place, backbone in zip(places, backbones, strict=True):
                backbone.save_pretrained(new / place["folder"])
        # A file has no strides: one whose columns lie together is written as its transpose.
        stored = {name: np.asarray(array.T if name in fortran else array, order="C") for name, array in arrays.items()}
        save_file(stored, new / ARRAYS_FILE, metadata={"format": "np"})
        (new / CARD_FILE).write_text(card, encoding="utf-8", errors="replace")  # names of files may be no text
        (new / VALUES_FILE).write_text(text, encoding="ascii")
        check(new)


def weights_hash(backbone: Backbone) -> str:
    """Return a hash of what a backbone computes with: its weights and its noise schedule.

    Unlike `Backbone.fingerprint`, it stays the same where a later version of diffusers has further options.

    Parameters
    ----------
    backbone : Backbone

    Returns
    -------
    str
    """
    schedule = backbone.scheduler.config
    names = ("num_train_timesteps", "beta_schedule", "beta_start", "beta_end", "trained_betas", "prediction_type")
    others = [schedule[name] for name in ("sigma_min", "sigma_max", "sigma_data", "rho") if name in schedule]
    record = [*(schedule.get(name) for name in names), *others, *backbone.settings()]
    digest = hashlib.sha256(json.dumps(record, default=str).encode())
    for name, tensor in sorted(backbone.tensors().items()):
        # What a prompt is encoded to differs in the last bits between machines.
        if not name.startswith("condition:"):
            update_hash(digest, name, tensor)
    return digest.hexdigest()


def _check_replaceable(folder: Path, *, overwrite: bool) -> None:
    try:
        names = {path.name for path in folder.iterdir()}
    except FileNotFoundError:
        return
    except OSError as error:
        raise OSError(f"{folder} cannot be read: {reason(error)}") from error
    if not names:
        return
    strangers = sorted(names - {VALUES_FILE, ARRAYS_FILE, CARD_FILE, *BACKBONE_FOLDERS}) or _strangers_within(folder)
    if strangers or not _is_model(folder):
        has = ", ".join(strangers[:3]) or f"no {VALUES_FILE} of a model"
        raise ValueError(f"folder must be new, empty or a saved model with nothing beside it: {folder} has {has}")
    if not overwrite:
        raise ValueError(f"folder {folder} has a saved model already: overwrite=True replaces it")


def _strangers_within(folder: Path) -> list[str]:
    """Return what is in the folders of backbones that no backbone has."""
    found = []
    for place in BACKBONE_FOLDERS:
        parts = _parts(folder / place)
        for path in sorted((folder / place).rglob("*")):
            name = path.relative_to(folder / place)
            if len(name.parts) == 1:
                is_ours = str(name) in parts if path.is_dir() else str(name) in _BACKBONE_FILES
            else:  # other networks may have other files
                is_ours = len(name.parts) == 2 and path.is_file() and path.suffix in (".json", ".safetensors")
            if not is_ours:
                found.append(f"{place}/{name.as_posix()}")
    return found


def _parts(folder: Path) -> set[str]:
    """Return the folders of a backbone's networks, also those of families that users have registered."""
    known = {os.path.dirname(file) for file in _BACKBONE_FILES}
    with contextlib.suppress(ValueError):
        known |= read_json(folder / "model_index.json", max_bytes=MAX_VALUES_BYTES).keys()
    return known


def _is_model(folder: Path) -> bool:
    try:
        values = read_json(folder / VALUES_FILE, max_bytes=MAX_VALUES_BYTES)
    except ValueError:
        return False
    return {"format", "skdiec", "class"} <= values.keys()


# Reading


@dataclass(frozen=True)
class ModelFolder:
    """A folder with a model, of which the values have been read.

    Attributes
    ----------
    path : Path
    values : dict
        ``"class"``, a str, ``"parameters"`` and ``"fitted"``, dicts, in the present format.
    where : str
        How errors name the file of the values.
    identity : tuple of int
        By which the system knows the folder: another one that takes its place has another.
    """

    path: Path
    values: dict[str, Any]
    where: str
    identity: tuple[int, int]

    @property
    def where_arrays(self) -> str:
        """How errors name the file of the arrays."""
        return f"model file {self.path / ARRAYS_FILE}"

    @property
    def n_backbones(self) -> int:
        """How many backbones there are."""
        return len(self.values["backbones"])

    def arrays(self, expected: Mapping[str, Expected]) -> dict[str, NDArray]:
        """Read all arrays.

        Parameters
        ----------
        expected : mapping of str to (str, tuple of int)
            Type and shape that each must have.

        Returns
        -------
        dict of str to ndarray

        Raises
        ------
        ValueError
            For a damaged file, and one with other arrays; nothing is read then.
        """
        fortran = self.values["fortran_order"]
        if unknown := [name for name in fortran if len(expected.get(name, ("", ()))[1]) < 2]:
            raise ValueError(f"{self.where}: fortran_order must name matrices; got {shown(unknown[0])}")
        with opened_tensors(self.path / ARRAYS_FILE, framework="numpy", what="model file") as file:
            found = set(file.keys())
            if found != set(expected):
                missing, unexpected = sorted(set(expected) - found), sorted(found - set(expected))
                raise ValueError(
                    f"{self.where_arrays} must have the arrays that {VALUES_FILE} tells of: {len(missing)} are "
                    f"missing, {len(unexpected)} unexpected, such as {shown((missing or unexpected)[0])}"
                )
            for name, (dtype, shape) in expected.items():
                part = file.get_slice(name)
                stored, kind = tuple(part.get_shape()), part.get_dtype()
                if (stored, kind) != (shape[::-1] if name in fortran else shape, DTYPES[dtype]):
                    raise ValueError(
                        f"{self.where_arrays}: {shown(name)} must be {DTYPES[dtype]} of shape {shape}; got {kind} of "
                        f"shape {shown(stored)}"
                    )
            try:
                arrays = {name: file.get_tensor(name) for name in expected}
            except (ValueError, MemoryError) as error:
                raise ValueError(f"{self.where_arrays} has arrays that cannot be held: {error}") from error
        return {name: array.T if name in fortran else array for name, array in arrays.items()}

    def backbones(self) -> list[Backbone]:
        """Load the backbones.

        Returns
        -------
        list of Backbone

        Raises
        ------
        ValueError
            Where one is missing or damaged, a reference has other weights now, or the folder has been replaced by
            another since its values were read.
        """
        backbones = [self._backbone(Fields(place, self.where)) for place in self.values["backbones"]]
        if _identity(self.path) != self.identity:
            raise ValueError(f"model folder {self.path} was replaced while it was read: load it again")
        return backbones

    def _backbone(self, place: Fields) -> Backbone:
        if "folder" in place.values:
            folder = self.path / place.choice("folder", BACKBONE_FOLDERS)
            if not folder.is_dir():
                raise ValueError(f"{self.where}: the folder {folder} of its backbone is missing")
            return load_backbone(folder)
        reference = place.values["reference"]
        try:
            backbone = load_backbone(reference)
        except ValueError as error:
            raise ValueError(f"{self.where}: its backbone is a reference, which cannot be loaded: {error}") from error
        if weights_hash(backbone) != place.values["weights"]:
            raise ValueError(
                f"{self.where}: its backbone is a reference to {shown(reference)}, which has other weights now than "
                "when the model was saved"
            )
        return backbone


def open_model(name: str | os.PathLike, *, revision: str | None = None, token: str | bool | None = None) -> ModelFolder:
    """Find a model, and read its values.

    Parameters
    ----------
    name : path or str
        A folder, or where there is none of this name a Hub id.
    revision : str, default=None
    token : str or bool, default=None
        See `skdiec.load`.

    Returns
    -------
    ModelFolder

    Raises
    ------
    ValueError
        Where there is no model, or one that is damaged or of a later format.
    """
    if not isinstance(name, (str, os.PathLike)) or not str(name):
        raise ValueError(f"folder must be the path of a saved model or a Hub id 'owner/name'; got {shown(name)}")
    if revision is not None and not isinstance(revision, str):
        raise ValueError(f"revision must be a branch, tag or commit; got {shown(revision)}")
    check_token(token)
    try:
        path = Path(os.path.realpath(name))
        put_back(path)
    except (OSError, ValueError) as error:  # a null character, too long
        raise ValueError(f"folder cannot be used: {reason(error)}; got {shown(str(name))}") from error
    if os.path.isdir(path):
        return _opened(path)
    if os.path.lexists(path):
        raise ValueError(f"folder must be the folder of a saved model; {path} is a file")
    if not isinstance(name, str) or not _HUB_ID.fullmatch(name):
        raise ValueError(
            f"folder must be the path of a saved model or a Hub id 'owner/name': there is no folder {shown(str(name))}"
        )
    # The small file first: what is no model of ours, or of a later format, is not fetched.
    _opened(_fetch(name, [VALUES_FILE], revision, token))
    return _opened(_fetch(name, _HUB_FILES, revision, token))


def _fetch(name: str, patterns: Iterable[str], revision: str | None, token: str | bool | None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(name, revision=revision, token=token, allow_patterns=list(patterns))
    except Exception as error:  # the client raises its own, httpx's and the operating system's errors
        raise ValueError(f"{name!r} is neither a local folder nor could it be fetched from the Hub: {error}") from error
    return Path(os.path.realpath(folder))


def _opened(path: Path) -> ModelFolder:
    file = path / VALUES_FILE
    where = f"model file {file}"
    identity = _identity(path)
    _check_links(path)
    if not os.path.lexists(file) and os.path.lexists(path / "model_index.json"):
        raise ValueError(f"folder must be that of a saved model; {path} is a backbone: skdiec.load_backbone loads it")
    values = read_json(file, what="model file", max_bytes=MAX_VALUES_BYTES)
    fields = Fields(values, where)
    found = fields.integer("format", 1, 2**31)
    if found > FORMAT:
        raise ValueError(
            f"{where} has format {found}, written by skdiec {str(values.get('skdiec'))[:20]}; this is skdiec "
            f"{__version__}, which reads formats up to {FORMAT}: pip install --upgrade skdiec"
        )
    while found < FORMAT:
        values = _UPGRADES[found](values)
        found += 1
    fields = Fields(values, where)
    check_keys(fields, _KEYS)
    for name in ("skdiec", "class"):
        if not isinstance(values[name], str):
            raise ValueError(f"{where}: {name} must be a string; got {shown(values[name])}")
    for name in ("parameters", "fitted"):
        fields.mapping(name)
    fortran, places = values["fortran_order"], values["backbones"]
    if not isinstance(fortran, list) or not all(isinstance(name, str) for name in fortran):
        raise ValueError(f"{where}: fortran_order must be a list of names; got {shown(fortran)}")
    folders = [[{"folder": name} for name in BACKBONE_FOLDERS[:count]] for count in (1, 2)]
    if places not in folders and not _is_reference(places):
        raise ValueError(f"{where}: backbones must be folders or a reference with its weights; got {shown(places)}")
    return ModelFolder(path, values, where, identity)


def _identity(folder: Path) -> tuple[int, int]:
    try:
        status = os.stat(folder)
    except OSError as error:
        raise ValueError(f"model folder {folder} cannot be read: {reason(error)}") from error
    return status.st_dev, status.st_ino


def _is_reference(places: Any) -> bool:
    if not isinstance(places, list) or len(places) != 1 or not isinstance(places[0], dict):
        return False
    reference = places[0]
    return reference.keys() == {"reference", "weights"} and all(isinstance(text, str) for text in reference.values())


def check_keys(fields: Fields, names: Iterable[str]) -> None:
    """Raise ValueError where an object has other keys than these."""
    names = set(names)
    for word, keys in (("lacks", names - fields.values.keys()), ("has an unknown", fields.values.keys() - names)):
        if keys:
            raise ValueError(f"{fields.where} {word} {shown(min(keys))}")


def _check_links(folder: Path) -> None:
    """Raise ValueError for a link that leads out of a folder: someone else's file must not be read for a model's."""
    allowed = [folder]
    if folder.parent.name == "snapshots":  # of the Hub's cache, whose files are links
        allowed.append(folder.parent.parent / "blobs")
    paths = [folder / name for name in (VALUES_FILE, ARRAYS_FILE, *BACKBONE_FOLDERS)]
    for name in BACKBONE_FOLDERS:
        for parent, folders, files in os.walk(folder / name):
            paths += [Path(parent, file) for file in (*folders, *files)]
            if len(paths) > _MAX_BACKBONE_FILES:
                raise ValueError(f"model folder {folder} has more files in {name} than a backbone has")
    for path in paths:
        target = Path(os.path.realpath(path))
        if not any(target.is_relative_to(place) for place in allowed):
            raise ValueError(f"model file {path} is a link that leads out of the model's folder")


# Sharing


def upload(folder: Path, repo_id: str, *, private: bool, token: str | bool | None, commit_message: str) -> str:
    """Upload a saved model to the Hub, in place of what is in the repository.

    Parameters
    ----------
    folder : Path
    repo_id, private, token, commit_message
        See `DiffusionEmbeddedClustering.push_to_hub`.

    Returns
    -------
    str
        The repository's address.

    Raises
    ------
    OSError
        Where it cannot be uploaded.
    """
    from huggingface_hub import create_repo, upload_folder

    try:
        address = create_repo(repo_id, private=private, token=token, exist_ok=True)
        upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            token=token,
            commit_message=commit_message,
            delete_patterns=[f"{name}/*" for name in BACKBONE_FOLDERS],  # of a former model with more of them
        )
    except Exception as error:  # the client raises its own, httpx's and the operating system's errors
        raise OSError(f"{repo_id} could not be uploaded to the Hub: {error}") from error
    return str(address)


def check_flag(name: str, value: Any) -> None:
    """Raise ValueError for what is neither True nor False.

    Parameters
    ----------
    name : str
        Of the parameter, for the message.
    value : object
    """
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{name} must be True or False; got {shown(value)}")


def check_token(token: Any) -> None:
    """Raise ValueError for what is no access token of the Hub."""
    if token is not None and not isinstance(token, (bool, str)):
        raise ValueError(f"token must be a str, a bool or None; got a {type(token).__name__}")  # which may be a secret


def check_repo_id(repo_id: Any) -> None:
    """Raise ValueError for what is no Hub id."""
    if not isinstance(repo_id, str) or not _HUB_ID.fullmatch(repo_id):
        raise ValueError(f"repo_id must be a Hub id, 'owner/name'; got {shown(repo_id)}")
