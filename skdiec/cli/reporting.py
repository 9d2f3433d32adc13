"""``skdiec report``, and the report of ``skdiec cluster``: all that the command line knows of `skdiec.report`."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skdiec.cli.console import Console, command, show, shown_path
from skdiec.cli.options import Folder, Model, Names, Overwrite, Quiet

if TYPE_CHECKING:
    from skdiec._estimator import DiffusionEmbeddedClustering
    from skdiec.cli.reading import Files, Images

REPORT_FILE = "report.html"


def write_report(
    model: DiffusionEmbeddedClustering,
    images: Images,
    path: Path,
    console: Console,
    *,
    names: Mapping[int, str],
    value_range: tuple[float, float] | None = None,
) -> None:
    """Write the report of a fit.

    Parameters
    ----------
    model : DiffusionEmbeddedClustering
    images : Images
        Those of the fit. They are read again, for thumbnails that are sharper than what was clustered.
    path : Path
        Of the HTML file.
    console : Console
    names : mapping of int to str
        Of clusters.
    value_range : tuple of float, default=None
        What black and white are in the files, where that is not what they were in the images of the fit.
    """
    from skdiec import report

    X: Any = images.paths
    if value_range is not None:  # of a copy: the report tells of the parameters that the fit had
        X = copy.copy(model).set_params(value_range=value_range)._source_of_fit(X)
    shown = [images.files.names[row] for row in images.rows]
    with console.telling("skdiec.report"), console.bar("drawing thumbnails") as progress:
        report.write_report(model, X, path, paths=shown, names=names, progress=progress)


def check_files(model: DiffusionEmbeddedClustering, files: Files) -> None:
    """Raise ValueError where headers and names tell that a model was fitted on other files.

    Parameters
    ----------
    model : DiffusionEmbeddedClustering
    files : Files
        More than were fitted may be right: those that are broken were left out. Their folder may have moved.
    """
    from skdiec.images.files import base_name

    n_readable, n_fitted = len(files.kinds), len(model.labels_)
    if n_readable < n_fitted:
        raise _other_images(model, files, str(n_readable))
    if hasattr(model, "files_"):
        missing = Counter(map(base_name, model.files_)) - Counter(map(base_name, files.paths))
        if missing:
            raise _other_images(model, files, f"{n_readable}, and no {shown_path(min(missing))}")


def _other_images(model: DiffusionEmbeddedClustering, files: Files, found: str) -> ValueError:
    n_fitted = len(model.labels_)
    return ValueError(
        f"{shown_path(files.root)} must hold the {n_fitted} images that the model was fitted on; it has {found}"
    )


def report(
    model: Model,
    folder: Folder,
    out: Annotated[Path, typer.Option(metavar="HTML", help="File to write.")] = Path(REPORT_FILE),
    names: Names = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Write the report of a saved model: what is in the clusters of the images that it was fitted on."""
    with command(quiet) as console:
        from skdiec.cli.models import check_model, load_model
        from skdiec.cli.output import check_new
        from skdiec.cli.predicting import file_range
        from skdiec.cli.reading import find_files, read_images
        from skdiec.cli.tables import check_names, read_names

        check_new(out, overwrite=overwrite)
        found = {} if names is None else read_names(names)
        check_model(model)
        files = find_files(folder, console)
        console.say("loading the model")
        fitted = load_model(model)
        check_names(found, len(fitted.cluster_centers_), names)
        check_files(fitted, files)
        levels = file_range(fitted, files, None)
        images = read_images(files, console, image_shape=fitted.image_shape_, value_range=levels)
        if len(images.rows) != len(fitted.labels_):
            raise _other_images(fitted, files, str(len(images.rows)))
        stated = None if levels == fitted.value_range_ else levels
        write_report(fitted, images, out, console, names=found, value_range=stated)
        show(f"{out}")
