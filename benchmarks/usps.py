"""Measure the estimator on USPS: accuracy over seeds, starts, held-out images, repeatability and speed.

Pretrains the backbone where its folder does not hold it yet; a run that was stopped goes on where it was. Writes
``results/usps.csv`` and ``results/usps.md`` beside this file. Labels are used to evaluate, never to fit or to choose.

    python benchmarks/usps.py --data FOLDER_WITH_usps.npz --backbone FOLDER
"""

import argparse
import csv
import os
import platform
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from sklearn.cluster import KMeans

from skdiec import DiffusionEmbeddedClustering, pretrain
from skdiec.activations import Cell, capture
from skdiec.features import FeatureExtractor
from skdiec.images import as_image_source
from skdiec.metrics import clustering_report

EPOCHS = 50
FIELDS = ("row", "seed", "acc", "nmi", "ari", "seconds", "cell")
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with usps.npz (X uint8 (n, 16, 16), y)")
    parser.add_argument("--backbone", type=Path, required=True, help="folder of the backbone, made where it is missing")
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    with np.load(arguments.data / "usps.npz") as file:
        X, y = file["X"], file["y"]

    backbone = pretrain(X, arguments.backbone, epochs=EPOCHS, random_state=0, verbose=True)
    table = Table(RESULTS / "usps.csv")
    order = np.random.default_rng(0).permutation(len(X))
    held_out, rest = order[: len(X) // 5], order[len(X) // 5 :]

    for seed in range(arguments.seeds):
        table.measure("KMeans on pixels", seed, y, lambda seed=seed: kmeans(X, seed))
        with tempfile.TemporaryDirectory() as memory:
            settings = {"backbone": backbone, "random_state": seed, "memory": memory}
            table.measure("skdiec", seed, y, lambda settings=settings: fit(X, **settings))
            # Search and features of the next rows come from the cache of the row above, where that was just run.
            table.measure(
                'skdiec, init="k-means++"', seed, y, lambda settings=settings: fit(X, init="k-means++", **settings)
            )

    def predict_held_out() -> tuple[np.ndarray, str]:
        model = model_of(X[rest], backbone=backbone, random_state=0)
        return model.predict(X[held_out]), cell_of(model)

    table.measure("skdiec, fitted on 4/5: predict on the held-out 1/5", 0, y[held_out], predict_held_out)
    lines = table.as_markdown()
    lines += ["", f"{len(X)} images; backbone: {describe(backbone)}.", "", f"Machine: {machine()}."]
    lines += [f"Command: `python benchmarks/usps.py --data FOLDER --backbone FOLDER --seeds {arguments.seeds}`.", ""]
    lines += speed(X, backbone)
    (RESULTS / "usps.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def kmeans(X: np.ndarray, seed: int) -> tuple[np.ndarray, str]:
    return KMeans(10, n_init=10, random_state=seed).fit_predict(X.reshape(len(X), -1) / 255.0), ""


def model_of(X: np.ndarray, **settings: object) -> DiffusionEmbeddedClustering:
    return DiffusionEmbeddedClustering(10, **settings).fit(X)


def fit(X: np.ndarray, **settings: object) -> tuple[np.ndarray, str]:
    model = model_of(X, **settings)
    return model.labels_, cell_of(model)


def cell_of(model: DiffusionEmbeddedClustering) -> str:
    return f"{model.layer_}, t={model.timestep_}, pooling={model.pooling_}"


def describe(backbone: object) -> str:
    recipe = backbone.recipe
    return (
        f"{recipe['parameters'] / 1e6:.2f} M parameters, pretrained on the same images without labels for "
        f"{recipe['settings']['epochs']} epochs in {recipe['seconds'] / 60:.1f} minutes"
    )


def machine() -> str:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return (
        f"{os.cpu_count()} CPU cores ({platform.machine()}), no GPU, torch {torch.__version__}, "
        f"Python {platform.python_version()}; peak memory of the process {peak:.1f} GB"
    )


def speed(X: np.ndarray, backbone: object) -> list[str]:
    """Compare extraction with the bare, truncated forward pass at the same batch size, and time the head."""
    cell = Cell("mid_block", 50, 4)
    batch_size, n = 128, 4096
    source = as_image_source(X[:n])
    extractor = FeatureExtractor(backbone, n_draws=1, batch_size=batch_size)
    images = torch.from_numpy(source.read(slice(0, batch_size)))
    timesteps = torch.full((batch_size,), cell.timestep)

    def discard(name: str, activation: torch.Tensor) -> None:
        return

    def bare() -> None:
        with torch.inference_mode():
            for _ in range(n // batch_size):
                capture(backbone.network, lambda: backbone.predict(images, timesteps), [cell.layer], discard)

    def ours() -> None:
        extractor.extract(source, [cell])

    # Alternating rounds, best of each: the machine's other work falls on both alike.
    rounds = [(seconds(bare), seconds(ours)) for _ in range(5)]
    bare_rate, our_rate = (n / min(column) for column in zip(*rounds, strict=True))
    settings = {"backbone": backbone, "layer": cell.layer, "timestep": 50, "pooling": 4, "random_state": 0}
    with tempfile.TemporaryDirectory() as memory:
        model_of(X, memory=memory, head=None, **settings)
        without = seconds(lambda: model_of(X, memory=memory, head=None, **settings))
        with_head = seconds(lambda: model_of(X, memory=memory, **settings))
        once, again = (model_of(X, memory=memory, **settings) for _ in range(2))
        other = model_of(X, n_jobs=2, inference_batch_size=200, **settings)
    return [
        f"- extraction: {our_rate:.0f} images/s, {our_rate / bare_rate:.1%} of the bare truncated forward "
        f"({bare_rate:.0f})",
        f"- head training on cached features: {with_head - without:.1f} s",
        f"- fitted twice: identical labels {bool((once.labels_ == again.labels_).all())}; without cache, with n_jobs=2 "
        f"and batches of 200: identical labels {bool((once.labels_ == other.labels_).all())}",
    ]


def seconds(function: object) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


class Table:
    """Results of single runs, kept in a CSV file so that none is run twice."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, str]] = []
        path.parent.mkdir(exist_ok=True)
        if path.exists():
            with path.open(newline="") as file:
                self.rows = list(csv.DictReader(file))

    def measure(self, row: str, seed: int, y: np.ndarray, run: object) -> None:
        if any(found["row"] == row and found["seed"] == str(seed) for found in self.rows):
            return
        started = time.perf_counter()
        labels, cell = run()
        elapsed = time.perf_counter() - started
        report = clustering_report(y, labels)
        values = (row, seed, f"{report.acc:.4f}", f"{report.nmi:.4f}", f"{report.ari:.4f}", f"{elapsed:.1f}", cell)
        self.rows.append(dict(zip(FIELDS, map(str, values), strict=True)))
        print(*values, sep="  ", file=sys.stderr, flush=True)
        with self.path.open("w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS)
            writer.writeheader()
            writer.writerows(self.rows)

    def as_markdown(self) -> list[str]:
        lines = ["| USPS | seeds | ACC | NMI | ARI | seconds |", "|---|---|---|---|---|---|"]
        for name in dict.fromkeys(row["row"] for row in self.rows):
            rows = [row for row in self.rows if row["row"] == name]
            cells = []
            for field, digits in (("acc", 4), ("nmi", 4), ("ari", 4), ("seconds", 0)):
                values = np.array([float(row[field]) for row in rows])
                spread = f" ± {values.std(ddof=1):.{digits}f}" if len(values) > 1 and digits else ""
                cells.append(f"{values.mean():.{digits}f}{spread}")
            lines.append(f"| {name} | {len(rows)} | {' | '.join(cells)} |")
        return lines


if __name__ == "__main__":
    main()
