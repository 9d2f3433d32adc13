"""From a fitted estimator to a file of HTML."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import secrets
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted

from skdiec._estimator import DiffusionEmbeddedClustering
from skdiec._version import __version__
from skdiec.images import FileImages, ImageSource
from skdiec.messages import shown
from skdiec.report.findings import Membership, alike_images, far_images, membership
from skdiec.report.maps import draw_map, project_epochs
from skdiec.report.paths import short_names
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
from skdiec.report.words import advice_on, figures, lead

logger = logging.getLogger(__name__)

MAX_NAME = 120
"""Characters of a cluster's name, and of the title."""

_TYPICAL = 16  # images of each kind that a sheet shows at first
_SHARP_PIXELS = 96 * 96
_MAX_SHARP = 4000
_MAX_FAR = 120
_MAX_GROUPS = 60
_MAX_OF_GROUP = 24
_SCRIPTS = ("data.js", "partition.js", "sheets.js", "tree.js", "map.js", "charts.js", "app.js")
_LIBRARIES = ("torch", "diffusers", "scikit-learn", "numpy", "pillow")


def write_report(
    model: DiffusionEmbeddedClustering,
    X: ArrayLike | str | os.PathLike | Iterable | None,
    path: str | os.PathLike,
    *,
    paths: Sequence[str | os.PathLike] | None = None,
    names: Sequence[str] | Mapping[int, str] | None = None,
    title: str | None = None,
) -> Path:
    """Write what a fit has found as one HTML file, which needs nothing else to be opened: no network, no server.

    It shows how many clusters there are and how sure that is; typical and borderline images of each; the tree of
    clusters, with a slider for their number; a map of all images, and how it formed where the fit kept snapshots;
    images that fit nowhere and near-duplicates; and how it was found. Clusters can be merged, split and named there,
    and images marked as wrong; `read_labels` reads the table that it saves.

    No image goes through the network again. Thumbnails of all images are part of the file. Together they have at most
    56 million pixels, 128 x 128 each: so 70,000 images are shown at 28 x 28, of which those on the first sheets are
    sharper where there is more to see. Of more than 200,000 images, some have no thumbnail.

    Parameters
    ----------
    model : DiffusionEmbeddedClustering
        Fitted on images.
    X : array-like, folder, sequence or iterable of images or of paths
        The images of `fit`. None reads those of ``model.files_``, where X was a folder or paths.
    path : path
        Of the file. It is written beside its place and renamed when it is complete. Folders are made.
    paths : sequence of path of length n_samples, default=None
        Names of the images. None takes those of the files, as seen from their folder, or the number of the row.
    names : sequence of str, or dict of int to str, default=None
        Names of the clusters.
    title : str, default=None
        None is the name of the folder, or "Clusters".

    Returns
    -------
    Path
        Of the file.

    Raises
    ------
    ImportError
        Without jinja2.
    NotFittedError
        Before the fit.
    TypeError
        For another estimator.
    ValueError
        For a table, whose rows are no images; without X where the model has no files; for an X of another length than
        that of `fit`; and for paths, names or a title that do not fit.
    OSError
        Where the file cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> from sklearn.datasets import load_digits
    >>> from skdiec import DiffusionEmbeddedClustering, Pretraining
    >>> from skdiec.report import write_report
    >>> X = load_digits().images[:60]
    >>> model = DiffusionEmbeddedClustering(
    ...     n_clusters=3,
    ...     value_range=(0, 16),
    ...     layer="mid_block",
    ...     timestep=50,
    ...     pooling=1,
    ...     backbone=Pretraining(epochs=2),
    ...     random_state=0,
    ... ).fit(X)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_report(model, X, f"{folder}/digits.html").name
    'digits.html'
    """
    _check_jinja2()
    if not isinstance(model, DiffusionEmbeddedClustering):
        raise TypeError(f"model must be a DiffusionEmbeddedClustering; got {shown(model)}")
    check_is_fitted(model)
    target = _checked_path(path)
    if model._format.is_table:
        raise ValueError("X must be images to be shown; the model was fitted on a table, whose rows are none")
    n_samples = len(model.labels_)
    checked_names = _checked_names(names, len(model.cluster_centers_))
    source = _source(model, X)
    if len(source) != n_samples:
        raise ValueError(f"X must be the {n_samples} images of fit; got {len(source)}")
    image_names = _image_names(paths, X, source, n_samples)
    title = _checked_title(title, X)
    content = _render(model, source, image_names, checked_names, title)
    _write(target, content)
    return target


def _check_jinja2() -> None:
    try:
        import jinja2  # noqa: F401
    except ImportError:
        raise ImportError('write_report needs jinja2: pip install "skdiec[report]"') from None


