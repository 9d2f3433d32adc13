"""``skdiec cluster``."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from skdiec._version import __version__
from skdiec.cli.console import Console, command, json_of, show, show_json, shown_path
from skdiec.cli.fitting import Request, check_number, checked, fit, goes_on, read_for_fit
from skdiec.cli.options import (
    DEFAULT_MINUTES,
    AsJson,
    Backbone,
    Clusters,
    Device,
    Epochs,
    Folder,
    ImageShape,
    Minutes,
    Names,
    Output,
    Quiet,
    Seed,
    ValueRange,
    limits,
    number_of_clusters,
    numbers,
)
from skdiec.cli.output import MODEL_FOLDER, OutputFolder, default_output, folder_names
from skdiec.cli.reporting import REPORT_FILE, write_report
from skdiec.messages import duration

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from skdiec._estimator import DiffusionEmbeddedClustering
    from skdiec.cli.reading import Images
    from skdiec.cli.tables import Table
    from skdiec.report.labels import Labels

LABELS_FILE, PARQUET_FILE, SUMMARY_FILE = "labels.csv", "labels.parquet", "summary.json"

_N_TYPICAL = 3
_SHOWN_CLUSTERS = 50


def cluster(
    folder: Folder,
    k: Clusters = None,
    out: Output = None,
    copy: Annotated[bool, typer.Option("--copy", help="Copy the images into one folder a cluster.")] = False,
    link: Annotated[bool, typer.Option("--link", help="Link the images into one folder a cluster.")] = False,
    labels: Annotated[
        Path | None,
        typer.Option(metavar="CSV", help="Start from the clusters in this file: labels.csv, edited by hand."),
    ] = None,
    names: Names = None,
    minutes: Minutes = DEFAULT_MINUTES,
    epochs: Epochs = None,
    backbone: Backbone = None,
    image_shape: ImageShape = None,
    value_range: ValueRange = None,
    seed: Seed = 0,
    device: Device = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Cluster the images of a folder: labels, a model and a summary of what was found."""
    started = time.monotonic()
    with command(quiet, goes_on=lambda: goes_on(folder, out)) as console:
        request = Request(
            backbone,
            minutes,
            epochs,
            numbers("image-shape", image_shape, int),
            limits("value-range", value_range),
            seed,
            device,
        )
        if copy and link:
            raise ValueError("--copy and --link exclude each other")
        layout = "copy" if copy else "link" if link else None
        n_clusters = None if labels is not None and k is None else number_of_clusters(k)
        task = _Task(folder, out or default_output(folder), n_clusters, labels, names, layout)
        summary = _cluster(task, request, started, console)
        if as_json:
            show_json(summary)
        else:
            show(_in_words(summary, task.place))


@dataclass(frozen=True)
class _Task:
    """What is clustered, from which start, and what is made of it."""

    folder: Path
    place: Path
    n_clusters: int | Literal["auto"] | None
    labels: Path | None
    names: Path | None
    layout: str | None


