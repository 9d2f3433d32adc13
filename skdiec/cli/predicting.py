"""``skdiec predict``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from skdiec.cli.console import Console, command, show, show_json
from skdiec.cli.options import AsJson, Device, Folder, Model, Names, Overwrite, Quiet, ValueRange, limits

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from skdiec._estimator import DiffusionEmbeddedClustering
    from skdiec.cli.reading import Files

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
        from skdiec.backbones.folders import write_whole
        from skdiec.cli.models import check_model, load_model
        from skdiec.cli.output import check_new
        from skdiec.cli.reading import find_files, read_images
        from skdiec.cli.tables import check_names, csv_of, label_table, parquet_of, read_names, rows_of

        if out is not None:
            if out.suffix not in (".csv", ".parquet"):
                raise ValueError(f"--out must end in .csv or .parquet; got {out.name}")
            check_new(out, overwrite=overwrite)
        found, stated = {} if names is None else read_names(names), limits("value-range", value_range)
        check_model(model)
        files = find_files(folder, console)
        console.say("loading the model")
        from skdiec.backbones import default_device

        default_device(device)  # wrong ones are told of before the images are read
        fitted = load_model(model)
        check_names(found, len(fitted.cluster_centers_), names)
        levels = file_range(fitted, files, stated)
        images = read_images(files, console, image_shape=fitted.image_shape_, value_range=levels)
        fitted.set_params(channel_axis=1, image_shape=None, value_range=levels, device=device)
        embedding = _embed(fitted, images.pixels, console)
        table = label_table(images, fitted, embedding, found)
        if out is not None:
            write_whole(out, csv_of(table) if out.suffix == ".csv" else parquet_of(table))
        if as_json:
            show_json(rows_of(table))
        elif out is None:
            typer.echo(csv_of(table), nl=False)
        else:
            show(f"{len(images.rows):,} images in {out}")


def file_range(
    model: DiffusionEmbeddedClustering, files: Files, stated: tuple[float, float] | None
) -> tuple[float, float] | None:
    """Return what black and white are in files for a model.

    Parameters
    ----------
    model : DiffusionEmbeddedClustering
    files : Files
    stated : tuple of float or None
        What the user says they are.

    Returns
    -------
    tuple of float or None
        Those of the images of the fit, if these had as many bits; else 0 and 255 for files of 8 bits. None for others,
        which must be stated.
    """
    if stated is not None:
        return stated
    if files.are_deep == (model._format.kind != "uint8"):
        return model.value_range_
    return None if files.are_deep else (0.0, 255.0)


def _embed(model: DiffusionEmbeddedClustering, pixels: NDArray, console: Console) -> NDArray:
    """Embed images, and show how far that is."""
    import numpy as np

    console.say("embedding the images")
    blocks = []
    with console.bar("embedding the images") as report:
        for start in range(0, len(pixels), _BLOCK_IMAGES):
            blocks.append(model.transform(pixels[start : start + _BLOCK_IMAGES]))
            report(min(start + _BLOCK_IMAGES, len(pixels)), len(pixels))
    return np.concatenate(blocks)
