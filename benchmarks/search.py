"""Compare the halving search with the grid: what do they cost, and what does the clustering lose?

Both search the same space with the same seeds: 20 timesteps, all blocks, three poolings and four noise draws, on 2,000
images of at most 10,000. Then every cell that one of them chose is fitted on the images of every seed: on those of the
search's own seed, as its fit would go on, and on the others, which tell a better cell from a luckier start. Labels
evaluate alone. A run that was stopped goes on where it was.

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
    mean_of,
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


def search_both(name: str, folder: Path | None, seed: int) -> dict[str, dict[str, Any]]:
    """Search with each strategy; say what it cost and found, and how the grid scores that."""
    from skdiec import DiffusionEmbeddedClustering

    images, _ = random_images(name, folder, seed)
    shortest = {"n_draws": 1, "init": "k-means++", "head": None}  # what follows a search is measured by `fit_cell`
    found = {}
    for strategy in STRATEGIES:
        model = DiffusionEmbeddedClustering(
            10, backbone=BACKBONES / name, search=strategy, random_state=seed, **SPACE, **shortest
        ).fit(images)
        search = model.search_result_
        if strategy == "grid":
            scores = search.scores[search.criterion]
        found[strategy] = {
            "evaluations": search.n_evaluations,
            "passes": search.n_forward,
            "seconds": search.seconds,
            "regret": float(1 - scores[search.position(search.best)] / np.nanmax(scores)),
            "cell": f"{search.best.layer} t={search.best.timestep} p={search.best.pooling}",
        }
    return found


def fit_cell(name: str, folder: Path | None, cell: str, seed: int) -> dict[str, float]:
    """Fit at a cell, on the images and with the random state of a seed: what follows the search that chose it."""
    from skdiec import DiffusionEmbeddedClustering

    images, y = random_images(name, folder, seed)
    layer, timestep, pooling = cell.split()
    chosen = {"layer": layer, "timestep": int(timestep[2:]), "pooling": int(pooling[2:])}
    model = DiffusionEmbeddedClustering(10, backbone=BACKBONES / name, random_state=seed, **chosen).fit(images)
    stages = model.fit_seconds_
    return {**agreement(y, model.labels_), "seconds": sum(stages.values()) - stages["search"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_run_options(parser, NAMES)
    arguments = parser.parse_args()
    results, fits = results_of(), fits_of()
    for name in () if arguments.table else arguments.datasets:
        seeds = range(arguments.seeds)
        for seed in seeds:
            if not results.find(dataset=name, seed=seed):
                found = in_new_process(search_both, name, arguments.data, seed)[0]
                for strategy, row in found.items():
                    results.add(dataset=name, seed=seed, strategy=strategy, machine=machine(), **row)
        for cell in dict.fromkeys(row["cell"] for row in results.find(dataset=name)):
            for seed in seeds:
                if not fits.find(dataset=name, cell=cell, seed=seed):
                    row = in_new_process(fit_cell, name, arguments.data, cell, seed)[0]
                    fits.add(dataset=name, cell=cell, seed=seed, machine=machine(), **row)
    write_table("search", table(results, fits))


def results_of() -> Results:
    values = ("evaluations", "passes", "seconds", "regret", "cell", "machine")
    return Results("search", ("dataset", "seed", "strategy"), values)


def fits_of() -> Results:
    return Results("search_fits", ("dataset", "cell", "seed"), ("acc", "nmi", "ari", "seconds", "machine"))


def table(results: Results, fits: Results | None = None) -> list[str]:
    fits = fits or fits_of()
    header = ("data", "search", "seeds", "evaluations", "search s", "rest of the fit s", "regret", "ACC")
    rows = []
    for name in NAMES:
        for strategy in STRATEGIES:
            key = {"dataset": name, "strategy": strategy}
            found = results.find(**key)
            if found:
                own = [fit for row in found for fit in fits.find(dataset=name, cell=row["cell"], seed=row["seed"])]
                of_cells = [fits.find(dataset=name, cell=row["cell"]) for row in found]
                rows.append(
                    (
                        NAMES[name],
                        strategy,
                        len(found),
                        results.mean("evaluations", 0, spread=False, **key),
                        results.mean("seconds", 0, spread=False, **key),
                        mean_of([float(row["seconds"]) for row in own], 0, spread=False),
                        results.mean("regret", 3, spread=False, **key),
                        mean_of([float(row["acc"]) for row in own]),
                        mean_of([np.mean([float(row["acc"]) for row in each]) for each in of_cells if each]),
                        "; ".join(row["cell"] for row in found),
                    )
                )
    lines = [*markdown_table((*header, "ACC of its cells", "cells"), rows), ""]
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
        "chosen cell's criterion lacks to the grid's highest, as a share of it, both on the grid's images and draws. "
        "ACC: of the fit on the search's own images. ACC of its cells: each cell's mean over fits on the images, and "
        "with the random states, of all seeds.",
        "Searches. " + sources(results)[0],
        "Fits. " + sources(fits)[0],
        "Command: `python benchmarks/search.py`.",
    ]


def ratio(results: Results, name: str, column: str) -> float:
    """Return how many times the halving's mean the grid's is."""
    grid, halving = (
        np.mean([float(row[column]) for row in results.find(dataset=name, strategy=strategy)])
        for strategy in STRATEGIES
    )
    return float(grid / halving)


if __name__ == "__main__":
    main()
