"""From a fitted estimator to a folder, and to the Hub."""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skdiec.messages import shown
from skdiec.saving import check_flag, check_repo_id, check_token, upload, write_model
from skdiec.search import SearchResult, SearchStage
from skdiec.state.card import model_card
from skdiec.state.reading import check_saved
from skdiec.state.values import encoded_float, encoded_parameters, type_of


def save_model(
    model: Any,
    folder: str | os.PathLike,
    *,
    backbone: str,
    overwrite: bool,
    name: str | None = None,
    stacklevel: int = 3,
) -> None:
    """Save a fitted estimator; `DiffusionEmbeddedClustering.save` explains how.

    Parameters
    ----------
    model : DiffusionEmbeddedClustering
        Fitted.
    folder, backbone, overwrite
        As there.
    name : str, default=None
        What the card loads the model by. None is the folder's name.
    stacklevel : int, default=3
        Where a warning is said to come from.
    """
    if type(model).__module__.split(".")[0] != "skdiec":
        raise TypeError(
            f"save writes models of skdiec's own classes; {type(model).__name__} would not be loaded as such"
        )
    if not isinstance(folder, (str, os.PathLike)) or not str(folder):
        raise ValueError(f"folder must be a path; got {shown(folder)}")
    if not isinstance(backbone, str) or backbone not in ("copy", "reference"):
        raise ValueError(f"backbone must be 'copy' or 'reference'; got {shown(backbone)}")
    check_flag("overwrite", overwrite)
    reference = _reference(model) if backbone == "reference" else None
    arrays: dict[str, NDArray] = {}
    parameters, left_out = encoded_parameters(model.get_params(deep=False), arrays)
    values = {"class": type(model).__name__, "parameters": parameters, "fitted": _encoded_state(model, arrays)}
    backbones = [extractor.backbone for extractor in model._extractors[::-1]]
    card = model_card(model, name or Path(str(folder)).name, reference)
    write_model(folder, values, arrays, backbones, card, check_saved, reference=reference, overwrite=overwrite)
    if left_out:
        warnings.warn(
            f"these parameters are not saved, and a loaded model has their defaults: {', '.join(left_out)}. What was "
            "learned with them is kept, so predictions are the same",
            stacklevel=stacklevel,
        )


def push_model(model: Any, repo_id: str, *, private: bool, token: str | bool | None, commit_message: str) -> str:
    """Save a fitted estimator and upload it; `DiffusionEmbeddedClustering.push_to_hub` explains how.

    Parameters
    ----------
    model : DiffusionEmbeddedClustering
        Fitted.
    repo_id, private, token, commit_message
        As there.

    Returns
    -------
    str
    """
    check_repo_id(repo_id)
    check_flag("private", private)
    check_token(token)
    if not isinstance(commit_message, str):
        raise ValueError(f"commit_message must be a str; got {shown(commit_message)}")
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "model"
        save_model(model, folder, backbone="copy", overwrite=False, name=repo_id, stacklevel=4)
        return upload(folder, repo_id, private=private, token=token, commit_message=commit_message)


def _reference(model: Any) -> str:
    name = model.backbone
    if not isinstance(name, (str, os.PathLike)) or name == "auto":
        raise ValueError(
            "backbone='reference' needs a model whose parameter backbone is a path or a Hub id; its is "
            f"{shown(name)}. backbone='copy' saves the weights themselves"
        )
    if len(model._extractors) > 1:
        raise ValueError(
            "backbone='reference' needs a backbone that is as it was, but fit has trained it (train_backbone=True): "
            "backbone='copy' saves its weights"
        )
    return os.fspath(name)


