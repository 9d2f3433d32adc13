"""Trainings on disk: what a folder holds of one, and the checkpoint that it goes on from."""

from __future__ import annotations

import json
import math
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from skdiec.backbones.config_files import read_json
from skdiec.backbones.folders import LOCK_FILE, PARTIAL_FOLDER, reason, remove, replacing
from skdiec.backbones.repository import INDEX_FILE
from skdiec.backbones.writing import RECIPE_FILE

CHECKPOINT_FILE = "training.safetensors"
"""State of an unfinished training, beside the pipeline that it will become."""


@dataclass(frozen=True)
class Position:
    """Where a training stands.

    Attributes
    ----------
    step : int
        Steps that were taken.
    losses : list of float
        Mean loss of each epoch that is over.
    loss_sum : float
        Sum of the losses of the images that the present epoch has seen.
    seconds : float
        Spent so far.
    """

    step: int = 0
    losses: tuple[float, ...] = ()
    loss_sum: float = 0.0
    seconds: float = 0.0


def is_finished(folder: Path) -> bool:
    """Return whether a folder holds a backbone that `pretrain` trained, complete.

    Parameters
    ----------
    folder : Path

    Returns
    -------
    bool
    """
    return (folder / RECIPE_FILE).exists() and (folder / INDEX_FILE).exists()


def check_is_ours(folder: Path) -> None:
    """Raise ValueError for a folder with files that no earlier call wrote.

    Parameters
    ----------
    folder : Path
        It need not exist.
    """
    if is_finished(folder) or not folder.exists():
        return
    try:
        names = {path.name for path in folder.iterdir()}
    except OSError as error:
        raise ValueError(f"folder {folder} cannot be read: {reason(error)}") from error
    # A checkpoint stays until the pipeline is complete: what is beside it is half of a pipeline.
    strangers = names - {LOCK_FILE, PARTIAL_FOLDER}
    if strangers and CHECKPOINT_FILE not in names:
        raise ValueError(
            f"folder must be new, empty or from an earlier call: {folder} has {', '.join(sorted(strangers)[:3])}"
        )


def read_request(folder: Path) -> dict[str, Any] | None:
    """Return the settings and the images of the training that a folder holds, finished or not.

    Parameters
    ----------
    folder : Path

    Returns
    -------
    dict or None
        ``settings``, a dict, and ``data``, the fingerprint of the images. None where there is no training, or a
        backbone from elsewhere.

    Raises
    ------
    ValueError
        Where files cannot be read, or are damaged.
    """
    if is_finished(folder):
        request = read_json(folder / RECIPE_FILE).get("request")
        return request if _is_request(request) else None
    if not (folder / CHECKPOINT_FILE).exists():
        return None
    with _opened(folder / CHECKPOINT_FILE) as file:
        request = json.loads((file.metadata() or {})["request"])
        if not _is_request(request):
            raise ValueError("it does not say which training it is of")
        return request


def _is_request(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("settings"), dict) and isinstance(value.get("data"), str)


def write_checkpoint(
    folder: Path, request: Mapping[str, Any], position: Position, tensors: Mapping[str, Tensor]
) -> None:
    """Write the checkpoint of a training, or replace it, in one step.

    Parameters
    ----------
    folder : Path
    request : mapping
        What `read_request` is to return.
    position : Position
    tensors : mapping of str to Tensor
        The state at that position.

    Raises
    ------
    OSError
        Where it cannot be written. The former checkpoint is as it was then.
    """
    from safetensors.torch import save_file

    metadata = {"position": json.dumps(asdict(position)), "request": json.dumps(request)}
    with replacing(folder) as partial:
        contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(contiguous, partial / CHECKPOINT_FILE, metadata=metadata)


