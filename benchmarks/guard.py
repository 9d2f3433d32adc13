"""Measure the share of its task that a network solves on images, as they are and as they should not be.

The network is the compact one of USPS, used as it was trained and in ways in which it was not. Each row is the share
explained (`share_explained_`) of 1,000 images at three levels of noise. Takes seconds:

    python benchmarks/guard.py --data FOLDER
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import BACKBONES, Results, machine, markdown_table, sources, write_table

from skdiec.datasets import FOLDER_VARIABLE, load_dataset

N_IMAGES = 1_000
LEVELS = (50, 150, 350)
VALUES = (*(f"t{level}" for level in LEVELS), "machine")


class Otherwise:
    """A backbone that is used otherwise than it was trained: what it is given, or told, is changed."""

    def __init__(self, backbone: Any, *, scale: float = 1.0, time: float = 1.0) -> None:
        self._backbone, self._scale, self._time = backbone, scale, time

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backbone, name)

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Scale what is noised, as latents of another autoencoder would be."""
        return self._scale * self._backbone.encode(pixels)

    def predict(self, x_t: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Tell the network of another time."""
        return self._backbone.network(x_t, self._time * timesteps, return_dict=False)[0]


def cases(folder: Path | None) -> Iterator[tuple[str, Any, np.ndarray, tuple[float, float]]]:
    """Yield what is wrong, a backbone, images and their value range."""
    from diffusers import DDPMScheduler

    from skdiec import load_backbone
    from skdiec.backbones import PixelBackbone

    trained = load_backbone(BACKBONES / "usps")

    def with_schedule(**changes: Any) -> PixelBackbone:
        scheduler = DDPMScheduler.from_config(trained.scheduler.config, **changes)
        shapes = {"image_shape": trained.image_shape, "patch_size": trained.patch_size}
        return PixelBackbone(trained.network, scheduler, recipe=trained.recipe, **shapes)

    usps = load_dataset("usps", folder).images
    rows = np.sort(np.random.default_rng(0).permutation(len(usps))[:N_IMAGES])
    images = np.asarray(usps[rows], dtype=np.float64)
    low, high = images.min(), images.max()
    mnist = np.asarray(load_dataset("mnist", folder).images[rows], dtype=np.float64)
    noise = np.random.default_rng(0).uniform(low, high, images.shape)
    yield "nothing", trained, images, (low, high)
    yield "images of another data set (MNIST)", trained, mnist, (0, 255)
    yield "value range: black taken for grey", trained, images, (low - (high - low), high)
    yield "inverted images", trained, high + low - images, (low, high)
    yield "scale: latents five times too large", Otherwise(trained, scale=5.0), images, (low, high)
    yield "prediction read as the image", with_schedule(prediction_type="sample"), images, (low, high)
    yield "prediction read as velocity", with_schedule(prediction_type="v_prediction"), images, (low, high)
    yield "time divided by 1,000", Otherwise(trained, time=0.001), images, (low, high)
    yield "images of noise", trained, noise, (low, high)
    latent = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    yield "betas of Stable Diffusion", with_schedule(**latent), images, (low, high)


def main() -> None:
    from skdiec.backbones.guard import share_explained
    from skdiec.images import as_image_source

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help=f"folder with the data (default: {FOLDER_VARIABLE}, or download)")
    parser.add_argument("--table", action="store_true", help="only write the table of what was measured")
    arguments = parser.parse_args()
    results = results_of()
    for wrong, backbone, images, value_range in () if arguments.table else cases(arguments.data):
        if not results.find(wrong=wrong):
            shares = share_explained(backbone, as_image_source(images, value_range=value_range)).values()
            results.add(wrong=wrong, machine=machine(), **{f"t{t}": x for t, x in zip(LEVELS, shares, strict=True)})
    write_table("guard", table(results))


def results_of() -> Results:
    return Results("guard", ("wrong",), VALUES)


def table(results: Results) -> list[str]:
    rows = [(row["wrong"], *(f"{float(row[f't{level}']):.2f}" for level in LEVELS)) for row in results.rows]
    rows = [(*row, "yes" if any(value.startswith("-") for value in row[1:]) else "no") for row in rows]
    header = ("what is wrong", *(f"timestep {level}" for level in LEVELS), "warned of")
    return [
        *markdown_table(header, rows),
        "",
        "Share explained on 256 images, by the compact U-Net of USPS, at the noise of these timesteps of a DDPM's "
        "linear schedule.",
        *sources(results),
        "Command: `python benchmarks/guard.py`.",
    ]


if __name__ == "__main__":
    main()
