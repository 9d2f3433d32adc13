"""Compare a transformer with the U-Net: which representations are best, and what does the clustering reach?

The paper asks whether its choice of layer and timestep carries over from U-Nets to transformers. Here both are trained
by `pretrain` on the same images: for as many seconds of one thread, and the transformer also on as many images as the
U-Net has seen in them: for longer on USPS, by larger patches on MNIST. Then every cell of the search (blocks x
timesteps x poolings) gets the values of the search's criteria, and the accuracy that its own partition reaches; and the
estimator is fitted. Labels evaluate alone. Seconds are those of the processor, so that others on the machine cost
nobody images. A run that was stopped goes on where it was.

    OMP_NUM_THREADS=1 python benchmarks/architectures.py --data FOLDER --seeds 1
"""

from __future__ import annotations

import argparse
import functools
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from accuracy import NAMES
from common import (
    CACHE,
    HERE,
    N_IMAGES,
    Results,
    add_run_options,
    agreement,
    departures,
    in_new_process,
    machine,
    markdown_table,
    mean_of,
    random_images,
    sources,
    write_table,
)
from scipy.stats import spearmanr

MINUTES = 5.0
"""Of the processor, for each training at equal cost."""

UNET, TRANSFORMER = "U-Net", "transformer"
LARGE_PATCHES, SAME_IMAGES = "transformer, patches of 4", "transformer, as many images"
SETTINGS: dict[str, dict[str, Any]] = {
    UNET: {"architecture": "unet"},
    TRANSFORMER: {"architecture": "transformer", "learning_rate": 2e-3},
    LARGE_PATCHES: {"architecture": "transformer", "learning_rate": 2e-3, "patch_size": 4},
    SAME_IMAGES: {"architecture": "transformer", "learning_rate": 2e-3},
}
"""What departs from the defaults of `pretrain`. The learning rate was the better of two, by the loss on USPS."""

RUNS = {"usps": (UNET, TRANSFORMER, SAME_IMAGES), "mnist": (UNET, TRANSFORMER, LARGE_PATCHES)}
"""What is trained. With patches of 4, the transformer sees as many images of MNIST in the same time as the U-Net."""

FIT = {"n_draws": 2, "shift": 0}
"""Departures of the fits from the estimator's defaults: less time for features, since networks are compared."""

FIGURE = HERE.parent / "docs" / "images" / "architectures.png"


