"""``skdiec sample``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from skdiec.cli.console import command, show
from skdiec.cli.options import Device, Overwrite, Quiet, Seed, whole

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def sample(
    backbone: Annotated[
        Path, typer.Argument(metavar="BACKBONE_OR_MODEL", help="Folder of a diffusion model, or of a saved model.")
    ],
    out: Annotated[Path, typer.Option(metavar="PNG", help="Picture to write.")] = Path("samples.png"),
    n: Annotated[int, typer.Option("-n", parser=whole(1), metavar="N", help="Number of new images.")] = 16,
    steps: Annotated[int, typer.Option(parser=whole(1), metavar="N", help="Passes through the network for each.")] = 50,
    seed: Seed = 0,
    device: Device = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Draw new images from a backbone that was trained on all timesteps, as one picture of rows and columns."""
    with command(quiet) as console:
        from skdiec.backbones.folders import write_whole
        from skdiec.cli.output import check_new

        check_new(out, overwrite=overwrite)
        console.say("loading the backbone")
        from skdiec.backbones import check_can_sample, default_device
        from skdiec.cli.models import load_any_backbone
        from skdiec.sampling import sample_images

        loaded = load_any_backbone(backbone).to(default_device(device))
        check_can_sample(loaded)
        console.say("drawing")
        with console.bar("drawing") as report:
            images = sample_images(loaded, n, n_steps=steps, seed=seed, report=report)
        write_whole(out, _grid(images))
        show(f"{n} images in {out}")


def _grid(images: NDArray[np.float32]) -> bytes:
    """Return images as one picture, about square, in the PNG format."""
    import io

    import numpy as np
    from PIL import Image

    n, channels, height, width = images.shape
    n_columns = math.ceil(math.sqrt(n))
    n_rows = math.ceil(n / n_columns)
    grid = np.full((n_rows * (height + 1) - 1, n_columns * (width + 1) - 1, 3), 255, dtype=np.uint8)
    pixels = np.rint(np.moveaxis(images, 1, -1) * 127.5 + 127.5).astype(np.uint8)
    if channels not in (1, 3):
        pixels = pixels.mean(axis=-1, keepdims=True)
    for number, image in enumerate(pixels):
        row, column = divmod(number, n_columns)
        top, left = row * (height + 1), column * (width + 1)
        grid[top : top + height, left : left + width] = image
    file = io.BytesIO()
    Image.fromarray(grid).save(file, format="PNG")
    return file.getvalue()
