"""Compare skdiec with plain methods on what people bring: few images, many clusters, uneven sizes, duplicates, noise.

Every fit starts from raw pixels with all defaults, pretraining included; uneven classes of USPS are clustered with a
backbone of all USPS images too. Labels evaluate alone. Each method of each seed runs in a process of its own. A run
that was stopped goes on where it was.

    python benchmarks/robustness.py --data FOLDER --fonts /usr/share/fonts --seeds 1
"""

from __future__ import annotations

import argparse
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from accuracy import partition_of_pixels
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

OURS, GIVEN, START = "skdiec", "skdiec, backbone given", "skdiec's initial partition of pixels"
MAX_IDEC_IMAGES = 1_000
"""ClustPy's IDEC is run on so many images at most: its defaults take minutes for each thousand."""

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
N_GLYPHS = 3_000


def all_of(name: str, folder: Path | None) -> tuple[np.ndarray, np.ndarray]:
    data = load_dataset(name, folder)
    return data.images, data.labels


def some_of(name: str, n: int) -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """Return a loader of a random subset, the same for all seeds."""

    def load(folder: Path | None, fonts: Path | None) -> tuple[np.ndarray, np.ndarray]:
        images, labels = all_of(name, folder)
        rows = np.sort(np.random.default_rng(0).permutation(len(images))[:n])
        return images[rows], labels[rows]

    return load


def uneven(name: str, ratio: float, draw: int, largest: int = 700) -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """Return a loader of classes whose sizes fall geometrically; which are rare, is drawn."""

    def load(folder: Path | None, fonts: Path | None) -> tuple[np.ndarray, np.ndarray]:
        images, labels = all_of(name, folder)
        rng = np.random.default_rng(draw)
        classes = rng.permutation(np.unique(labels))
        sizes = np.round(largest * ratio ** -np.linspace(0, 1, len(classes))).astype(int)
        rows = [rng.permutation(np.flatnonzero(labels == one))[:size] for one, size in zip(classes, sizes, strict=True)]
        rows = np.sort(np.concatenate(rows))
        return images[rows], labels[rows]

    return load


def whole(name: str) -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    return lambda folder, fonts: all_of(name, folder)


