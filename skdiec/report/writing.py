"""From a fitted estimator to a file of HTML."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import os
import platform
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils.validation import check_is_fitted

from skdiec._estimator import DiffusionEmbeddedClustering
from skdiec._parameters import cluster_names
from skdiec._version import __version__
from skdiec.backbones.folders import reason, write_whole
from skdiec.images import FileImages, ImageSource
from skdiec.messages import shown
from skdiec.report.content import Content, as_base64, as_json, gather
from skdiec.report.paths import short_names
from skdiec.report.words import advice_on, figures, lead, number_found

MAX_NAME = 120
"""Characters of a cluster's name, and of the title."""

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
    progress: Callable[[int, int], object] | None = None,
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
        Of the file. One that is there is replaced: it is written beside its place and renamed when it is complete.
        Folders are made.
    paths : sequence of path of length n_samples, default=None
        Names of the images. None takes those of the files, as seen from their folder, or the number of the row.
    names : sequence of str, or dict of int to str, default=None
        Names of the clusters.
    title : str, default=None
        None is the name of the folder, or "Report".
    progress : callable, default=None
        Called as ``progress(done, total)`` while thumbnails are drawn, which takes longest.

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
        that of `fit`, or files of other names; and for paths, names or a title that do not fit.
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
    shortened_names = [name[:MAX_NAME] for name in cluster_names(names, len(model.cluster_centers_))]
    source = _source(model, X)
    image_names = _image_names(paths, X, source, n_samples)
    title = _checked_title(title, X)
    if progress is not None and not callable(progress):
        raise ValueError(f"progress must be a callable or None; got {shown(progress)}")
    _check_writable(target)  # else the work would be lost
    _write(target, _filled(model, gather(model, source, image_names, shortened_names, title, progress)))
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
    if not str(path):
        raise ValueError("path must be the path of a file; got an empty one")
    if target.is_dir():
        raise ValueError(f"path must be the path of a file; got that of a folder, {shown(str(path))}")
    return target


def _source(model: DiffusionEmbeddedClustering, X: Any) -> ImageSource:
    if isinstance(X, ImageSource):  # of the command line
        return X
    if X is None:
        if not hasattr(model, "files_"):
            raise ValueError("X must be the images of fit, since the model keeps none of them; got None")
        X = list(model.files_)
    return model._source_of_fit(X)


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
    return title[:MAX_NAME] or "Report"


def _filled(model: DiffusionEmbeddedClustering, content: Content) -> str:
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
        title=content.data["title"],
        n=content.data["n"],
        found=len(np.unique(model.labels_)),
        lead=lead(model, content.n_far, content.n_alike),
        figures=figures(model, content.members),
        number=number_found(model),
        final=model.search_result_.final,
        advice=advice_on(model.warnings_),
        stages=[(name, seconds) for name, seconds in model.fit_seconds_.items()],
        parameters=_parameters(model),
        facts=_facts(model),
        versions=_versions(),
        version=__version__,
        data=as_json(content.data),
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
        sheets=[
            (f"sheet-{level}-{number}", as_base64(picture))
            for level, sheets in enumerate(content.levels)
            for number, picture in enumerate(sheets.pictures)
        ],
    )


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


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def _check_writable(target: Path) -> None:
    """Raise OSError where the file cannot be made, or its folder."""
    folder = next(parent for parent in target.absolute().parents if os.path.lexists(parent))
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(f"{target} cannot be written: {reason(error)}") from error


def _write(target: Path, content: str) -> None:
    """Write a file that is complete or not there at all. Its folder is made."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"{target} cannot be written: {reason(error)}") from error
    write_whole(target, content.encode("utf-8", errors="replace"))  # names of files may hold what no text is
