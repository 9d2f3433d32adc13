"""``skdiec pretrain``."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skdiec.cli.console import Console, command
from skdiec.cli.fitting import tell_of_loading
from skdiec.cli.options import Device, Quiet, Seed, a_path, limits, numbers, positive, whole
from skdiec.datasets import DATASETS, load_dataset

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from skdiec.cli.reading import Files

CHECKSUM_FILE = "SHA256SUMS"
"""Checksum of the weights, beside them, for ``sha256sum --check``."""

Count = partial(typer.Option, parser=whole(1), metavar="N")


def pretrain(
    images: Annotated[
        str,
        typer.Argument(
            help="Folder of images, a text file with the path of one in each line, or a data set: "
            f"{', '.join(DATASETS)}. Where a file or folder has the name of a data set, write ./NAME for it, or add "
            "--data for the data set."
        ),
    ],
    folder: Annotated[Path, typer.Argument(help="Where the backbone goes; a stopped training goes on there.")],
    data: Annotated[Path | None, typer.Option(help="Folder to take the data set from, instead of a download.")] = None,
    image_shape: Annotated[str | None, typer.Option(help="HEIGHT,WIDTH that image files are scaled to.")] = None,
    value_range: Annotated[str | None, typer.Option(help="LOW,HIGH: black and white in files of over 8 bits.")] = None,
    epochs: Annotated[int | None, Count(help="Passes over the images.")] = None,
    batch_size: Annotated[int | None, Count(help="Images per training step.")] = None,
    learning_rate: Annotated[
        float | None, typer.Option(parser=positive, metavar="NUMBER", help="Peak of the schedule.")
    ] = None,
    architecture: Annotated[str, typer.Option(help="What is trained: unet or transformer.")] = "unet",
    channels: Annotated[
        str | None, typer.Option(help="Channels of each resolution, such as 32,64,128; of a transformer, such as 96.")
    ] = None,
    layers_per_block: Annotated[
        int | None, Count(help="Residual blocks in each resolution, or blocks of a transformer.")
    ] = None,
    patch_size: Annotated[
        int | None, Count(help="Side of the squares folded into channels, or made a transformer's tokens.")
    ] = None,
    max_timestep: Annotated[int | None, Count(help="Highest timestep trained on; 999 to sample too.")] = None,
    standardize: Annotated[
        bool | None,
        typer.Option(
            "--standardize/--no-standardize",
            help="Whether the network sees all images at the same brightness and contrast: by default those in colour.",
        ),
    ] = None,
    dtype: Annotated[str, typer.Option(help="Type of the saved weights: float32, or bfloat16 at half the size.")] = (
        "float32"
    ),
    device: Device = None,
    seed: Seed = 0,
    quiet: Quiet = False,
) -> None:
    """Train a compact diffusion model on unlabelled images, and save it as a diffusers pipeline."""
    with command(quiet, goes_on=lambda: _goes_on(folder)) as console:
        settings: dict[str, Any] = {
            "epochs": epochs,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "architecture": architecture,
            "channels": numbers("channels", channels, int),
            "layers_per_block": layers_per_block,
            "patch_size": patch_size,
            "max_timestep": max_timestep,
            "standardize": standardize,
            "dtype": dtype,
        }
        from skdiec.cli.reading import find_files

        shape, levels = numbers("image-shape", image_shape, int), limits("value-range", value_range)
        given = {name: value for name, value in settings.items() if value is not None}
        is_dataset = _is_dataset(images, data)
        files = None if is_dataset else find_files(a_path(images), console)
        tell_of_loading(console)
        from skdiec.backbones import default_device
        from skdiec.backbones import pretrain as train_backbone

        default_device(device)
        if files is None:
            X, channel_axis = load_dataset(images, data).images, None
        else:
            X = _read(files, folder, shape, levels, given, console)
            shape, channel_axis = None, 1 if X.ndim == 4 else None
        with console.bar("pretraining") as bar:

            def told(done: int, total: int, loss: float) -> None:
                bar(done, total)

            trained = train_backbone(
                X,
                folder,
                image_shape=shape,
                channel_axis=channel_axis,
                value_range=levels,
                device=device,
                random_state=seed,
                report=told,
                **given,
            )
        recipe = trained.recipe
        typer.echo(_write_checksum(folder))
        typer.echo(f"{recipe['parameters']:,} parameters, {recipe['steps']:,} steps, {recipe['seconds']:.0f} s")


def _read(
    files: Files,
    folder: Path,
    image_shape: tuple[int, ...] | None,
    value_range: tuple[float, float] | None,
    settings: Mapping[str, Any],
    console: Console,
) -> NDArray:
    """Return the images that can be read, once the settings are known to fit them."""
    import numpy as np

    from skdiec.backbones import Pretraining, default_device, untrained_backbone
    from skdiec.cli.reading import read_images
    from skdiec.images import as_image_source

    def check(shape: tuple[int, int, int]) -> None:
        blank = as_image_source(np.zeros((1, *shape), np.uint8), channel_axis=1)
        untrained_backbone(blank, Pretraining(folder, **settings), default_device("cpu"))

    return read_images(
        files,
        console,
        image_shape=image_shape,
        value_range=value_range,
        map_file=folder.parent / f".{folder.name}-images.npy",
        scaled=False,
        check=check,
    ).pixels


def _goes_on(folder: Path) -> str:
    from skdiec.backbones.checkpoints import CHECKPOINT_FILE

    is_kept = (folder / CHECKPOINT_FILE).exists()
    return f"the same command {'goes on from its last checkpoint' if is_kept else 'begins again'}"


def _is_dataset(images: str, data: Path | None) -> bool:
    if images not in DATASETS:
        if data is not None:
            raise ValueError(f"--data goes with a data set ({', '.join(DATASETS)}); got {images!r}")
        return False
    if data is None and Path(images).exists():
        raise ValueError(
            f"{images} is a data set, and there is a file or folder of that name: write ./{images} for the file or "
            "folder, or add --data for the data set"
        )
    return True


def _write_checksum(folder: Path) -> str:
    part = "unet" if (folder / "unet").exists() else "transformer"
    weights = next((folder / part).glob("*.safetensors"))
    with weights.open("rb") as file:
        checksum = f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {weights.relative_to(folder).as_posix()}"
    path = folder / CHECKSUM_FILE
    if not path.exists() or path.read_text() != checksum + "\n":  # a finished folder may be read-only
        path.write_text(checksum + "\n")
    return checksum