def signs(folder: Path | None, fonts: Path | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the hand signs at half their size, as a user with limited time would read them."""
    images, labels = all_of("signs", folder)
    halved = images.reshape(len(images), 32, 2, 32, 2, 3).mean(axis=(2, 4))
    return np.round(halved).astype(np.uint8), labels


def duplicates(folder: Path | None, fonts: Path | None) -> tuple[np.ndarray, np.ndarray]:
    """Return 300 digits, a third of them four times."""
    images, labels = some_of("digits", 300)(folder, fonts)
    rows = np.concatenate([np.arange(300), np.repeat(np.arange(100), 3)])
    return images[rows], labels[rows]


def noise(folder: Path | None, fonts: Path | None) -> tuple[np.ndarray, np.ndarray]:
    """Return images in which nothing is to be found; what is reported of them is no accuracy."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (1_000, 16, 16), dtype=np.uint8), rng.integers(10, size=1_000)


def glyphs(folder: Path | None, fonts: Path | None) -> tuple[np.ndarray, np.ndarray]:
    """Return letters A to Z and a to z as up to 200 fonts have them, 28 x 28."""
    from PIL import Image, ImageDraw, ImageFont

    if fonts is None:
        raise FileNotFoundError("--fonts must name a folder with TrueType or OpenType fonts")
    paths = sorted(path for path in fonts.rglob("*") if path.suffix.lower() in (".ttf", ".otf"))
    drawn, labels, families = [], [], set()
    for path in paths:
        family = path.stem.split("-")[0]
        try:
            font = ImageFont.truetype(path, 22)
        except OSError:
            continue
        if family in families or font.getbbox("A") == font.getbbox("B") == font.getbbox("g"):  # of no letters
            continue
        families.add(family)
        for label, letter in enumerate(LETTERS):
            image = Image.new("L", (28, 28))
            ImageDraw.Draw(image).text((14, 14), letter, fill=255, font=font, anchor="mm")
            drawn.append(np.asarray(image))
            labels.append(label)
        if len(families) == 200:
            break
    images, labels = np.stack(drawn), np.array(labels)
    rows = np.sort(np.random.default_rng(0).permutation(len(images))[:N_GLYPHS])
    return images[rows], labels[rows]


CASES: dict[str, Callable[..., tuple[np.ndarray, np.ndarray]]] = {
    "digits": whole("digits"),
    "digits, 300": some_of("digits", 300),
    "digits, 1,000": some_of("digits", 1_000),
    "USPS": whole("usps"),
    "USPS, 1,000": some_of("usps", 1_000),
    **{f"USPS, {ratio} : 1, draw {draw}": uneven("usps", ratio, draw) for ratio in (10, 50, 100) for draw in range(3)},
    "MNIST, 2,000": some_of("mnist", 2_000),
    "Fashion-MNIST, 2,000": some_of("fashion_mnist", 2_000),
    "UMIST": whole("umist"),
    "palms": whole("palm"),
    "hand signs, 32 x 32": signs,
    "glyphs": glyphs,
    "digits with duplicates": duplicates,
    "noise": noise,
}
"""Images and their classes."""

UNEVEN = [case for case in CASES if " : " in case]
"""What is clustered with a backbone of all images too: are its classes told apart where they are rare?"""


def load(case: str, folder: Path | None, fonts: Path | None) -> tuple[np.ndarray, np.ndarray, int]:
    """Return images, classes and their number."""
    images, labels = CASES[case](folder, fonts)
    return images, labels, len(np.unique(labels))


def flat(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1).astype(np.float32) / 255


def kmeans(images: np.ndarray, k: int, seed: int) -> np.ndarray:
    from sklearn.cluster import KMeans

    return KMeans(k, n_init=10, random_state=seed).fit_predict(flat(images))


def pca_kmeans(images: np.ndarray, k: int, seed: int) -> np.ndarray:
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA

    return KMeans(k, n_init=10, random_state=seed).fit_predict(PCA(0.95, svd_solver="full").fit_transform(flat(images)))


def spectral(images: np.ndarray, k: int, seed: int) -> np.ndarray:
    from sklearn.cluster import SpectralClustering

    model = SpectralClustering(k, affinity="nearest_neighbors", n_neighbors=10, random_state=seed)
    return model.fit_predict(flat(images))


def embedded(images: np.ndarray, seed: int) -> np.ndarray:
    from umap import UMAP

    # What UMAP's documentation advises for clustering.
    return UMAP(n_neighbors=30, min_dist=0.0, random_state=seed).fit_transform(flat(images))


def umap_kmeans(images: np.ndarray, k: int, seed: int) -> np.ndarray:
    from sklearn.cluster import KMeans

    return KMeans(k, n_init=10, random_state=seed).fit_predict(embedded(images, seed))


def umap_hdbscan(images: np.ndarray, k: int, seed: int) -> np.ndarray:
    """Return what HDBSCAN finds, which chooses the number of clusters; outliers go to the nearest cluster's mean."""
    from sklearn.cluster import HDBSCAN

    points = embedded(images, seed)
    labels = HDBSCAN(min_cluster_size=max(5, len(points) // 100)).fit_predict(points)
    if labels.max() < 0:
        return np.zeros(len(labels), dtype=int)
    means = np.array([points[labels == cluster].mean(axis=0) for cluster in range(labels.max() + 1)])
    nearest = ((points[:, None] - means) ** 2).sum(axis=2).argmin(axis=1)
    return np.where(labels < 0, nearest, labels)


def idec(images: np.ndarray, k: int, seed: int) -> np.ndarray:
    from clustpy.deep import IDEC

    return IDEC(k, random_state=seed).fit(flat(images)).labels_


def start(images: np.ndarray, k: int, seed: int) -> np.ndarray:
    return partition_of_pixels(flat(images), k, seed)


PEERS: dict[str, Callable[[np.ndarray, int, int], np.ndarray]] = {
    "KMeans": kmeans,
    "PCA + KMeans": pca_kmeans,
    "spectral clustering": spectral,
    "UMAP + KMeans": umap_kmeans,
    "UMAP + HDBSCAN": umap_hdbscan,
    "ClustPy IDEC": idec,
    START: start,
}


def peer(method: str, case: str, folder: Path | None, fonts: Path | None, seed: int) -> dict[str, Any]:
    images, _, k = load(case, folder, fonts)
    return {"labels": PEERS[method](images, k, seed)}


def memory_of(work: Path, case: str, seed: int) -> Path:
    """Return the folder that keeps what the fits of a case have trained, in its folder ``skdiec-backbones``."""
    return work / f"{re.sub(r'[^a-z0-9]+', '-', case.lower())}-{seed}"


def ours(
    case: str, folder: Path | None, fonts: Path | None, seed: int, work: Path | None, backbone: str | Path = "auto"
) -> dict[str, Any]:
    """Fit with all defaults; backbones stay in a folder of `work`, so that a later run finds them trained."""
    from skdiec import DiffusionEmbeddedClustering

    images, _, k = load(case, folder, fonts)
    with tempfile.TemporaryDirectory() as temporary:
        memory = Path(temporary) if work is None else memory_of(work, case, seed)
        shutil.rmtree(memory / "joblib", ignore_errors=True)  # search and partition as the code is now
        settings = {"backbone": backbone, "random_state": seed, "memory": str(memory)}
        model = DiffusionEmbeddedClustering(k, **settings).fit(images)
    return {
        "labels": model.labels_,
        "initial": model.initial_labels_,
        "pretrain_seconds": model.fit_seconds_["backbone"],
        "stability": model.stability_,
        "cell": f"{model.layer_} t={model.timestep_} p={model.pooling_}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_run_options(parser, CASES)
    methods = [OURS, GIVEN, *PEERS]
    parser.add_argument("--methods", nargs="+", choices=methods, default=methods, metavar="METHOD")
    parser.add_argument("--fonts", type=Path, help="folder with the fonts of the glyphs")
    parser.add_argument("--work", type=Path, help="folder to keep backbones in; with one, minutes are not compared")
    arguments = parser.parse_args()
    results = results_of()
    for case in () if arguments.table else arguments.datasets:
        measure(results, case, arguments.data, arguments.fonts, arguments.seeds, arguments.methods, arguments.work)
    write_table("robustness", table(results))


def results_of() -> Results:
    values = ("images", "clusters", "acc", "nmi", "ari", "start_acc", "stability", "pretrain_seconds", "seconds")
    return Results("robustness", ("case", "method", "seed"), (*values, "cell", "machine"))


def measure(
    results: Results,
    case: str,
    folder: Path | None,
    fonts: Path | None,
    seeds: int,
    methods: list[str],
    work: Path | None = None,
) -> None:
    _, y, k = load(case, folder, fonts)
    for seed in range(seeds):
        for method in methods:
            if results.find(case=case, method=method, seed=seed):
                continue
            if method == "ClustPy IDEC" and len(y) > MAX_IDEC_IMAGES:
                continue
            if method == GIVEN and case not in UNEVEN:
                continue
            if method == OURS:
                run = (ours, case, folder, fonts, seed, work)
            elif method == GIVEN:
                run = (ours, case, folder, fonts, seed, None, BACKBONES / "usps")
            else:
                run = (peer, method, case, folder, fonts, seed)
            found, seconds, _ = in_new_process(*run)
            initial = found.pop("initial", None)
            row = {
                "start_acc": "" if initial is None else agreement(y, initial)["acc"],
                "stability": found.get("stability", ""),
                "pretrain_seconds": found.get("pretrain_seconds", ""),
                "cell": found.get("cell", ""),
            }
            row |= {"images": len(y), "clusters": k, **agreement(y, found["labels"])}
            results.add(case=case, method=method, seed=seed, **row, seconds=seconds, machine=machine())


def table(results: Results) -> list[str]:
    cases = [case for case in CASES if results.find(case=case)]
    header = ("ACC", "images, clusters", *PEERS, OURS, "NMI", "stability", "minutes")
    rows = []
    for case in cases:
        first = results.find(case=case)[0]
        figures = {method: results.mean("acc", 3, case=case, method=method) for method in (*PEERS, OURS)}
        minutes = [float(row["seconds"]) / 60 for row in results.find(case=case, method=OURS)]
        rows.append(
            (
                case,
                f"{int(first['images']):,}, {first['clusters']}",
                *figures.values(),
                results.mean("nmi", 3, spread=False, case=case, method=OURS),
                results.mean("stability", 2, spread=False, case=case, method=OURS),
                f"{np.mean(minutes):.0f}" if minutes else "-",
            )
        )
    return [
        *markdown_table(header, rows),
        "",
        "Means over the random states that were run, ± their standard deviation. skdiec: from raw pixels with all "
        "defaults; NMI, stability and minutes (pretraining included) are its own. HDBSCAN finds the number of clusters "
        f"itself. IDEC: up to {MAX_IDEC_IMAGES:,} images. Of noise, classes are drawn at random.",
        "",
        *given_table(results),
        *sources(results),
        "Command: `python benchmarks/robustness.py --fonts /usr/share/fonts`.",
    ]


def given_table(results: Results) -> list[str]:
    """Return the lines about fits whose backbone was trained on all images of USPS."""
    rows = []
    for case in UNEVEN:
        count = len(results.find(case=case, method=GIVEN))
        if count:
            found = [results.mean(column, 3, case=case, method=GIVEN) for column in ("acc", "nmi", "stability")]
            rows.append((case, count, *found))
    header = ("with the backbone of all USPS images", "seeds", "ACC", "NMI", "stability")
    return [*markdown_table(header, rows), ""] if rows else []


if __name__ == "__main__":
    main()
