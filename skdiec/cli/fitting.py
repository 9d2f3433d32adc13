"""What ``skdiec cluster`` and ``skdiec search`` have in common: images, an estimator for them, and its fit."""

from __future__ import annotations

import hashlib
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from skdiec.cli.console import Console, StageProgress, command_line, shown_path
from skdiec.cli.output import WORK_FOLDER, OutputFolder, default_output
from skdiec.images import checked_image_shape
from skdiec.messages import duration

if TYPE_CHECKING:
    from skdiec._estimator import DiffusionEmbeddedClustering
    from skdiec.cli.reading import Files, Images

_SNAPSHOTS = 10
"""Epochs whose embeddings the report shows."""

_CHECKPOINT_SECONDS = 15.0
_MAP_FILE = "images.npy"

_LEAST_TRAINING = 0.2
"""Of the time for a run: share that the training of the backbone gets at least."""

_LEAST_REST = 0.1
"""Share for what is neither training nor passes: scores, partition, map and report. They take about as long as the
passes on a processor, and longer where a GPU makes these quick."""

_STAGES = {
    "search": "searching the representation that clusters best",
    "features": "computing the features of all images",
    "partition": "finding the initial partition",
    "training": "training the head",
}


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes
    ----------
    backbone : str or None
        One that exists.
    minutes : float
        Of the whole run, or of the training of another one.
    epochs : int or None
        Of the training of another one.
    image_shape, value_range : tuple or None
    seed : int
    device : str or None
    """

    backbone: str | None
    minutes: float
    epochs: int | None
    image_shape: tuple[int, ...] | None
    value_range: tuple[float, float] | None
    seed: int
    device: str | None


def checked(request: Request, console: Console) -> Request:
    """Return what is asked for, with the size of the backbone's images where none is stated.

    Parameters
    ----------
    request : Request
    console : Console

    Returns
    -------
    Request

    Raises
    ------
    ValueError
        For an image shape, a device or a backbone that there is not: before any file is looked at.
    """
    if request.image_shape is not None:
        checked_image_shape(request.image_shape, None if len(request.image_shape) == 2 else 1)
    if request.device is None and request.backbone is None:
        return request
    tell_of_loading(console)
    from skdiec.backbones import default_device, load_backbone

    default_device(request.device)
    if request.backbone is None:
        return request
    backbone = load_backbone(request.backbone)
    return request if request.image_shape is not None else replace(request, image_shape=backbone.image_shape)


def tell_of_loading(console: Console) -> None:
    """Say that libraries are loaded, where they are not: the first time this takes long.

    Parameters
    ----------
    console : Console
    """
    if "diffusers" not in sys.modules:
        console.say("loading torch and diffusers, which takes longest the first time")


def check_number(n_clusters: int | Literal["auto"], files: Files) -> None:
    """Raise ValueError for more clusters than there are images.

    Parameters
    ----------
    n_clusters : int or str
    files : Files
    """
    n_images = len(files.paths) - len(files.problems)
    least = max(2, n_clusters) if isinstance(n_clusters, int) else 2
    if n_images < least:
        broken = f" ({len(files.problems)} cannot be read)" if files.problems else ""
        raise ValueError(
            f"{n_clusters} clusters need at least {least} images; {shown_path(files.root)} has {n_images}{broken}"
        )


def read_for_fit(request: Request, files: Files, out: OutputFolder, console: Console) -> Images:
    """Read the images that are to be clustered.

    Parameters
    ----------
    request : Request
    files : Files
    out : OutputFolder
    console : Console

    Returns
    -------
    Images
    """
    from skdiec.cli.reading import read_images

    return read_images(
        files,
        console,
        image_shape=request.image_shape,
        value_range=request.value_range,
        map_file=out.work / _MAP_FILE,
    )


def fit(
    request: Request,
    images: Images,
    n_clusters: int | Literal["auto"],
    out: OutputFolder,
    console: Console,
    *,
    started: float | None = None,
    **parameters: Any,
) -> DiffusionEmbeddedClustering:
    """Fit an estimator, whose unfinished work is kept.

    Parameters
    ----------
    request : Request
    images : Images
    n_clusters : int or str
    out : OutputFolder
    console : Console
    started : float, default=None
        When the run began, by the monotonic clock, where the minutes are those of all of it. None where they are those
        of the training.
    **parameters
        Further ones of the estimator.

    Returns
    -------
    DiffusionEmbeddedClustering
        As if it had been fitted on the files.
    """
    tell_of_loading(console)
    from skdiec import DiffusionEmbeddedClustering, Pretraining
    from skdiec.backbones.folders import locked

    backbone = request.backbone or Pretraining(epochs=request.epochs, checkpoint_seconds=_CHECKPOINT_SECONDS)
    model = DiffusionEmbeddedClustering(
        n_clusters,
        backbone=backbone,
        channel_axis=1 if images.pixels.ndim == 4 else None,
        value_range=request.value_range,
        n_snapshots=_SNAPSHOTS,
        memory=str(out.work),
        device=request.device,
        random_state=request.seed,
        **parameters,
    )
    stages = {"backbone": "looking whether the backbone knows such images", **_STAGES}
    with locked(out.work), console.telling("skdiec.passes"):
        if request.backbone is None:
            minutes, is_begun = _training_minutes(model, request, images, out, console, started)
            model.set_params(backbone__max_minutes=minutes)
            where = "going on with the backbone of an earlier run" if is_begun else "training a backbone on the images"
            stages["backbone"] = f"{where}, for at most {duration(60 * minutes)}"
        if hasattr(model, "set_callbacks"):
            model.set_callbacks(StageProgress(console, stages)).fit(images.pixels)
            model.set_callbacks()
        else:  # scikit-learn before 1.9 has no callbacks
            console.say(stages["backbone"])
            model.set_params(verbose=not console.quiet).fit(images.pixels)
    # Where the work was kept, and how the array of the images was laid out, is nobody's business later.
    model.set_params(memory=None, channel_axis=None, verbose=False)
    model.files_ = [path.absolute() for path in images.paths]
    return model


def _training_minutes(
    model: DiffusionEmbeddedClustering,
    request: Request,
    images: Images,
    out: OutputFolder,
    console: Console,
    started: float | None,
) -> tuple[float, bool]:
    """Return the minutes that the backbone is trained, and whether an earlier run, asked for the same, began it."""
    asked = (images.pixels.shape, str(images.pixels.dtype), request.minutes, request.epochs)
    digest = hashlib.sha256(repr((*asked, request.value_range, request.seed)).encode())
    digest.update(images.pixels.data)
    path = out.work / f"minutes-{digest.hexdigest()[:16]}.txt"
    if path.exists():
        return float(path.read_text()), True
    minutes = request.minutes
    if started is not None:
        from skdiec._estimator.stages import seconds_of_passes

        console.say("measuring how long forward passes take")
        passes = seconds_of_passes(model, images.pixels)
        minutes = _split(60 * minutes, time.monotonic() - started, passes, console) / 60
    from skdiec.backbones.folders import write_whole

    write_whole(path, repr(minutes).encode())
    return minutes, False


def _split(budget: float, gone: float, passes: float, console: Console) -> float:
    """Return the seconds that are left for the training of the backbone, and say what the others are for."""
    rest = max(passes, _LEAST_REST * budget)
    training = max(_LEAST_TRAINING * budget, budget - gone - passes - rest)
    console.say(
        f"of {duration(budget)}, {duration(gone)} are gone, {duration(training)} train the backbone, about "
        f"{duration(passes)} are for forward passes and {duration(rest)} for scores, partition, map and report"
    )
    needed = gone + training + passes + rest
    if needed > budget + 1:
        console.warn(
            f"it takes about {duration(needed)}, more than the {duration(budget)} of --minutes, of which the training "
            "of the backbone gets a fifth"
        )
    return training


def goes_on(folder: Path, out: Path | None) -> str:
    """Return what to say after Ctrl-C.

    Parameters
    ----------
    folder : Path
    out : Path or None
        As the options have them.

    Returns
    -------
    str
    """
    work = (out or default_output(folder)) / WORK_FOLDER
    kept = f"what is done is kept in {shown_path(work)}; " if work.exists() else ""
    return f"{kept}go on with: {command_line()}"