def _checked_path(path: str | os.PathLike) -> Path:
    try:
        target = Path(path)
    except TypeError:
        raise TypeError(f"path must be the path of a file; got {shown(path)}") from None
    if not str(path) or target.is_dir():
        raise ValueError(f"path must be the path of a file; got {'a folder, ' if target.is_dir() else ''}{shown(path)}")
    return target


def _checked_names(names: Sequence[str] | Mapping[int, str] | None, n_clusters: int) -> list[str]:
    if names is None:
        return [""] * n_clusters
    if isinstance(names, Mapping):
        unknown = [key for key in names if not isinstance(key, (int, np.integer)) or not 0 <= key < n_clusters]
        if unknown:
            raise ValueError(f"names must have clusters from 0 to {n_clusters - 1} as keys; got {shown(unknown[0])}")
        names = [names.get(cluster, "") for cluster in range(n_clusters)]
    if isinstance(names, str) or len(names) != n_clusters:
        raise ValueError(f"names must be one for each of the {n_clusters} clusters; got {shown(names)}")
    return [str(name)[:MAX_NAME] for name in names]


def _source(model: DiffusionEmbeddedClustering, X: Any) -> ImageSource:
    if X is None:
        if not hasattr(model, "files_"):
            raise ValueError("X must be the images of fit, since the model keeps none of them; got None")
        X = list(model.files_)
    return model._fitted_source(X)


def _image_names(paths: Any, X: Any, source: ImageSource, n_samples: int) -> list[str] | None:
    if paths is not None:
        if isinstance(paths, (str, os.PathLike)) or len(paths) != n_samples:
            raise ValueError(f"paths must be one for each of the {n_samples} images; got {shown(paths)}")
        return [os.fsdecode(path) if isinstance(path, os.PathLike) else str(path) for path in paths]
    if isinstance(source, FileImages):
        return short_names(source.paths, X if isinstance(X, (str, os.PathLike)) else None)
    return None


def _checked_title(title: str | None, X: Any) -> str:
    if title is None:
        title = Path(X).resolve().name if isinstance(X, (str, os.PathLike)) else ""
    if not isinstance(title, str):
        raise TypeError(f"title must be a str or None; got {shown(title)}")
    return title[:MAX_NAME] or "Clusters"


def _render(
    model: DiffusionEmbeddedClustering,
    source: ImageSource,
    image_names: Sequence[str] | None,
    cluster_names: Sequence[str],
    title: str,
) -> str:
    logger.info("report: who belongs where")
    members = membership(model)
    far, relative = far_images(model)
    logger.info("report: map of %s images", f"{len(source):,}")
    places = draw_map(model.embedding_)
    logger.info("report: thumbnails")
    levels, sketches = _thumbnails(model, source, members, far[:_MAX_FAR])
    logger.info("report: near-duplicates")
    alike = alike_images(model.embedding_, model.labels_, model.fine_labels_, sketches)
    data = {
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
        "search": _search(model),
        "history": _history(model),
    }
    data["id"] = hashlib.sha256(_json(data).encode()).hexdigest()[:16]
    return _filled(model, members, data, levels)


