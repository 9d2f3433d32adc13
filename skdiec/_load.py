"""Loading of saved models."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from skdiec._estimator import DiffusionEmbeddedClustering
from skdiec._parameters import check_constraints
from skdiec.messages import shown
from skdiec.parallel import library_defaults
from skdiec.state import load_model

_CLASSES = {"DiffusionEmbeddedClustering": DiffusionEmbeddedClustering}
"""What a folder may hold, by the name that it was saved with."""


def load(
    folder: str | os.PathLike, *, revision: str | None = None, token: str | bool | None = None
) -> DiffusionEmbeddedClustering:
    """Load a fitted model that `DiffusionEmbeddedClustering.save` or ``push_to_hub`` saved.

    No code of the model is run: its files are JSON and safetensors, and they are checked before they are used. Models
    that earlier versions of skdiec saved are read too.

    Parameters
    ----------
    folder : path or str
        The folder of a model, or where there is none of that name, an id of the Hugging Face Hub, ``"owner/name"``.
    revision : str, default=None
        Branch, tag or commit on the Hub. None is the newest. Not used for a folder.
    token : str or bool, default=None
        Access token of the Hub. None is the one that ``hf auth login`` has stored.

    Returns
    -------
    DiffusionEmbeddedClustering
        It predicts what the saved one did: on a machine of the same kind the same numbers to the last bit.

    Raises
    ------
    ValueError
        Where there is no such model, a file is damaged or does not fit the others, or a later version of skdiec wrote
        it in a format that this one does not know.

    Examples
    --------
    >>> import tempfile
    >>> from sklearn.datasets import load_digits
    >>> import skdiec
    >>> X = load_digits().data[:60]
    >>> cheap = skdiec.Pretraining(epochs=2)
    >>> model = skdiec.DiffusionEmbeddedClustering(3, backbone=cheap, layer="mid_block", timestep=50).fit(X)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     model.save(folder)
    ...     loaded = skdiec.load(folder)
    >>> bool((loaded.predict(X) == model.predict(X)).all())
    True
    """
    with library_defaults():  # tensors that are made in inference mode could not be trained on
        return load_model(folder, _made, revision=revision, token=token)


def _made(kind: str, parameters: Mapping[str, Any]) -> DiffusionEmbeddedClustering:
    if kind not in _CLASSES:
        raise ValueError(f"class must be {' or '.join(map(repr, _CLASSES))}; got {shown(kind)}")
    unknown = sorted(set(parameters) - set(_CLASSES[kind]._get_param_names()))
    if unknown:
        raise ValueError(f"parameters has {shown(unknown[0])}, which this version of skdiec does not know")
    model = _CLASSES[kind](**parameters)
    check_constraints(model)
    return model
