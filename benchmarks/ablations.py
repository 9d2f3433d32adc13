"""Change one setting at a time: what does each part of the method do to the accuracy?

All rows of a data set and seed share the backbone, at most 10,000 images and, but for those on pooling and noise draws,
the searched cell and its features. The rows that train the backbone stop after few epochs. A run that was stopped goes
on where it was.

    python benchmarks/ablations.py --data FOLDER --datasets usps --seeds 3
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from accuracy import NAMES
from common import (
    BACKBONES,
    Results,
    add_run_options,
    agreement,
    departures,
    in_new_process,
    listed,
    machine,
    markdown_table,
    random_images,
    sources,
    write_table,
)

BASE = {"n_draws": 2, "shift": 0}
"""What all variants have unless they say otherwise; two passes instead of five keep the dual branch affordable."""

SHORT = {"max_epochs": 5, "warmup_epochs": 1, "batch_size": 128}
"""What the variants of the branch share; training a backbone for as long as a head would take hours."""

BRANCH = {**SHORT, "train_backbone": True}
GROUPS: dict[str, dict[str, dict[str, Any]]] = {
    "start": {
        "base": {},
        'init="k-means++"': {"init": "k-means++"},
        "head=None": {"head": None},
        "warmup_epochs=0": {"warmup_epochs": 0},
    },
    "loss": {
        "alpha=0": {"alpha": 0.0},
        "alpha=0.1": {"alpha": 0.1},
        "alpha=10": {"alpha": 10.0},
        "beta=0": {"beta": 0.0},
        "beta=0.3": {"beta": 0.3},
        "beta=30": {"beta": 30.0},
        "gamma=0": {"gamma": 0.0},
        "gamma=0.1": {"gamma": 0.1},
        "gamma=10": {"gamma": 10.0},
    },
    "representation": {
        "pooling=1": {"pooling": 1},
        "pooling=2": {"pooling": 2},
        "pooling=4": {"pooling": 4},
        "n_draws=1": {"n_draws": 1},
        "n_draws=4": {"n_draws": 4},
        "n_draws=8": {"n_draws": 8},
        "n_draws=5, shift=1": {"n_draws": 5, "shift": 1},
        "n_draws=5, shift=2": {"n_draws": 5, "shift": 2},
        "n_draws=9, shift=1": {"n_draws": 9, "shift": 1},
    },
    "branch": {
        "frozen, 5 epochs": SHORT,
        "dual branch, 5 epochs": BRANCH,
        "dual branch without L_Re": {**BRANCH, "denoising_weight": 0.0},
        'head="direct"': {**BRANCH, "head": "direct"},
        'head="direct" without L_Re': {**BRANCH, "head": "direct", "denoising_weight": 0.0},
    },
}


def choose(name: str, folder: Path | None, seed: int, memory: str) -> dict[str, Any]:
    """Search the cell that the variants of a seed share."""
    model, _ = fitted(name, folder, seed, memory, {"head": None})
    return {"layer": model.layer_, "timestep": model.timestep_, "pooling": model.pooling_}


def fit(name: str, folder: Path | None, seed: int, memory: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Fit one variant."""
    model, y = fitted(name, folder, seed, memory, settings)
    drift = model.history_["denoising"]
    return {
        **agreement(y, model.labels_),
        "images": len(y),
        "start_acc": agreement(y, model.initial_labels_)["acc"],
        "seconds": model.fit_seconds_["training"],
        "epochs": model.n_iter_,
        "drift": " ".join(f"{value:.5g}" for value in drift / drift[0]) if drift[0] > 0 else "",
    }


def fitted(name: str, folder: Path | None, seed: int, memory: str, settings: dict[str, Any]) -> tuple[Any, np.ndarray]:
    """Return the estimator, fitted on some random images, and their labels."""
    from skdiec import DiffusionEmbeddedClustering

    images, y = random_images(name, folder, seed)
    shared = {"backbone": BACKBONES / name, "random_state": seed, "memory": memory}
    model = DiffusionEmbeddedClustering(10, **{**shared, **BASE, **settings}).fit(images)
    return model, y


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_run_options(parser, NAMES)
    parser.add_argument("--groups", nargs="+", choices=list(GROUPS), default=list(GROUPS), metavar="GROUP")
    arguments = parser.parse_args()
    results = results_of()
    for name in () if arguments.table else arguments.datasets:
        for seed in range(arguments.seeds):
            missing = [
                (group, variant)
                for group in arguments.groups
                for variant in GROUPS[group]
                if not results.find(dataset=name, seed=seed, variant=variant)
            ]
            with tempfile.TemporaryDirectory() as memory:
                shared = (name, arguments.data, seed, memory)
                cell = in_new_process(choose, *shared)[0] if missing else {}
                for group, variant in missing:
                    row, _, _ = in_new_process(fit, *shared, {**cell, **GROUPS[group][variant]})
                    results.add(dataset=name, seed=seed, variant=variant, group=group, **row, machine=machine())
    write_table("ablations", table(results))


def results_of() -> Results:
    values = ("group", "images", "acc", "nmi", "ari", "start_acc", "seconds", "epochs", "drift", "machine")
    return Results("ablations", ("dataset", "seed", "variant"), values)


def table(results: Results) -> list[str]:
    lines: list[str] = []
    for name in NAMES:
        rows = []
        for group in GROUPS.values():
            for variant in group:
                found = {"dataset": name, "variant": variant}
                if results.find(**found):
                    scores = [results.mean(column, **found) for column in ("start_acc", "acc", "nmi", "ari")]
                    seconds = results.mean("seconds", 0, spread=False, **found)
                    drift = last_drift(results.find(**found))
                    rows.append((variant, len(results.find(**found)), *scores, seconds, drift))
        if rows:
            scores = ("ACC of the initial partition", "ACC", "NMI", "ARI")
            images = int(results.find(dataset=name)[0]["images"])
            header = (f"{NAMES[name]}, {images:,} images", "seeds", *scores, "training s", "denoising loss")
            lines += [*markdown_table(header, rows), ""]
    lines += [
        f"Base: {departures(BASE)}. The last five rows share {listed(SHORT)}; only the first of their epochs is "
        "warm-up. Denoising loss: after training, as a multiple of that before.",
    ]
    return [*lines, *sources(results), "Command: `python benchmarks/ablations.py`."]


def last_drift(rows: list[dict[str, str]]) -> str:
    """Return the mean of the denoising loss's last value, as a multiple of the first, or a dash."""
    last = [float(row["drift"].split()[-1]) for row in rows if row["drift"]]
    return f"{sum(last) / len(last):.2f}" if last else "-"


if __name__ == "__main__":
    main()