def _filled(model: DiffusionEmbeddedClustering, members: Membership, data: dict[str, Any], levels: list[Sheets]) -> str:
    """Fill the template."""
    import jinja2

    assets = files("skdiec.report") / "assets"
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (assets / name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = '(() => {\n"use strict";\n' + "".join((assets / name).read_text("utf-8") for name in _SCRIPTS) + "})();\n"
    style = (assets / "report.css").read_text("utf-8")
    return environment.get_template("report.html").render(
        title=data["title"],
        n=data["n"],
        found=len(np.unique(model.labels_)),
        lead=lead(model, data["far"]["count"], data["alike"]["images"]),
        figures=figures(model, members),
        advice=advice_on(model.warnings_),
        stages=[(name, seconds) for name, seconds in model.fit_seconds_.items()],
        parameters=_parameters(model),
        facts=_facts(model),
        versions=_versions(),
        version=__version__,
        data=jinja2.utils.markupsafe.Markup(_json(data)),
        style=jinja2.utils.markupsafe.Markup(style),
        script=jinja2.utils.markupsafe.Markup(script),
        style_hash=_hash(style),
        script_hash=_hash(script),
        sheets=[
            (f"sheet-{level}-{number}", _base64(picture))
            for level, sheets in enumerate(levels)
            for number, picture in enumerate(sheets.pictures)
        ],
    )


def _thumbnails(
    model: DiffusionEmbeddedClustering, source: ImageSource, members: Membership, far: NDArray[np.integer]
) -> tuple[list[Sheets], NDArray[np.uint8]]:
    """Draw thumbnails of all images, sharper ones of those that sheets show first, and the sketches of all."""
    n = len(source)
    small, size = thumbnail_source(source, max(MIN_PIXELS, min(MAX_SIDE**2, PIXELS / n)))
    small = small.in_memory()
    most = PIXELS // (size[0] * size[1])
    rows = None if n <= most else np.sort(np.random.default_rng(0).choice(n, most, replace=False))
    is_drawn = np.ones(n, dtype=bool) if rows is None else np.isin(np.arange(n), rows)
    levels = [Sheets(*size, rows)]
    sketches = np.empty((n, SKETCH_SIDE**2), dtype=np.uint8)
    for row, image in enumerate(images_of(small)):
        sketches[row] = sketch(image)
        if is_drawn[row]:
            levels[0].add(image)
    sharp, sharp_size = thumbnail_source(source, _SHARP_PIXELS)
    if sharp_size[0] * sharp_size[1] > 1.5 * size[0] * size[1] or rows is not None:
        shown_first = _first_shown(model, members, far)
        levels.append(Sheets(*sharp_size, shown_first))
        for image in images_of(sharp, shown_first):
            levels[1].add(image)
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
    best = result.best
    return {
        "layers": list(result.layers),
        "timesteps": list(result.timesteps),
        "poolings": list(result.poolings),
        "best": [result.layers.index(best.layer), result.timesteps.index(best.timestep), result.poolings.index(best.pooling)],
        "criterion": result.criterion,
        "rounds": [
            {"images": stage.n_images, "scores": {name: _numbers(scores) for name, scores in stage.scores.items()}}
            for stage in result.stages
        ],
    }  # fmt: skip


def _history(model: DiffusionEmbeddedClustering) -> dict[str, Any]:
    wanted = ("loss", "kl", "graph", "entropy", "denoising", "changed")
    found = {name: _numbers(model.history_[name]) for name in wanted if name in model.history_}
    return {"terms": found, "warmup": model.warmup_epochs}


def _numbers(values: NDArray) -> Any:
    """Return numbers in nested lists, rounded, and None for what is not finite."""
    if np.ndim(values):
        return [_numbers(value) for value in values]
    return _rounded(values)


def _rounded(value: float) -> float | None:
    return float(f"{value:.5g}") if np.isfinite(value) else None


def _parameters(model: DiffusionEmbeddedClustering) -> list[tuple[str, str, bool]]:
    """Return each parameter, its value, and whether that is not the default."""
    defaults = DiffusionEmbeddedClustering().get_params(deep=False)
    found = []
    for name, value in model.get_params(deep=False).items():
        text = shown(value)
        found.append((name, text, text != shown(defaults[name])))
    return found


def _facts(model: DiffusionEmbeddedClustering) -> list[tuple[str, str]]:
    channels, height, width = model.image_shape_
    shares = [f"{100 * x:.0f} % at timestep {t}" for t, x in model.share_explained_.items() if np.isfinite(x)]
    return [
        ("images", f"{len(model.labels_):,}, read as {width} x {height}, {'grey' if channels == 1 else 'colour'}"),
        ("representation", f"{model.layer_}, timestep {model.timestep_}, pooling {model.pooling_}"),
        ("embedding", f"{model.n_components_} dimensions"),
        ("epochs of training", str(model.n_iter_)),
        ("denoising explained", ", ".join(shares) or "unknown"),
    ]


def _versions() -> list[tuple[str, str]]:
    found = [("skdiec", __version__), ("Python", platform.python_version())]
    return found + [(name, importlib.metadata.version(name)) for name in _LIBRARIES]


def _packed(values: NDArray, kind: str) -> dict[str, str]:
    """Return numbers as the browser unpacks them: base64 of little-endian ones."""
    return {"type": kind, "data": _base64(np.ascontiguousarray(values).astype(f"<{kind}").tobytes())}


def _packed_places(places: NDArray[np.floating]) -> dict[str, Any]:
    """Return places in 16 bits each, and the limits that these are between."""
    low, high = places.min(axis=0), places.max(axis=0)
    width = float((high - low).max()) or 1.0
    scaled = (places - low) / width * 65535
    return {**_packed(np.rint(scaled), "u2"), "low": _numbers(low), "width": _rounded(width)}


def _json(data: Any) -> str:
    """Return JSON that no text in it can lead out of a script element."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _write(target: Path, content: str) -> None:
    """Write a file that is complete or not there at all."""
    new = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with new.open("w", encoding="utf-8") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        new.replace(target)
    except OSError as error:
        raise OSError(f"{target} cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)
