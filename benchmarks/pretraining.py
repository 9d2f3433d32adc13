"""Measure what pretraining costs and brings: accuracy against seconds, and what makes it cheaper.

Each row trains a backbone from nothing, kept in `benchmarks/cache/`, and clusters with it; pretraining and clustering
take one random state, and all defaults but what the row names. A run that was stopped goes on where it was.

    python benchmarks/pretraining.py --data FOLDER --datasets usps --seeds 1
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from accuracy import NAMES
from accuracy import results_of as accuracy_of
from common import (
    CACHE,
    Results,
    add_run_options,
    agreement,
    in_new_process,
    machine,
    markdown_table,
    sources,
    write_table,
)

from skdiec.datasets import load_dataset

CURVE = {"usps": (1, 2, 4, 6, 9), "mnist": (8,), "cifar10": (1, 2, 4, 8)}
"""Epochs of the price curve; 9 of USPS and 8 of the others are the default."""

RECIPES: dict[str, dict[str, Any]] = {
    "all 1,000 timesteps": {"max_timestep": 999, "epochs": 4},
    "timesteps to 200": {"max_timestep": 200, "epochs": 4},
    "steps of 64 images at 2e-3": {"batch_size": 64, "learning_rate": 2e-3, "epochs": 4},
    "no space-to-depth": {"patch_size": 1, "epochs": 3},
    "half as wide": {"channels": (32, 64), "epochs": 8},
    "no moving average": {"ema_decay": 0.0, "epochs": 4},
}
"""Departures from the defaults on USPS, with as many epochs as take about as long as 4 of the defaults'."""

BESIDE = ("UMAP + KMeans", "ClustPy IDEC")
"""What `benchmarks/accuracy.py` measured of others, for comparison."""


def train_and_fit(name: str, folder: Path | None, seed: int, settings: dict[str, Any], where: Path) -> dict[str, Any]:
    from skdiec import DiffusionEmbeddedClustering, pretrain

    images = load_dataset(name, folder).images
    backbone = pretrain(images, where, random_state=seed, **settings)
    model = DiffusionEmbeddedClustering(10, backbone=backbone, random_state=seed).fit(images)
    return {
        "labels": model.labels_,
        "initial": model.initial_labels_,
        "pretrain_seconds": backbone.recipe["seconds"],
        "fit_seconds": sum(model.fit_seconds_.values()),
        "loss": backbone.recipe["loss"][-1],
        "parameters": backbone.recipe["parameters"],
        "cell": f"{model.layer_} t={model.timestep_} p={model.pooling_}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_run_options(parser, CURVE)
    parser.add_argument("--recipes", action="store_true", help="also the departures from the defaults, on USPS")
    parser.add_argument("--epochs", type=int, nargs="+", help="points of the price curve")
    arguments = parser.parse_args()
    results = results_of()
    for name in () if arguments.table else arguments.datasets:
        y = load_dataset(name, arguments.data).labels
        runs = [("defaults", {"epochs": epochs}) for epochs in arguments.epochs or CURVE[name]]
        runs += RECIPES.items() if arguments.recipes and name == "usps" else ()
        for seed in range(arguments.seeds):
            for recipe, settings in runs:
                key = {"dataset": name, "recipe": recipe, "epochs": settings["epochs"], "seed": seed}
                if results.find(**key):
                    continue
                where = CACHE / "_".join(["backbone", name, *recipe.split(), str(settings["epochs"]), str(seed)])
                row, _, _ = in_new_process(train_and_fit, name, arguments.data, seed, settings, where)
                start = agreement(y, row.pop("initial"))["acc"]
                results.add(**key, **agreement(y, row.pop("labels")), start_acc=start, **row, machine=machine())
    write_table("pretraining", table(results))


def results_of() -> Results:
    values = ("acc", "nmi", "ari", "start_acc", "pretrain_seconds", "fit_seconds", "loss", "parameters", "cell")
    return Results("pretraining", ("dataset", "recipe", "epochs", "seed"), (*values, "machine"))


def table(results: Results) -> list[str]:
    header = ("data", "recipe", "epochs", "seeds", "pretraining s", "clustering s", "ACC", "NMI", "ARI")
    lines = []
    for name in CURVE:
        groups = dict.fromkeys((row["recipe"], int(row["epochs"])) for row in results.find(dataset=name))
        for recipe, epochs in sorted(groups, key=lambda group: (group[0] != "defaults", group)):
            of = {"dataset": name, "recipe": recipe, "epochs": epochs}
            lines.append(line(results, (NAMES[name], recipe, epochs), ("pretrain_seconds", "fit_seconds"), **of))
        others = accuracy_of(name)
        for method in BESIDE if groups else ():
            if others.find(method=method):
                lines.append(line(others, (NAMES[name], method, "-"), ("pretrain_seconds", "seconds"), method=method))
    return [
        *markdown_table(header, lines),
        "",
        "Rows of others are those of `benchmarks/accuracy.py`; pretraining of IDEC is that of its autoencoder.",
        *sources(results),
        "Command: `python benchmarks/pretraining.py --recipes`.",
    ]


def line(results: Results, begin: tuple, seconds: tuple[str, str], **of: object) -> tuple:
    """Return a row of the table."""
    times = [results.mean(column, 0, spread=False, **of) for column in seconds]
    scores = [results.mean(column, **of) for column in ("acc", "nmi", "ari")]
    return (*begin, len(results.find(**of)), *times, *scores)


if __name__ == "__main__":
    main()
