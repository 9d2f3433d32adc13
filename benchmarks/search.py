"""Compare the halving search with the grid: what do they cost, and what does the clustering lose?

Both search the same space with the same seeds: 20 timesteps, all blocks, three poolings and four noise draws, on 2,000
images. Then each fit goes on from what its search chose, on at most 10,000 images. Labels evaluate alone. A run
that was stopped goes on where it was.

    python benchmarks/search.py --data FOLDER --datasets digits usps
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from accuracy import NAMES
from common import (
    BACKBONES,
    N_IMAGES,
    Results,
    add_run_options,
    agreement,
    in_new_process,
    machine,
    markdown_table,
    random_images,
    sources,
    write_table,
)

SPACE: dict[str, Any] = {
    "timestep": (5, 10, 15, 20, 25, 35, 50, 65, 80, 100, 120, 140, 160, 180, 200, 230, 260, 300, 350, 400),
    "pooling": (1, 2, 4),
    "search_draws": 4,
}
STRATEGIES = ("grid", "halving")


def fit_both(name: str, folder: Path | None, seed: int) -> dict[str, dict[str, Any]]:
    """Fit with each strategy; say what its search cost and found, and how the grid scores it."""
    from skdiec import DiffusionEmbeddedClustering

    images, y = random_images(name, folder, seed)
    found = {}
    for strategy in STRATEGIES:
        model = DiffusionEmbeddedClustering(
            10, backbone=BACKBONES / name, search=strategy, random_state=seed, **SPACE
        ).fit(images)
        search = model.search_result_
        if strategy == "grid":
            scores = search.scores[search.criterion]
        position = (
            search.layers.index(search.best.layer),
            search.timesteps.index(search.best.timestep),
            search.poolings.index(search.best.pooling),
        )
        found[strategy] = {
            **agreement(y, model.labels_),
            "evaluations": search.n_evaluations,
            "passes": search.n_forward,
            "seconds": search.seconds,
            "others_seconds": sum(model.fit_seconds_.values()) - model.fit_seconds_["search"],
            "regret": float(1 - scores[position] / np.nanmax(scores)),
            "cell": f"{search.best.layer} t={search.best.timestep} p={search.best.pooling}",
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_run_options(parser, NAMES)
    arguments = parser.parse_args()
    results = results_of()
    for name in () if arguments.table else arguments.datasets:
        for seed in range(arguments.seeds):
            if not results.find(dataset=name, seed=seed):
                found = in_new_process(fit_both, name, arguments.data, seed)[0]
                for strategy, row in found.items():
                    results.add(dataset=name, seed=seed, strategy=strategy, images=N_IMAGES, machine=machine(), **row)
    write_table("search", table(results))


def results_of() -> Results:
    values = ("images", "acc", "nmi", "ari", "evaluations", "passes", "seconds", "others_seconds", "regret", "cell")
    return Results("search", ("dataset", "seed", "strategy"), (*values, "machine"))


def table(results: Results) -> list[str]:
    header = ("data", "search", "seeds", "evaluations", "search s", "rest of the fit s", "regret", "ACC", "cells")
    rows = []
    for name in NAMES:
        for strategy in STRATEGIES:
            key = {"dataset": name, "strategy": strategy}
            found = results.find(**key)
            if found:
                figures = [
                    results.mean(c, 0, spread=False, **key) for c in ("evaluations", "seconds", "others_seconds")
                ]
                regret = results.mean("regret", 3, spread=False, **key)
                cells = "; ".join(row["cell"] for row in found)
                rows.append((NAMES[name], strategy, len(found), *figures, regret, results.mean("acc", **key), cells))
    lines = [*markdown_table(header, rows), ""]
    for name in NAMES:
        if results.find(dataset=name):
            ratios = [ratio(results, name, column) for column in ("evaluations", "seconds")]
            lines.append(
                f"- {NAMES[name]}: the grid takes {ratios[0]:.1f} times the evaluations and {ratios[1]:.1f} the time."
            )
    return [
        *lines,
        "",
        f"{len(SPACE['timestep'])} timesteps x all blocks x poolings {', '.join(map(str, SPACE['pooling']))}, "
        f"{SPACE['search_draws']} noise draws, 2,000 images (digits: 1,797); fits on at most {N_IMAGES:,} images. "
        "Evaluations: images x draws x the share of the network's multiplications that a pass takes. Regret: what the "
        "chosen cell's criterion lacks to the grid's highest, as a share of it, both on the grid's images and draws.",
        *sources(results),
        "Command: `python benchmarks/search.py`.",
    ]


def ratio(results: Results, name: str, column: str) -> float:
    """Return how many times the halving's mean the grid's is, over the seeds that one machine ran both for."""
    grid, halving = (
        {(row["seed"], row["machine"]): float(row[column]) for row in results.find(dataset=name, strategy=strategy)}
        for strategy in STRATEGIES
    )
    both = grid.keys() & halving.keys()
    return float(np.mean([grid[key] for key in both]) / np.mean([halving[key] for key in both]))


if __name__ == "__main__":
    main()