def _cluster(task: _Task, request: Request, started: float, console: Console) -> dict[str, Any]:
    """Do all of it, and return the summary."""
    from skdiec.cli.reading import find_files
    from skdiec.cli.tables import check_names, read_labels, read_names

    _check_pyarrow()
    names = {} if task.names is None else read_names(task.names)
    n_clusters: int | Literal["auto"] = "auto" if task.n_clusters is None else task.n_clusters
    init: str | NDArray = "graph"
    request = checked(request, console)
    files = find_files(task.folder, console, leave_out=task.place)
    start = None if task.labels is None else read_labels(task.labels, files)
    if start is not None:
        if task.n_clusters not in (None, len(start.names)):
            raise ValueError(f"-k is {n_clusters}, and {shown_path(str(task.labels))} has {len(start.names)} clusters")
        n_clusters = len(start.names)
        names = {**{cluster: name for cluster, name in enumerate(start.names) if name}, **names}
    if isinstance(n_clusters, int):
        check_names(names, n_clusters, task.names or task.labels)
    check_number(n_clusters, files)
    out = OutputFolder(task.place, console)
    out.check_free([LABELS_FILE, PARQUET_FILE, SUMMARY_FILE, MODEL_FOLDER, REPORT_FILE])
    images = read_for_fit(request, files, out, console)
    check_number(n_clusters, images.files)
    if start is not None:
        _tell_of_labels(start, str(task.labels), console)
        init = start.labels[images.rows]
    read = time.monotonic()
    model = fit(request, images, n_clusters, out, console, started=started, init=init)
    fitted = time.monotonic()
    seconds = {"reading": read - started, **model.fit_seconds_}

    found = {cluster: name for cluster, name in names.items() if cluster < len(model.cluster_centers_)}
    if len(found) < len(names):  # how many there are was left open
        console.warn(f"{shown_path(str(task.names or task.labels))} names clusters that were not found")
        names = found
    table = _write(model, images, out, names, console)
    out.clear_layout()
    if task.layout is not None:
        folders = folder_names(len(model.cluster_centers_), names)
        groups: dict[str, list[Path]] = {name: [] for name in folders}
        for row, path in zip(images.rows, images.paths, strict=True):
            groups[folders[table["cluster"][row]]].append(path)
        with console.bar(f"{task.layout}ing the images") as report:
            out.lay_out(groups, copy=task.layout == "copy", report=report)
    seconds |= {"writing": time.monotonic() - fitted, "total": time.monotonic() - started}
    summary = _summary(task.folder, model, images, table, names, seconds, console)
    out.write({SUMMARY_FILE: json_of(summary).encode() + b"\n"})
    return summary


def _write(
    model: DiffusionEmbeddedClustering, images: Images, out: OutputFolder, names: Mapping[int, str], console: Console
) -> Table:
    """Write the labels, the model and the report."""
    from skdiec.cli.tables import csv_of, label_table, parquet_of

    console.say("writing the results")
    table = label_table(images, model, model.embedding_, names)
    out.write({LABELS_FILE: csv_of(table), PARQUET_FILE: parquet_of(table)})
    try:
        model.save(out.path / MODEL_FOLDER, overwrite=True)
    except ValueError:  # something was put beside the model that is there
        if not os.path.lexists(out.path / MODEL_FOLDER):
            raise
        out.set_aside(MODEL_FOLDER)
        model.save(out.path / MODEL_FOLDER)
    out.note([MODEL_FOLDER])
    out.keep_changed(REPORT_FILE)
    write_report(model, images, out.path / REPORT_FILE, console, names=names)
    out.note([REPORT_FILE])
    return table


def _summary(
    folder: Path,
    model: DiffusionEmbeddedClustering,
    images: Images,
    table: Table,
    names: Mapping[int, str],
    seconds: Mapping[str, float],
    console: Console,
) -> dict[str, Any]:
    """Return what was found, in plain values."""
    import platform

    import numpy as np
    import sklearn
    import torch

    from skdiec.naming import typical_rows

    sizes = np.bincount(model.labels_, minlength=len(model.cluster_centers_))
    clusters = [
        {
            "cluster": number,
            "name": names.get(number),
            "images": int(size),
            "probability": float(model.probabilities_[model.labels_ == number].mean()) if size else None,
            "typical": [table["path"][images.rows[row]] for row in typical_rows(model, number, _N_TYPICAL)],
        }
        for number, size in enumerate(sizes)
    ]
    best, kept = model.search_result_.best, model._labels_kept()
    return {
        "skdiec": __version__,
        "folder": str(folder.resolve()),
        "images": len(images.rows),
        "unreadable": [
            {"path": images.files.names[row], "problem": problem}
            for row, problem in sorted(images.files.problems.items())
        ],
        "clusters": clusters,
        "number": _number(model),
        "labels": None if kept is None else dict(zip(("kept", "given"), kept, strict=True)),
        "representation": {"layer": best.layer, "timestep": best.timestep, "pooling": best.pooling},
        "scores": {
            "cut_over_noise": model.cut_over_noise_,
            "stability": model.stability_,
            "share_explained": model.share_explained_,
        },
        "image_shape": model.image_shape_,
        "epochs": {"backbone": len(model.backbone_.recipe.get("loss", [])) or None, "head": model.n_iter_},
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "parameters": {**_parameters(model), "init": model.init if isinstance(model.init, str) else "labels"},
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "scikit-learn": sklearn.__version__,
        },
        "warnings": console.warnings,
    }


