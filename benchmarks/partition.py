"""Compare the initial partitions that a fit chooses from: the lowest cut, and merges of finer partitions.

Features of one representation of the committed backbones, or pixels; classes of like and of unlike sizes. Labels
evaluate alone. A run that was stopped goes on where it was.

    python benchmarks/partition.py --data FOLDER --seeds 3
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from common import (
    BACKBONES,
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

MAX_IMAGES = 5_000
CELLS = {
    "digits": ("mid_block", 10, 4),
    "usps": ("mid_block", 100, 4),
    "mnist": ("mid_block", 150, 4),
    "fashion_mnist": ("mid_block", 150, 4),
}
CASES: dict[str, tuple[str, bool, float]] = {
    **{f"{name}, 1 : {ratio}": (name, True, ratio) for name in CELLS for ratio in (1, 10, 50, 100)},
    **{f"pixels of {name}": (name, False, 1) for name in (*CELLS, "umist", "palm", "signs")},
}
"""Data set, whether its features are a backbone's, and the ratio of the smallest class to the largest one."""


def rows_of(labels: np.ndarray, ratio: float, seed: int) -> np.ndarray:
    """Draw images at random; of classes whose sizes fall geometrically where the ratio is not 1."""
    rng = np.random.default_rng(seed)
    if ratio == 1:
        return np.sort(rng.permutation(len(labels))[:MAX_IMAGES])
    classes = rng.permutation(np.unique(labels))
    members = [rng.permutation(np.flatnonzero(labels == one)) for one in classes]
    shares = ratio ** -np.linspace(0, 1, len(classes))
    largest = min(700, *(len(rows) / share for rows, share in zip(members, shares, strict=True)))
    sizes = np.round(largest * shares).astype(int)
    return np.sort(np.concatenate([rows[:size] for rows, size in zip(members, sizes, strict=True)]))


def features_of(name: str, images: np.ndarray) -> np.ndarray:
    from skdiec import load_backbone
    from skdiec.activations import Cell
    from skdiec.features import FeatureExtractor
    from skdiec.images import as_image_source

    cell = Cell(*CELLS[name])
    extractor = FeatureExtractor(load_backbone(BACKBONES / name), n_draws=3)
    return extractor.extract(as_image_source(images), [cell])[cell]


def partitions(name: str, has_backbone: bool, ratio: float, folder: Path | None, seed: int) -> dict[str, Any]:
    from skdiec import DiffusionEmbeddedClustering
    from skdiec.graph import knn_graph, spectral_embedding
    from skdiec.partition import ensemble_partition, initial_partition, kmeans_labels, merged_partition, strongest_link
    from skdiec.scores import balanced_cut
    from skdiec.search import principal_components

    data = load_dataset(name, folder)
    rows = rows_of(data.labels, ratio, seed)
    images, y = data.images[rows], data.labels[rows]
    k = len(np.unique(y))
    default = DiffusionEmbeddedClustering(k)
    features = features_of(name, images) if has_backbone else images.reshape(len(images), -1).astype(np.float32) / 255
    mean, components, _ = principal_components(features, default.n_components, seed=seed)
    reduced = (features - mean) @ components.T
    graph = knn_graph(reduced, default.n_neighbors)
    cut = partial(balanced_cut, n_clusters=k, balance=default.gamma)
    lowest = ensemble_partition(reduced, graph, k, cut, n_init=default.n_init, seed=seed)
    chosen = initial_partition(reduced, graph, k, cut, n_init=default.n_init, seed=seed)
    vectors = spectral_embedding(graph, k + max(2, round(0.6 * k)), seed=seed)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    found = {
        "images": len(y),
        "lowest_cut": agreement(y, lowest.labels)["acc"],
        "link": strongest_link(graph, lowest.labels),
        "chosen": agreement(y, chosen.labels)["acc"],
        "source": chosen.source,
        "stability": chosen.stability,
    }
    for factor in (2, 4, 8):
        fine = kmeans_labels(vectors, min(factor * k, len(y) // 5), seed=seed)
        found[f"merged_{factor}"] = agreement(y, merged_partition(graph, fine, k))["acc"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_run_options(parser, CASES)
    parser.set_defaults(seeds=3)
    arguments = parser.parse_args()
    results = results_of()
    for case in () if arguments.table else arguments.datasets:
        for seed in range(arguments.seeds):
            if not results.find(case=case, seed=seed):
                row, _, _ = in_new_process(partitions, *CASES[case], arguments.data, seed)
                results.add(case=case, seed=seed, **row, machine=machine())
    write_table("partition", table(results))


def results_of() -> Results:
    values = ("images", "lowest_cut", "link", "merged_2", "merged_4", "merged_8", "chosen", "source", "stability")
    return Results("partition", ("case", "seed"), (*values, "machine"))


def table(results: Results) -> list[str]:
    header = ("data", "images", "seeds", "lowest cut", "its link", "2 K", "4 K", "8 K", "chosen", "merged", "stability")
    rows = []
    for case in CASES:
        found = results.find(case=case)
        if found:
            columns = ("lowest_cut", "link", "merged_2", "merged_4", "merged_8", "chosen", "stability")
            means = [results.mean(column, 3, spread=column == "chosen", case=case) for column in columns]
            merged = f"{sum(row['source'] == 'merged' for row in found)} of {len(found)}"
            rows.append((case, f"{int(found[0]['images']):,}", len(found), *means[:6], merged, means[6]))
    return [
        *markdown_table(header, rows),
        "",
        f"ACC of initial partitions, before any training. At most {MAX_IMAGES:,} images; of unlike sizes, the largest "
        "class has up to 700. 2 K, 4 K and 8 K: one partition into so many times as many clusters, merged. Link: the "
        "strongest one between two clusters of the lowest cut.",
        *sources(results),
        "Command: `python benchmarks/partition.py`.",
    ]


if __name__ == "__main__":
    main()