def _encoded_state(model: Any, arrays: dict[str, NDArray]) -> dict[str, Any]:
    """Return what JSON holds of the fitted attributes; add the arrays."""
    embedding, extractor, search = model._model, model._extractors[0], model.search_result_
    for name in (
        *("labels_", "initial_labels_", "fine_labels_", "probabilities_", "embedding_", "cluster_centers_", "linkage_"),
        "snapshot_rows_",
    ):
        arrays[name] = getattr(model, name)
    arrays.update({f"snapshots_.{epoch}": array for epoch, array in model.snapshots_.items()})
    scores = getattr(model, "n_clusters_scores_", {})
    arrays.update({f"n_clusters_scores_.{name}": array for name, array in scores.items()})
    arrays["projection.mean"] = embedding.projection.mean.numpy()
    arrays["projection.components"] = embedding.projection.components.numpy()
    if embedding.head is not None:
        arrays.update({f"head.{name}": tensor.numpy() for name, tensor in embedding.head.state_dict().items()})
    arrays.update({f"history_.{name}": array for name, array in model.history_.items()})
    texts: dict[str, int | None] = {"files_": None, "feature_names_in_": None}
    if hasattr(model, "files_"):
        texts["files_"] = _packed("files_", map(str, model.files_), arrays)
    if hasattr(model, "feature_names_in_"):
        texts["feature_names_in_"] = _packed("feature_names_in_", model.feature_names_in_, arrays)
    return {
        "n_samples": len(model.labels_),
        "n_clusters": len(model.cluster_centers_),
        "n_components_": model.n_components_,
        "n_features_in_": model.n_features_in_,
        "n_features": len(embedding.projection.mean),
        "n_fine": len(model.linkage_) + 1,
        "n_iter_": model.n_iter_,
        "hidden_size": None if embedding.head is None else embedding.head.g[0].out_features,
        "nu": embedding.nu,
        "stability_": encoded_float(model.stability_),
        "cut_over_noise_": encoded_float(model.cut_over_noise_),
        "share_explained_": {str(timestep): encoded_float(x) for timestep, x in model.share_explained_.items()},
        "fit_seconds_": dict(model.fit_seconds_),
        "warnings_": list(model.warnings_),
        "n_candidates": len(scores["n_clusters"]) if scores else None,
        "n_snapshot_rows": len(model.snapshot_rows_),
        "snapshots_": list(model.snapshots_),
        "history_": {name: type_of(array) for name, array in model.history_.items()},
        "image_format": {
            "shape": list(model._format.shape),
            "value_range": list(model._format.value_range),
            "is_table": model._format.is_table,
            "kind": model._format.kind,
        },
        "extractor": {
            name: getattr(extractor, name) for name in ("n_draws", "shift", "seed", "batch_size", "precision")
        },
        "search_result_": _encoded_search(search, arrays),
        "transform_output": vars(model).get("_sklearn_output_config", {}).get("transform"),
        **texts,
    }


def _encoded_search(search: SearchResult, arrays: dict[str, NDArray]) -> dict[str, Any]:
    def encoded(stage: SearchStage, name: str) -> dict[str, Any]:
        cells = [search.position(cell) for cell in stage.cells]
        arrays[f"{name}.cells"] = np.array(cells, dtype=np.int64).reshape(-1, 3)
        arrays.update({f"{name}.scores.{key}": array for key, array in stage.scores.items()})
        return {
            "n_images": stage.n_images,
            "n_draws": stage.n_draws,
            "n_cells": len(stage.cells),
            "scores": list(stage.scores),
            "n_forward": stage.n_forward,
            "n_evaluations": stage.n_evaluations,
            "seconds": stage.seconds,
        }

    return {
        "layers": list(search.layers),
        "timesteps": list(search.timesteps),
        "poolings": list(search.poolings),
        "best": list(search.position(search.best)),
        "criterion": search.criterion,
        "stages": [encoded(stage, f"search_result_.{number}") for number, stage in enumerate(search.stages)],
        "final": None if search.final is None else encoded(search.final, "search_result_.final"),
    }


def _packed(name: str, texts: Iterable[str], arrays: dict[str, NDArray]) -> int:
    """Add a list of strings, which may be long, to the arrays: the bytes of its JSON. Return how many."""
    arrays[name] = np.frombuffer(json.dumps(list(texts)).encode("ascii"), dtype=np.uint8)
    return len(arrays[name])