def _number(model: DiffusionEmbeddedClustering) -> dict[str, Any] | None:
    """Return how the number of clusters was found, None where it was asked for."""
    if not hasattr(model, "n_clusters_scores_"):
        return None
    from skdiec.report.words import number_found

    found = number_found(model)
    if found is None:
        return None
    return {"grade": found.grade, "verdict": found.verdict, "scores": model.n_clusters_scores_}


def _parameters(model: DiffusionEmbeddedClustering) -> dict[str, Any]:
    return {name: value for name, value in model.get_params().items() if not hasattr(value, "get_params")}


def _in_words(summary: Mapping[str, Any], place: Path) -> str:
    """Return the summary as people read it."""
    clusters = summary["clusters"]
    from skdiec.report.words import SURE_STABILITY

    lines = ["", f"{len(clusters)} clusters of {summary['images']:,} images", ""]
    lines.append(f"{'cluster':>7}  {'images':>7}  {'sure':>5}  most typical")
    for found in clusters[:_SHOWN_CLUSTERS]:
        sure = "" if found["probability"] is None else f"{found['probability']:.2f}"
        label = f"{found['name']}: " if found["name"] else ""
        typical = ", ".join(map(shown_path, found["typical"]))
        lines.append(f"{found['cluster']:>7}  {found['images']:>7,}  {sure:>5}  {label}{typical}")
    if len(clusters) > _SHOWN_CLUSTERS:
        lines.append(f"... and {len(clusters) - _SHOWN_CLUSTERS} more, in {SUMMARY_FILE}")
    scores, number = summary["scores"], summary["number"]
    cut, stability = scores["cut_over_noise"], scores["stability"]
    lines.append("")
    if number is not None:
        lines.append(f"How sure their number is: {number['grade']}. {number['verdict']}")
        lines.append("-k asks for another number; the backbone is not trained again.")
    if math.isfinite(stability):
        advice = "other seeds find the like" if stability >= SURE_STABILITY else "compare other values of --seed and -k"
        lines.append(f"How stable they are: {stability:.2f} (at most 1; {advice})")
    if math.isfinite(cut):
        lines.append(f"How much they overlap: {cut:.2f} (0: they lie apart; 1: as much as clusters of noise)")
    if summary["labels"] is not None:
        lines.append(f"Labels that the training kept: {summary['labels']['kept']:,} of {summary['labels']['given']:,}")
    lines.append(f"In {duration(summary['seconds']['total'])}; look at {shown_path(place / REPORT_FILE)}")
    return "\n".join(lines)


def _tell_of_labels(start: Labels, path: str, console: Console) -> None:
    if start.n_missing:
        images = "image" if start.n_missing == 1 else "images"
        console.warn(
            f"{shown_path(path)} does not name {start.n_missing:,} {images}: such images get one from their neighbours"
        )
    if start.others:
        console.warn(
            f"{shown_path(path)} names {len(start.others):,} that are not there, such as {shown_path(start.others[0])}"
        )


def _check_pyarrow() -> None:
    import importlib.util

    if importlib.util.find_spec("pyarrow") is None:
        raise ImportError('the command line needs pyarrow, which is not installed: pip install "skdiec[cli]"')
