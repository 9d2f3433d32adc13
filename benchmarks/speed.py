"""Measure the engine's speed as ratios, each against a reference in the same run, and whether results repeat.

python benchmarks/speed.py --data FOLDER
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile

import numpy as np
from common import BACKBONES, add_data_options, bare_pass, machine, seconds, write_table

from skdiec import DiffusionEmbeddedClustering
from skdiec.activations import Cell
from skdiec.backbones import PixelBackbone, load_backbone
from skdiec.datasets import load_dataset
from skdiec.features import FeatureExtractor, suited_batch_size
from skdiec.images import as_image_source

N_IMAGES = 4096
ROUNDS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_data_options(parser, ("usps",))
    arguments = parser.parse_args()
    images = load_dataset("usps", arguments.data).images
    backbone = load_backbone(BACKBONES / "usps")
    lines = [*extraction(images, backbone), *prediction(images, backbone), *head(images, backbone)]
    lines += ["", f"USPS. Machine: {machine()}. Command: `python benchmarks/speed.py`."]
    write_table("speed", lines)


def extraction(images: np.ndarray, backbone: PixelBackbone) -> list[str]:
    """Compare extraction with the bare, truncated forward pass at the same batch size."""
    cell = Cell("mid_block", 50, 4)
    source = as_image_source(images[:N_IMAGES])
    batch_size = suited_batch_size(backbone)
    extractor = FeatureExtractor(backbone, n_draws=1, batch_size=batch_size)
    run = bare_pass(backbone, cell.layer, cell.timestep, batch_size)

    def bare() -> None:
        for _ in range(N_IMAGES // batch_size):
            run()

    def ours() -> None:
        extractor.extract(source, [cell])

    low = dataclasses.replace(extractor, precision="bf16")

    def in_bfloat16() -> None:
        low.extract(source, [cell])

    # Alternating rounds, best of each: the machine's other work falls on all alike.
    rounds = [(seconds(bare), seconds(ours), seconds(in_bfloat16)) for _ in range(ROUNDS)]
    bare_rate, our_rate, low_rate = (N_IMAGES / min(column) for column in zip(*rounds, strict=True))
    exact, rounded = (each.extract(source, [cell])[cell] for each in (extractor, low))
    difference = np.linalg.norm(rounded - exact) / np.linalg.norm(exact - exact.mean(axis=0))
    return [
        f"- extraction: {our_rate:.0f} images/s, {our_rate / bare_rate:.1%} of the bare truncated forward pass "
        f"({bare_rate:.0f}); best of {ROUNDS} alternating rounds of {N_IMAGES:,} images",
        f'- `precision="bf16"`: {low_rate / our_rate:.2f} times the images/s of fp32; features differ by '
        f"{difference:.1%} of their distance from the mean",
    ]


def prediction(images: np.ndarray, backbone: PixelBackbone) -> list[str]:
    """Compare `predict` with the bare, truncated forward passes that it needs."""
    settings = {"layer": "mid_block", "timestep": 50, "pooling": 4, "max_epochs": 1, "random_state": 0}
    model = DiffusionEmbeddedClustering(10, backbone=backbone, **settings).fit(images[:N_IMAGES])
    batch_size = suited_batch_size(backbone)
    run = bare_pass(backbone, model.layer_, model.timestep_, batch_size)

    def bare() -> None:
        for _ in range(model.n_draws * N_IMAGES // batch_size):
            run()

    def ours() -> None:
        model.predict(images[:N_IMAGES])

    rounds = [(seconds(bare), seconds(ours)) for _ in range(ROUNDS)]
    bare_rate, our_rate = (N_IMAGES / min(column) for column in zip(*rounds, strict=True))
    return [
        f"- `predict`: {our_rate:.0f} images/s, {our_rate / bare_rate:.1%} of the bare truncated passes, "
        f"{model.n_draws} for each image ({bare_rate:.0f})"
    ]


def head(images: np.ndarray, backbone: PixelBackbone) -> list[str]:
    """Time the head on cached features, and compare labels between runs that must agree."""
    settings = {"backbone": backbone, "layer": "mid_block", "timestep": 50, "pooling": 4, "random_state": 0}

    def fit(**more: object) -> DiffusionEmbeddedClustering:
        return DiffusionEmbeddedClustering(10, **settings, **more).fit(images)

    with tempfile.TemporaryDirectory() as memory:
        once, again = fit(memory=memory), fit(memory=memory)
        other = fit(n_jobs=2, inference_batch_size=200)
    training = other.fit_seconds_["training"]
    share = training / sum(other.fit_seconds_.values())
    return [
        f"- head: {training:.1f} s of training, {share:.0%} of a fit at a fixed cell",
        f"- fitted twice: identical labels {bool((once.labels_ == again.labels_).all())}; without cache, with n_jobs=2 "
        f"and batches of 200: identical labels {bool((once.labels_ == other.labels_).all())}",
    ]


if __name__ == "__main__":
    main()
