"""The command line: ``skdiec pretrain``."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated

import typer

from skdiec.backbones import pretrain as train_backbone
from skdiec.datasets import DATASETS, load_dataset

CHECKSUM_FILE = "SHA256SUMS"
"""Checksum of the weights, beside them, for ``sha256sum --check``."""

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def main() -> None:
    """Cluster images with what a diffusion model knows of them."""


@app.command()
def pretrain(
    images: Annotated[str, typer.Argument(help=f"Folder of images, or a data set: {', '.join(DATASETS)}.")],
    folder: Annotated[Path, typer.Argument(help="Where the backbone goes; a stopped training goes on there.")],
    data: Annotated[Path | None, typer.Option(help="Folder with the data set, instead of a download.")] = None,
    image_shape: Annotated[str | None, typer.Option(help="HEIGHT,WIDTH that image files are scaled to.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the images.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images per training step.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak of the schedule.")] = None,
    channels: Annotated[str | None, typer.Option(help="Channels of each resolution, such as 32,64,128.")] = None,
    layers_per_block: Annotated[int | None, typer.Option(help="Residual blocks in each resolution.")] = None,
    patch_size: Annotated[int | None, typer.Option(help="Side of the squares folded into channels.")] = None,
    max_timestep: Annotated[int | None, typer.Option(help="Highest timestep trained on; 999 to sample too.")] = None,
    dtype: Annotated[str, typer.Option(help="Type of the saved weights: float32, or bfloat16 at half the size.")] = (
        "float32"
    ),
    device: Annotated[str | None, typer.Option(help="Such as cpu or cuda.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of weights, batches and noise.")] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress.")] = False,
) -> None:
    """Train a compact diffusion model on unlabelled images, and save it as a diffusers pipeline."""
    settings = {
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "channels": _numbers("channels", channels),
        "layers_per_block": layers_per_block,
        "patch_size": patch_size,
        "max_timestep": max_timestep,
        "image_shape": _numbers("image-shape", image_shape),
        "device": device,
    }
    given = {name: value for name, value in settings.items() if value is not None}
    try:
        X = load_dataset(images, data).images if images in DATASETS else images
        backbone = train_backbone(X, folder, dtype=dtype, random_state=seed, verbose=not quiet, **given)
    except (ValueError, FileNotFoundError) as error:
        raise typer.BadParameter(str(error)) from error
    weights = next((folder / "unet").glob("*.safetensors"))
    checksum = f"{hashlib.sha256(weights.read_bytes()).hexdigest()}  {weights.relative_to(folder)}"
    (folder / CHECKSUM_FILE).write_text(checksum + "\n")
    typer.echo(checksum)
    recipe = backbone.recipe
    typer.echo(f"{recipe['parameters']:,} parameters, {recipe['steps']:,} steps, {recipe['seconds']:.0f} s")


def _numbers(name: str, text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(f"--{name} must be whole numbers with commas between; got {text!r}") from error


if __name__ == "__main__":
    app()
