"""``skdiec report``, and the report of ``skdiec cluster``: all that the command line knows of `skdiec.report`."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skdiec.cli.console import command, show
from skdiec.cli.options import Folder, Model, Names, Overwrite, Quiet

if TYPE_CHECKING:
    from skdiec._estimator import DiffusionEmbeddedClustering

REPORT_FILE = "report.html"


def can_report() -> bool:
    """Return whether there are reports in this version.

    Returns
    -------
    bool
    """
    return importlib.util.find_spec("skdiec.report") is not None


def write_report(
    model: DiffusionEmbeddedClustering, pixels: Any, path: Path, *, paths: Sequence[str], names: Mapping[int, str]
) -> None:
    """Write the report of a fit.

    Parameters
    ----------
    model : DiffusionEmbeddedClustering
    pixels : ndarray
        The images of the fit.
    path : Path
        Of the HTML file.
    paths : sequence of str
        Names of the images.
    names : mapping of int to str
        Of clusters.
    """
    from skdiec import report

    report.write_report(model, pixels, path, paths=paths, names=names)


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
        if not can_report():
            raise ImportError("this version of skdiec has no reports")
        from skdiec.cli.models import load_model
        from skdiec.cli.output import check_new
        from skdiec.cli.predicting import file_range
        from skdiec.cli.reading import find_files, read_images
        from skdiec.cli.tables import check_names, read_names

        check_new(out, overwrite=overwrite)
        found = {} if names is None else read_names(names)
        files = find_files(folder, console)
        fitted = load_model(model)
        check_names(found, len(fitted.cluster_centers_), names)
        levels = file_range(fitted, files, None)
        images = read_images(files, console, image_shape=fitted.image_shape_, value_range=levels)
        if len(images.rows) != len(fitted.labels_):
            raise ValueError(
                f"{folder} must hold the {len(fitted.labels_)} images that the model was fitted on; it has "
                f"{len(images.rows)}"
            )
        shown = [images.files.names[row] for row in images.rows]
        write_report(fitted, images.pixels, out, paths=shown, names=found)
        show(f"{out}")
