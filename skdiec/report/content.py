"""What a report shows, as values that JSON and pictures hold."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skdiec._estimator import DiffusionEmbeddedClustering
from skdiec.images import ImageSource
from skdiec.report.findings import Membership, alike_images, far_images, membership
from skdiec.report.maps import draw_map, project_epochs
from skdiec.report.thumbnails import (
    MAX_SIDE,
    MIN_PIXELS,
    PIXELS,
    SKETCH_SIDE,
    Sheets,
    images_of,
    sketch,
    thumbnail_source,
)

logger = logging.getLogger(__name__)

_TYPICAL = 16  # images of each kind that a sheet shows at first
_SHARP_PIXELS = 96 * 96
_MAX_SHARP = 4000
_MAX_FAR = 120
_MAX_GROUPS = 60
_MAX_OF_GROUP = 24


@dataclass(frozen=True)
class Content:
    """What a report shows.

    Attributes
    ----------
    data : dict
        What the page's script reads, in terms of JSON.
    members : Membership
        Of the images in the clusters.
    levels : list of Sheets
        Thumbnails of all images, and perhaps sharper ones of some.
    n_far, n_alike : int
        Images that fit nowhere, and those with a near-duplicate.
    """

    data: dict[str, Any]
    members: Membership
    levels: list[Sheets]
    n_far: int
    n_alike: int


def gather(
    model: DiffusionEmbeddedClustering,
    source: ImageSource,
    image_names: Sequence[str] | None,
    cluster_names: Sequence[str],
    title: str,
    progress: Callable[[int, int], object] | None = None,
) -> Content:
    """Find all that a report shows.

    Parameters
    ----------
    model : DiffusionEmbeddedClustering
        Fitted.
    source : ImageSource
        Its images.
    image_names : sequence of str or None
    cluster_names : sequence of str
        Empty where a cluster has none.
    title : str
    progress : callable, default=None
        Called as ``progress(done, total)`` while thumbnails are drawn.

    Returns
    -------
    Content
    """
    members = membership(model)
    far, relative = far_images(model)
    logger.info("drawing the map of %s images", f"{len(source):,}")
    places = draw_map(model.embedding_)
    logger.info("drawing thumbnails")
    levels, sketches = _thumbnails(model, source, members, far[:_MAX_FAR], progress)
    logger.info("looking for near-duplicates")
    alike = alike_images(model.embedding_, model.labels_, model.fine_labels_, sketches)
    data: dict[str, Any] = {
        "title": title,
        "n": len(source),
        "clusters": len(model.cluster_centers_),
        "names": list(cluster_names),
        "paths": image_names,
        "tree": {
            "merges": [[int(one), int(other), _rounded(height)] for one, other, height, _ in model.linkage_],
            "clusters": _clusters_of_leaves(model).tolist(),
        },
        "leaf": _packed(model.fine_labels_, "u2" if len(model.linkage_) < 2**16 else "u4"),
        "rivals": _packed(members.clusters, "u2" if len(model.cluster_centers_) <= 2**16 else "u4"),
        "shares": _packed(np.rint(members.shares * 65535), "u2"),
        "part": _packed(members.parts[:, 1], "u2" if len(model.linkage_) < 2**16 else "u4"),
        "partShares": _packed(np.rint(members.part_shares * 65535), "u2"),
        "distance": _packed(np.rint(np.minimum(relative, 255) * 256), "u2"),
        "map": _packed_places(places),
        "epochs": _epochs(model, places),
        "levels": [_described(level) for level in levels],
        "far": {"count": len(far), "rows": far[:_MAX_FAR].tolist()},
        "alike": {
            "count": len(alike),
            "images": int(sum(map(len, alike))),
            "groups": [[len(rows), rows[:_MAX_OF_GROUP].tolist()] for rows in alike[:_MAX_GROUPS]],
        },
        "number": _number(model),
        "search": _search(model),
        "history": _history(model),
    }
    data["id"] = hashlib.sha256(as_json(data).encode()).hexdigest()[:16]
    return Content(data, members, levels, len(far), data["alike"]["images"])


def _thumbnails(
    model: DiffusionEmbeddedClustering,
    source: ImageSource,
    members: Membership,
    far: NDArray[np.integer],
    progress: Callable[[int, int], object] | None,
) -> tuple[list[Sheets], NDArray[np.uint8]]:
    """Draw thumbnails of all images, sharper ones of those that sheets show first, and the sketches of all."""
    n = len(source)
    small, size = thumbnail_source(source, max(MIN_PIXELS, min(MAX_SIDE**2, PIXELS / n)))
    most = PIXELS // (size[0] * size[1])
    rows = None if n <= most else np.sort(np.random.default_rng(0).choice(n, most, replace=False))
    is_drawn = np.ones(n, dtype=bool) if rows is None else np.isin(np.arange(n), rows)
    levels = [Sheets(*size, rows)]
    sharp, sharp_size = thumbnail_source(source, _SHARP_PIXELS)
    shown_first = None
    if sharp_size[0] * sharp_size[1] > 1.5 * size[0] * size[1] or rows is not None:
        shown_first = _first_shown(model, members, far)
        levels.append(Sheets(*sharp_size, shown_first))
    total = n + (0 if shown_first is None else len(shown_first))
    sketches = np.empty((n, SKETCH_SIDE**2), dtype=np.uint8)
    for row, image in enumerate(images_of(small)):
        sketches[row] = sketch(image)
        if is_drawn[row]:
            levels[0].add(image)
        if progress is not None:
            progress(row + 1, total)
    if shown_first is not None:
        for done, image in enumerate(images_of(sharp, shown_first), n + 1):
            levels[1].add(image)
            if progress is not None:
                progress(done, total)
    for level in levels:
        level.close()
    return levels, sketches


def _first_shown(
    model: DiffusionEmbeddedClustering, members: Membership, far: NDArray[np.integer]
) -> NDArray[np.integer]:
    """Return the images that sheets show at first: typical and borderline ones of every node of the tree."""
    clusters_of_leaves = _clusters_of_leaves(model)
    n_leaves, n_clusters = len(clusters_of_leaves), len(model.cluster_centers_)
    order = np.argsort(model.fine_labels_, kind="stable")
    rows_of = np.split(order, np.cumsum(np.bincount(model.fine_labels_, minlength=n_leaves))[:-1])
    leaves_of: list[list[int]] = [[leaf] for leaf in range(n_leaves)]
    leaves_of += [[]] * len(model.linkage_)
    for step, (one, other) in enumerate(model.linkage_[:, :2].astype(int)):
        leaves_of[n_leaves + step] = leaves_of[one] + leaves_of[other]
    parts = np.bincount(clusters_of_leaves, minlength=n_clusters)
    found: dict[int, None] = dict.fromkeys(far.tolist())
    for leaves in sorted(leaves_of, key=len, reverse=True):
        if len(found) >= _MAX_SHARP:
            break
        is_in = np.isin(np.arange(n_leaves), leaves)
        whole = (parts > 0) & (np.bincount(clusters_of_leaves[leaves], minlength=n_clusters) == parts)
        rows = np.sort(np.concatenate([rows_of[leaf] for leaf in leaves]))
        inside, rival = np.rint(65535 * members.likeliness(is_in, whole, rows))
        for order in (np.argsort(-inside, kind="stable"), np.argsort(inside - rival, kind="stable")):
            found |= dict.fromkeys(rows[order[:_TYPICAL]].tolist())
    return np.sort(list(found))


def _clusters_of_leaves(model: DiffusionEmbeddedClustering) -> NDArray[np.integer]:
    first = np.unique(model.fine_labels_, return_index=True)[1]
    return model.labels_[first]


def _described(level: Sheets) -> dict[str, Any]:
    return {
        "height": level.height,
        "width": level.width,
        "columns": level.columns,
        "perSheet": level.per_sheet,
        "sheets": len(level.pictures),
        "type": "image/webp" if level.pictures[0].startswith(b"RIFF") else "image/jpeg",
        "rows": None if level.rows is None else _packed(level.rows, "u4"),
    }


def _epochs(model: DiffusionEmbeddedClustering, places: NDArray[np.floating]) -> dict[str, Any] | None:
    if len(model.snapshots_) < 2:
        return None
    moved = project_epochs(model.embedding_, places, model.snapshots_.values())
    return {
        "epochs": list(model.snapshots_),
        "rows": _packed(model.snapshot_rows_, "u4"),
        "places": _packed_places(moved.reshape(-1, 2)),
    }


def _search(model: DiffusionEmbeddedClustering) -> dict[str, Any]:
    result = model.search_result_
    return {
        "layers": list(result.layers),
        "timesteps": list(result.timesteps),
        "poolings": list(result.poolings),
        "best": list(result.position(result.best)),
        "criterion": result.criterion,
        "rounds": [
            {"images": stage.n_images, "scores": {name: _numbers(scores) for name, scores in stage.scores.items()}}
            for stage in result.stages
        ],
    }


def _number(model: DiffusionEmbeddedClustering) -> dict[str, Any] | None:
    scores = getattr(model, "n_clusters_scores_", None)
    if scores is None:
        return None
    return {
        "counts": scores["n_clusters"].tolist(),
        "chosen": model.n_clusters_,
        "scores": {name: _numbers(scores[name]) for name in ("score", "silhouette", "modularity")},
    }


def _history(model: DiffusionEmbeddedClustering) -> dict[str, Any]:
    wanted = ("loss", "kl", "graph", "entropy", "denoising", "changed")
    found = {name: _numbers(model.history_[name]) for name in wanted if name in model.history_}
    return {"terms": found, "warmup": model.warmup_epochs}


def _numbers(values: NDArray) -> Any:
    """Return numbers in nested lists, rounded, and None for what is not finite."""
    if np.ndim(values):
        return [_numbers(value) for value in values]
    return _rounded(float(values))


def _rounded(value: float) -> float | None:
    return float(f"{value:.5g}") if np.isfinite(value) else None


def _packed(values: NDArray, kind: str) -> dict[str, str]:
    """Return numbers as the browser unpacks them: base64 of little-endian ones."""
    return {"type": kind, "data": as_base64(np.ascontiguousarray(values).astype(f"<{kind}").tobytes())}


def _packed_places(places: NDArray[np.floating]) -> dict[str, Any]:
    """Return places in 16 bits each, and the limits that these are between."""
    low, high = places.min(axis=0), places.max(axis=0)
    width = float((high - low).max()) or 1.0
    scaled = (places - low) / width * 65535
    return {**_packed(np.rint(scaled), "u2"), "low": _numbers(low), "width": _rounded(width)}


def as_json(data: Any) -> str:
    """Return JSON that no text in it can lead out of a script element.

    Parameters
    ----------
    data : dict

    Returns
    -------
    str
    """
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def as_base64(data: bytes) -> str:
    """Return bytes as text.

    Parameters
    ----------
    data : bytes

    Returns
    -------
    str
    """
    return base64.b64encode(data).decode("ascii")
