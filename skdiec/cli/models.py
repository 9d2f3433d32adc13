"""Saved models and backbones, by the folders that people have of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from skdiec.cli.console import shown_path
from skdiec.cli.output import MODEL_FOLDER

if TYPE_CHECKING:
    from skdiec._estimator import DiffusionEmbeddedClustering
    from skdiec.backbones import Backbone

_MODEL_FILE = "model.json"
_BACKBONE_FILES = ("model_index.json", "config.json")


def model_folder(path: Path) -> Path | None:
    """Return where the saved model of a folder is.

    Parameters
    ----------
    path : Path

    Returns
    -------
    Path or None
        None where there is none: the folder itself, or that of the model in what ``skdiec cluster`` wrote.
    """
    return next((folder for folder in (path, path / MODEL_FOLDER) if (folder / _MODEL_FILE).is_file()), None)


def is_backbone(path: Path) -> bool:
    """Return whether a folder holds a diffusion model.

    Parameters
    ----------
    path : Path

    Returns
    -------
    bool
    """
    return any((path / name).is_file() for name in _BACKBONE_FILES)


def load_model(path: Path) -> DiffusionEmbeddedClustering:
    """Load a saved model.

    Parameters
    ----------
    path : Path
        Its folder, or one that ``skdiec cluster`` wrote, or an id of the Hugging Face Hub.

    Returns
    -------
    DiffusionEmbeddedClustering
    """
    check_model(path)
    from skdiec import load

    return load(os.fspath(model_folder(path) or path))


def check_model(path: Path) -> None:
    """Raise ValueError where there is no saved model.

    Parameters
    ----------
    path : Path
        As for `load_model`.
    """
    if model_folder(path) is not None:
        return
    if path.is_dir():
        what = "a backbone" if is_backbone(path) else "no saved model"
        raise ValueError(f"MODEL must be the folder of a saved model; {shown_path(path)} has {what}")
    _check_place(path, "MODEL must be the folder of a saved model")


def load_any_backbone(path: Path) -> Backbone:
    """Load a backbone, or that of a saved model.

    Parameters
    ----------
    path : Path
        The folder of either, or an id of the Hugging Face Hub.

    Returns
    -------
    Backbone
    """
    folder = model_folder(path)
    if folder is not None:
        return load_model(folder).backbone_
    _check_place(path, "BACKBONE_OR_MODEL must be the folder of a diffusion model or of a saved model")
    from skdiec.backbones import load_backbone

    return load_backbone(os.fspath(path))


def _check_place(path: Path, expected: str) -> None:
    """Raise ValueError for what is no folder, and no id of the Hub either: those have an owner and a name."""
    if not path.is_dir() and (path.exists() or len(path.parts) != 2 or path.is_absolute()):
        raise ValueError(f"{expected}; there is no folder {shown_path(path)}")