def train_and_fit(
    name: str, folder: Path | None, seed: int, settings: dict[str, Any], where: Path
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Train a network, cluster with it, and score all cells of the search; return a row, and one for each cell."""
    from skdiec import DiffusionEmbeddedClustering, pretrain
    from skdiec.backbones import trainer

    # `max_minutes` and the recorded seconds then count the processor's.
    trainer.time = SimpleNamespace(monotonic=time.process_time)
    images, y = random_images(name, folder, 0)
    backbone = pretrain(images, where, dtype="bfloat16", random_state=seed, **settings)
    model = DiffusionEmbeddedClustering(10, backbone=backbone, random_state=seed, **FIT).fit(images)
    accuracies = accuracies_of(images, y, backbone, model.search_result_, seed)
    search = model.search_result_
    cells = [
        {
            "layer": layer,
            "timestep": timestep,
            "pooling": pooling,
            **{criterion: float(values[i, j, k]) for criterion, values in search.scores.items()},
            "acc": accuracies[layer, timestep, pooling],
        }
        for i, layer in enumerate(search.layers)
        for j, timestep in enumerate(search.timesteps)
        for k, pooling in enumerate(search.poolings)
        if (layer, timestep, pooling) in accuracies
    ]
    batch_size = backbone.recipe["settings"]["batch_size"]
    row = {
        "steps": backbone.recipe["steps"],
        "shown": round(backbone.recipe["steps"] * batch_size),
        "seconds": backbone.recipe["seconds"],
        "parameters": backbone.recipe["parameters"],
        "explained": " ".join(f"{share:.4f}" for share in model.share_explained_.values()),
        "cell": f"{model.layer_} t={model.timestep_} p={model.pooling_}",
        "start_acc": agreement(y, model.initial_labels_)["acc"],
        **agreement(y, model.labels_),
    }
    return row, cells


def accuracies_of(images: np.ndarray, y: np.ndarray, backbone: Any, search: Any, seed: int) -> dict[tuple, float]:
    """Return the accuracy that the partition of each cell of a search reaches, on as many images as it saw."""
    from skdiec.activations import Cell
    from skdiec.features import FeatureExtractor
    from skdiec.graph import knn_graph
    from skdiec.images import as_image_source
    from skdiec.metrics import clustering_accuracy
    from skdiec.partition import best_partition
    from skdiec.scores import balanced_cut
    from skdiec.search import reduce_features

    rows = np.sort(np.random.default_rng(seed).choice(len(images), min(search.n_images, len(images)), replace=False))
    extractor = FeatureExtractor(backbone, n_draws=1, seed=seed)
    source, cut = as_image_source(images), functools.partial(balanced_cut, n_clusters=10, balance=1.0)
    shapes = extractor.layer_shapes()
    pairs = [(layer, p) for layer in search.layers for p in search.poolings if p <= min(shapes[layer][1:])]
    found = {}
    for timestep in search.timesteps:
        features = extractor.extract(source, [Cell(layer, timestep, p) for layer, p in pairs], rows=rows)
        for cell, values in features.items():
            reduced = reduce_features(values, 128, seed=seed).transform(values)
            labels = best_partition(reduced, knn_graph(reduced, 10), 10, cut, n_init=3, seed=seed).labels
            found[cell.layer, cell.timestep, cell.pooling] = clustering_accuracy(y[rows], labels)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_run_options(parser, RUNS)
    arguments = parser.parse_args()
    results, cells = results_of(), cells_of()
    for seed in range(0 if arguments.table else arguments.seeds):
        for name, run in [(name, run) for run in SETTINGS for name in arguments.datasets if run in RUNS[name]]:
            key = {"dataset": name, "run": run, "seed": seed}
            if results.find(**key):
                continue
            settings = SETTINGS[run] | duration(results, name, run, seed)
            where = CACHE / "_".join(["architectures", name, *run.replace(",", "").split(), str(seed)])
            row, scored = in_new_process(train_and_fit, name, arguments.data, seed, settings, where)[0]
            for each in scored:
                if not cells.find(**key, **{axis: each[axis] for axis in ("layer", "timestep", "pooling")}):
                    cells.add(**key, **each)
            results.add(**key, **row, machine=machine())
    draw(cells)
    write_table("architectures", table(results, cells))


def duration(results: Results, name: str, run: str, seed: int) -> dict[str, Any]:
    """Return how long to train: so many seconds, or for as many images as the U-Net saw in them."""
    if run != SAME_IMAGES:
        return {"max_minutes": MINUTES, "epochs": 100}
    (unet,) = results.find(dataset=name, run=UNET, seed=seed)
    return {"epochs": max(1, round(int(unet["shown"]) / N_IMAGES))}


def results_of() -> Results:
    values = ("steps", "shown", "seconds", "parameters", "explained", "cell", "start_acc", "acc", "nmi", "ari")
    return Results("architectures", ("dataset", "run", "seed"), (*values, "machine"))


def cells_of() -> Results:
    key = ("dataset", "run", "seed", "layer", "timestep", "pooling")
    return Results("architectures_cells", key, ("scott", "consensus", "acc"))


def table(results: Results, cells: Results | None = None) -> list[str]:
    cells = cells or cells_of()
    header = ("data", "network", "seeds", "parameters", "seconds", "images shown", "explained at t = 50, 150, 350")
    header += ("chosen cell", "ACC of the initial partition", "ACC")
    header += ("best cell by ACC", "its ACC", "regret", "Spearman")
    lines = []
    for name, runs in RUNS.items():
        for run in runs:
            key = {"dataset": name, "run": run}
            rows = results.find(**key)
            if not rows:
                continue
            judged = [judge(cells.find(**key, seed=row["seed"]), row["cell"]) for row in rows]
            explained = np.mean([np.array(row["explained"].split(), float) for row in rows], axis=0)
            lines.append(
                (
                    NAMES[name],
                    run,
                    len(rows),
                    f"{int(rows[0]['parameters']) / 1e6:.1f} M",
                    results.mean("seconds", 0, spread=False, **key),
                    f"{np.mean([int(row['shown']) for row in rows]):,.0f}",
                    " / ".join(f"{share:.2f}" for share in explained),
                    "; ".join(row["cell"] for row in rows),
                    results.mean("start_acc", 3, **key),
                    results.mean("acc", 3, **key),
                    "; ".join(each["best"] for each in judged),
                    mean_of([each["best_acc"] for each in judged], 3),
                    mean_of([each["regret"] for each in judged], 3),
                    mean_of([each["spearman"] for each in judged], 2),
                )
            )
    return [
        *markdown_table(header, lines),
        "",
        f"{N_IMAGES:,} random images at most. Seconds of the processor, on one thread: {MINUTES:g} minutes, but for "
        f'"{SAME_IMAGES.split(", ")[1]}". Trainings: the defaults of `pretrain`, but for a learning rate of 2e-3 of '
        f"transformers. Fits: {departures(FIT)}. Best cell, regret and Spearman: of the accuracies that the partitions "
        "of single cells reach on the images of the search; regret is what the chosen cell's lacks, Spearman the "
        "correlation with the criterion.",
        *sources(results),
        "Command: `OMP_NUM_THREADS=1 python benchmarks/architectures.py`.",
    ]


def judge(rows: list[dict[str, str]], chosen: str) -> dict[str, Any]:
    """Compare the criterion with the accuracies of all cells."""
    names = [f"{row['layer']} t={row['timestep']} p={row['pooling']}" for row in rows]
    accuracies = np.array([float(row["acc"]) for row in rows])
    best = int(accuracies.argmax())
    return {
        "best": names[best],
        "best_acc": float(accuracies[best]),
        "regret": float(accuracies[best] - accuracies[names.index(chosen)]),
        "spearman": float(spearmanr([float(row["consensus"]) for row in rows], accuracies).statistic),
    }


def draw(cells: Results) -> None:
    """Draw the criterion and the accuracy over blocks and timesteps, at the pooling that is best of each."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    runs = [(name, run) for name in RUNS for run in RUNS[name] if cells.find(dataset=name, run=run)]
    if not runs:
        return
    columns = {"consensus": "criterion of the search", "acc": "ACC"}
    figure, axes = plt.subplots(len(runs), 2, figsize=(9, 2.1 * len(runs)), squeeze=False, layout="constrained")
    for line, (name, run) in zip(axes, runs, strict=True):
        rows = cells.find(dataset=name, run=run)
        layers = list(dict.fromkeys(row["layer"] for row in rows))
        timesteps = sorted({int(row["timestep"]) for row in rows})
        for axis, (column, title) in zip(line, columns.items(), strict=True):
            values = np.full((len(layers), len(timesteps)), -np.inf)
            for layer in layers:
                for timestep in timesteps:
                    found = [row for row in rows if (row["layer"], row["timestep"]) == (layer, str(timestep))]
                    pooled: dict[str, list[float]] = {}
                    for row in found:
                        pooled.setdefault(row["pooling"], []).append(float(row[column]))
                    values[layers.index(layer), timesteps.index(timestep)] = max(map(np.mean, pooled.values()))
            image = axis.imshow(values, aspect="auto", vmin=np.quantile(values, 0.1), cmap="viridis")
            down, across = np.unravel_index(values.argmax(), values.shape)
            axis.plot(across, down, "o", ms=10, mfc="none", mec="red", mew=2)
            axis.set_xticks(range(len(timesteps)), timesteps)
            axis.set_yticks(range(len(layers)), [layer.replace("transformer_blocks", "block") for layer in layers])
            axis.tick_params(labelsize=7)
            axis.set_title(f"{NAMES[name]}, {run}: {title}", fontsize=8)
            figure.colorbar(image, ax=axis)
    for axis in axes[-1]:
        axis.set_xlabel("timestep")
    figure.savefig(FIGURE, dpi=90)
    plt.close(figure)


if __name__ == "__main__":
    main()