def read_checkpoint(
    folder: Path, like: Mapping[str, Tensor], *, steps_per_epoch: int, total_steps: int
) -> tuple[Position, dict[str, Tensor]]:
    """Read the checkpoint of a training.

    Parameters
    ----------
    folder : Path
    like : mapping of str to Tensor
        Names, shapes and types that the tensors must have. Others are told of before they are read.
    steps_per_epoch, total_steps : int

    Returns
    -------
    position : Position
    tensors : dict of str to Tensor
        On the CPU.

    Raises
    ------
    ValueError
        For a file that cannot be read, or is not the checkpoint of such a training.
    """
    with _opened(folder / CHECKPOINT_FILE) as file:
        position = _position(json.loads((file.metadata() or {})["position"]), steps_per_epoch, total_steps)
        names = set(file.keys())
        if names != set(like):
            raise ValueError(f"{len(set(like) - names)} tensors are missing, {len(names - set(like))} unexpected")
        for name, tensor in like.items():
            found = file.get_slice(name)
            if tuple(found.get_shape()) != tuple(tensor.shape) or found.get_dtype() != "F32":
                raise ValueError(
                    f"{name} should be {tuple(tensor.shape)} in F32; got {tuple(found.get_shape())} in "
                    f"{found.get_dtype()}"
                )
        tensors = {name: file.get_tensor(name) for name in like}
        broken = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
        broken += [name for name, tensor in tensors.items() if name.startswith("exp_avg_sq.") and (tensor < 0).any()]
        if broken:
            raise ValueError(f"{broken[0]} has values that no training reaches")
        return position, tensors


def _position(found: Any, steps_per_epoch: int, total_steps: int) -> Position:
    """Return a position as it was written; raise ValueError for one that no training with such epochs has."""

    def is_amount(value: Any) -> bool:
        return isinstance(value, float) and 0 <= value < math.inf

    names = {"step", "losses", "loss_sum", "seconds"}
    if not isinstance(found, dict) or set(found) != names:
        raise ValueError(f"its position should have {', '.join(sorted(names))}")
    step, losses = found["step"], found["losses"]
    if type(step) is not int or not 1 <= step <= total_steps:
        raise ValueError(f"its step should be from 1 to {total_steps}")
    if not isinstance(losses, list) or len(losses) != step // steps_per_epoch or not all(map(is_amount, losses)):
        raise ValueError(f"it should have the losses of {step // steps_per_epoch} epochs")
    if not is_amount(found["loss_sum"]) or not is_amount(found["seconds"]):
        raise ValueError("its loss_sum and seconds should be numbers of at least 0")
    return Position(step, tuple(losses), found["loss_sum"], found["seconds"])


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a checkpoint; ValueErrors name it, whatever is wrong with it."""
    from safetensors import SafetensorError, safe_open

    try:
        if not stat.S_ISREG(path.stat().st_mode):  # to open a pipe would be to wait for its other end
            raise ValueError("it is no regular file")
        path.open("rb").close()  # the system's own error, where it may not be read
        with safe_open(path, framework="pt") as file:
            yield file
    except OSError as error:
        raise ValueError(f"the training checkpoint {path} cannot be read: {reason(error)}") from error
    except (SafetensorError, KeyError, RecursionError, ValueError) as error:
        raise ValueError(f"the training checkpoint {path} is damaged: {error}. Delete it to start again") from error


def difference(found: Mapping[str, Any] | None, wanted: Mapping[str, Any]) -> str:
    """Return in words what two requests differ in.

    Parameters
    ----------
    found : mapping or None
        Of `read_request`.
    wanted : mapping

    Returns
    -------
    str
    """
    if found is None:
        return "elsewhere"
    if found["data"] != wanted["data"]:
        return "on other images"
    changed = [name for name, value in wanted["settings"].items() if found["settings"].get(name) != value]
    return f"with other settings ({', '.join(changed)})"


def discard_checkpoint(folder: Path) -> None:
    """Remove what a finished, diverged or killed training leaves of itself, where the folder can be written to.

    Parameters
    ----------
    folder : Path
    """
    with suppress(OSError):
        (folder / CHECKPOINT_FILE).unlink(missing_ok=True)
        remove(folder / PARTIAL_FOLDER)
