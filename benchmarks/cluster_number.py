"""Compare what n_clusters="auto" says with the true number of classes, and with what other methods say.

The sets are those of `robustness.py`, and with --draws also draws of some of their classes. The others see the same
features, those of the representation that the fit has chosen. They are HDBSCAN (scikit-learn's, with a
min_cluster_size of a 200th of the images, at least 5), the highest silhouette of k-means, and the eigengap, both over
the same candidates. Labels serve for the true number alone.

    python benchmarks/cluster_number.py --data FOLDER --fonts /usr/share/fonts --work FOLDER
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from common import Results, add_run_options, machine, markdown_table, sources, write_table
from robustness import CASES, load, memory_of

from skdiec import DiffusionEmbeddedClustering, pretrain
from skdiec.cluster_number import MAX_IMAGES, candidate_numbers
from skdiec.graph import knn_graph, leading_eigenpairs
from skdiec.images import as_image_source, distinct_rows
from skdiec.partition import kmeans_labels

COMMITTED = {"digits": "digits", "USPS": "usps", "MNIST": "mnist", "Fashion-MNIST": "fashion_mnist"}
DRAWS = {
    "digits": (3, 5, 8),
    "USPS": (3, 5, 8),
    "MNIST, 2,000": (3, 5, 8),
    "Fashion-MNIST, 2,000": (3, 5, 8),
    "UMIST": (6, 12),
    "palms": (10, 25, 50),
}
"""Numbers of classes that are drawn of a set."""


def hdbscan(h: np.ndarray) -> int:
    from sklearn.cluster import HDBSCAN

    labels = HDBSCAN(min_cluster_size=max(5, len(h) // 200), copy=True).fit_predict(h)
    return len(set(labels.tolist()) - {-1})


def silhouette(h: np.ndarray) -> int:
    from sklearn.metrics import silhouette_score

    candidates = candidate_numbers(len(h))
    return int(max(candidates, key=lambda k: silhouette_score(h, kmeans_labels(h, int(k), n_init=3, seed=0))))


def eigengap(h: np.ndarray) -> int:
    candidates = candidate_numbers(len(h))
    values = leading_eigenpairs(knn_graph(h, 10), int(candidates[-1]) + 1)[0]
    return int(np.argmax(-np.diff(values)[1:])) + 2


OTHERS = {"HDBSCAN": hdbscan, "silhouette": silhouette, "eigengap": eigengap}


def representation(model: DiffusionEmbeddedClustering, images: np.ndarray, seed: int) -> np.ndarray:
    """Return the chosen features of up to 2,000 different images, projected as the fit has done."""
    source = as_image_source(images)
    rows = distinct_rows(source, np.random.default_rng(seed).permutation(len(source))[:MAX_IMAGES])
    features = model._extractors[0].extract(source, [model._cell], rows=rows)[model._cell]
    return model._model.projection.project(np.asarray(features))


def backbone_of(case: str, images: np.ndarray, folder: Path) -> Path:
    """Return the committed backbone, that of a fit of `robustness.py --work`, or one that is trained here."""
    committed = next((name for start, name in COMMITTED.items() if case.startswith(start)), None)
    if committed is not None:
        return Path(__file__).parent / "backbones" / committed
    backbones = memory_of(folder, case, 0) / "skdiec-backbones"
    finished = sorted(backbones.glob("*/model_index.json"))
    if finished:
        return finished[0].parent
    pretrain(images, backbones / "alone", random_state=1)
    return backbones / "alone"


def measure(case: str, n_classes: int, seed: int, options: argparse.Namespace) -> dict[str, object]:
    images, labels, _ = load(case, options.data, options.fonts)
    backbone = backbone_of(case, images, options.work)
    if n_classes:
        drawn = np.random.default_rng((seed, n_classes)).permutation(np.unique(labels))[:n_classes]
        rows = np.flatnonzero(np.isin(labels, drawn))
        images, labels = images[rows], labels[rows]
    fits, seconds = {}, {}
    for n_clusters in ("auto", len(np.unique(labels))):
        model = DiffusionEmbeddedClustering(
            n_clusters, backbone=backbone, search="halving", random_state=seed, n_jobs=1
        )
        started = time.perf_counter()
        fits[n_clusters], seconds[n_clusters] = model.fit(images), time.perf_counter() - started
    model = fits["auto"]
    h = representation(model, images, seed)
    return {
        "images": len(images),
        "true": 1 if case == "noise" else len(np.unique(labels)),
        "auto": model.n_clusters_,
        **{name: function(h) for name, function in OTHERS.items()},
        "cut_over_noise": round(model.cut_over_noise_, 3),
        "cost": round(seconds["auto"] / seconds[len(np.unique(labels))], 2),
    }


def is_right(row: dict[str, str], method: str) -> bool:
    """Whether a number is within 20 % of that of the classes."""
    return abs(int(row[method]) - int(row["true"])) <= 0.2 * int(row["true"])


def table(results: Results) -> list[str]:
    methods = ("auto", *OTHERS)
    rows = [row for case in CASES for row in results.find(case=case)]
    body = [
        [
            row["case"] + (f", {row['drawn']} classes drawn" if row["drawn"] != "0" else ""),
            row["images"],
            row["true"] if row["case"] != "noise" else "none",
            *(f"**{row[method]}**" if is_right(row, method) else row[method] for method in methods),
            row["cut_over_noise"],
            row["cost"],
        ]
        for row in rows
    ]
    counted = [row for row in rows if row["case"] != "noise"]
    right = [f"{sum(is_right(row, method) for row in counted)} of {len(counted)}" for method in methods]
    header = ["set", "images", "classes", *methods, "`cut_over_noise_`", "time"]
    lines = markdown_table(header, [*body, ["within 20 %", "", "", *right, "", ""]])
    said = (
        'Bold: within 20 % of the number of classes. Time: of a fit with `n_clusters="auto"`, over that of one with '
        "the number given, backbone given, one thread, on a machine that had other work. The backbones of digits, "
        "USPS, MNIST and Fashion-MNIST are those of this repository. `cut_over_noise_` above 0.9 is warned of: there "
        "are no clusters."
    )
    command = "Command: `python benchmarks/cluster_number.py --work FOLDER --fonts /usr/share/fonts`."
    return [*lines, "", said, "", *sources(results), command]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_run_options(parser, CASES)
    parser.add_argument("--fonts", type=Path, help="folder of fonts, for the glyphs")
    parser.add_argument("--work", type=Path, required=True, help="folder of backbones, as that of robustness.py")
    parser.add_argument("--draws", action="store_true", help="also draw some of the classes")
    options = parser.parse_args()
    values = ("images", "true", "auto", *OTHERS, "cut_over_noise", "cost", "machine")
    results = Results("cluster_number", ("case", "drawn", "seed"), values)
    for case in () if options.table else options.datasets:
        for n_classes in (0, *(DRAWS.get(case, ()) if options.draws else ())):
            for seed in range(options.seeds):
                key = {"case": case, "drawn": n_classes, "seed": seed}
                if not results.find(**key):
                    results.add(**key, **measure(case, n_classes, seed, options), machine=machine())
    write_table("cluster_number", table(results))


if __name__ == "__main__":
    main()
