"""``skdiec predict``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from skdiec.cli.console import Console, command, show, show_json
from skdiec.cli.options import AsJson, Device, Folder, Model, Names, Overwrite, Quiet, ValueRange, numbers

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from skdiec._estimator import DiffusionEmbeddedClustering

_BLOCK_IMAGES = 1024


def predict(
    model: Model,
    folder: Folder,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Table to write, .csv or .parquet; CSV on standard output if not said."),
    ] = None,
    names: Names = None,
    value_range: ValueRange = None,
    device: Device = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Tell which clusters of a saved model new images belong to."""
    with command(quiet) as console:
        from skdiec.cli.models import load_model
        from skdiec.cli.output import check_new
        from skdiec.cli.reading import find_files, read_images
        from skdiec.cli.tables import check_names, csv_of, label_table, parquet_of, read_names, rows_of

        if out is not None:
            if out.suffix not in (".csv", ".parquet"):
                raise ValueError(f"--out must end in .csv or .parquet; got {out.name}")
            check_new(out, overwrite=overwrite)
        found = {} if names is None else read_names(names)
        files = find_files(folder, console)
        console.say("loading the model")
        fitted = load_model(model)
        check_names(found, len(fitted.cluster_centers_), names)
        stated = numbers("value-range", value_range, float)
        images = read_images(
            files, console, image_shape=fitted.image_shape_, value_range=stated or fitted_range(fitted)
        )
        embedding = embed(fitted, images.pixels, console, device=device, value_range=stated)
        table = label_table(images, fitted, embedding, found)
        if out is not None:
            out.write_bytes(csv_of(table) if out.suffix == ".csv" else parquet_of(table))
        if as_json:
            show_json(rows_of(table))
        elif out is None:
            typer.echo(csv_of(table), nl=False)
        else:
            show(f"{len(images.rows):,} images in {out}")


def fitted_range(model: DiffusionEmbeddedClustering) -> tuple[float, float] | None:
    """Return what black and white are in files for a model.

    Parameters
    ----------
    model : DiffusionEmbeddedClustering

    Returns
    -------
    tuple of float or None
        None for one that was fitted on images of 8 bits.
    """
    return None if model.value_range_ == (0, 255) else model.value_range_


def embed(
    model: DiffusionEmbeddedClustering,
    pixels: NDArray,
    console: Console,
    *,
    device: str | None = None,
    value_range: tuple[float, ...] | None = None,
) -> NDArray:
    """Embed the images of files, and show how far that is.

    Parameters
    ----------
    model : DiffusionEmbeddedClustering
        Loaded for this: its parameters are changed.
    pixels : ndarray of shape (n, height, width) or (n, channels, height, width)
    console : Console
    device : str, default=None
    value_range : tuple of float, default=None

    Returns
    -------
    ndarray of shape (n, n_components_)
    """
    import numpy as np

    model.set_params(channel_axis=1, image_shape=None, device=device)
    if value_range is not None:
        model.set_params(value_range=value_range)
    console.say("embedding the images")
    blocks = []
    with console.bar("embedding the images") as report:
        for start in range(0, len(pixels), _BLOCK_IMAGES):
            blocks.append(model.transform(pixels[start : start + _BLOCK_IMAGES]))
            report(min(start + _BLOCK_IMAGES, len(pixels)), len(pixels))
    return np.concatenate(blocks)
