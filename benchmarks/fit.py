"""Say where the time of a fit goes, how it grows with the number of images, and how much memory it takes.

The fit is compared with what its forward passes alone cost: those that search and features need, each up to the
deepest layer that is wanted, at the speed of the bare network in the same process. Every fit has a process of its own,
and seed 0; the shortest one is repeated. A run that was stopped goes on where it was. The environment says how many
threads there are:

    OMP_NUM_THREADS=2 python benchmarks/fit.py --data FOLDER
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from accuracy import NAMES, STAGES
from common import (
    BACKBONES,
    Results,
    bare_pass,
    in_new_process,
    machine,
    markdown_table,
    mean_of,
    seconds,
    sources,
    write_table,
)

from skdiec.activations import Cell
from skdiec.datasets import FOLDER_VARIABLE, load_dataset
from skdiec.features import suited_batch_size

SIZES = {"usps": (9_298,), "mnist": (10_000, 30_000, 70_000)}
REPEATS = {"usps": 5, "mnist": 1}
_ROUNDS = 50


def fit(name: str, folder: Path | None, count: int) -> dict[str, float]:
    """Fit on some images; return the seconds of each stage and those of the forward passes alone."""
    from skdiec import DiffusionEmbeddedClustering

    images = load_dataset(name, folder).images
    rows = np.sort(np.random.default_rng(0).permutation(len(images))[:count])
    model = DiffusionEmbeddedClustering(10, backbone=BACKBONES / name, search="halving", random_state=0).fit(
        images[rows]
    )
    backbone = model.backbone_
    batch_size = suited_batch_size(backbone)

    def bare(layer: str) -> float:
        """Return the seconds of an image's pass up to a layer, the median of several."""
        run = bare_pass(backbone, layer, model.timestep_, batch_size)
        return float(np.median([seconds(run) for _ in range(_ROUNDS)])) / batch_size

    def deepest(cells: Sequence[Cell]) -> str:
        return max((cell.layer for cell in cells), key=model.layers_.index)

    extracted = count * model.n_draws
    forward = extracted * bare(model.layer_)
    forward += sum(stage.n_forward * bare(deepest(stage.cells)) for stage in model.search_result_.stages)
    return {**model.fit_seconds_, "passes": model.search_result_.n_forward + extracted, "forward": forward}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--datasets", nargs="+", choices=list(SIZES), default=list(SIZES), metavar="NAME")
    parser.add_argument("--data", type=Path, help=f"folder with the data (default: {FOLDER_VARIABLE}, or download)")
    parser.add_argument("--table", action="store_true", help="only write the table of what was measured")
    arguments = parser.parse_args()
    results, threads = results_of(), torch.get_num_threads()
    for name in () if arguments.table else arguments.datasets:
        for count in SIZES[name]:
            for repeat in range(REPEATS[name]):
                key = {"dataset": name, "images": count, "threads": threads, "repeat": repeat}
                if not results.find(**key):
                    row, _, peak = in_new_process(fit, name, arguments.data, count)
                    results.add(**key, **row, peak_gb=peak, machine=machine())
    write_table("fit", table(results))


def results_of() -> Results:
    key = ("dataset", "images", "threads", "repeat")
    return Results("fit", key, (*STAGES, "passes", "forward", "peak_gb", "machine"))


def total(row: dict[str, str]) -> float:
    return sum(float(row[stage]) for stage in STAGES)


def table(results: Results) -> list[str]:
    stages = STAGES[1:]
    columns = [f"{stage} s" for stage in stages]
    header = ("data", "images", "threads", "fits", *columns, "fit s", "forward passes s", "ratio", "peak GB")
    lines = []
    for name, count, threads in dict.fromkeys((row["dataset"], row["images"], row["threads"]) for row in results.rows):
        key = {"dataset": name, "images": count, "threads": threads}
        rows = results.find(**key)
        figures = [results.mean(stage, 1, spread=False, **key) for stage in stages]
        figures.append(mean_of([total(row) for row in rows], 1, spread=False))
        figures.append(results.mean("forward", 1, spread=False, **key))
        figures.append(mean_of([total(row) / float(row["forward"]) for row in rows], 2))
        figures.append(results.mean("peak_gb", 1, spread=False, **key))
        lines.append((NAMES[name], f"{int(count):,}", threads, len(rows), *figures))
    growth = []
    for name, threads in dict.fromkeys((row["dataset"], row["threads"]) for row in results.rows):
        rows = sorted(results.find(dataset=name, threads=threads), key=lambda row: int(row["images"]))
        first, last = rows[0], rows[-1]
        if first["images"] != last["images"]:
            exponent = np.log(total(last) / total(first)) / np.log(int(last["images"]) / int(first["images"]))
            growth.append(
                f"{NAMES[name]}, threads {threads}: from {int(first['images']):,} to {int(last['images']):,} images, "
                f"time grows as their number to the power of {exponent:.2f}."
            )
    return [
        *markdown_table(header, lines),
        "",
        *growth,
        'Fits with search="halving". Ratio: the whole fit, over the forward passes that search and features need, at '
        "the bare network's speed; they end at the deepest layer of a stage of the search, those of features at the "
        "chosen one.",
        *sources(results),
        "Command: `python benchmarks/fit.py`.",
    ]


if __name__ == "__main__":
    main()
