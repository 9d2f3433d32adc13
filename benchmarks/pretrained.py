"""Compare pretrained models: skdiec with diffusion models of the Hub, k-means on the features of image encoders.

Of a diffusion model, the estimator's defaults choose the representation and cluster it; k-means clusters the same one.
Of an encoder, such as DINOv2 and CLIP, k-means clusters the features, and so does the initial partition that skdiec
would start from. Models are Hub ids or local folders. Labels evaluate alone. A run that was stopped goes on where it
was. Encoders need `pip install "skdiec[text]"`; large models need a GPU.

    python benchmarks/pretrained.py --data FOLDER --images 10000 --backbones google/ddpm-cifar10-32
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from accuracy import partition_of_pixels
from common import (
    Results,
    add_run_options,
    agreement,
    in_new_process,
    machine,
    markdown_table,
    sources,
    table_text,
    write_table,
)

from skdiec.datasets import DATASETS, load_dataset

DIFFUSION = ("google/ddpm-cifar10-32", "facebook/DiT-XL-2-256", "stable-diffusion-v1-5/stable-diffusion-v1-5")
ENCODERS = ("facebook/dinov2-large", "openai/clip-vit-large-patch14")
OURS, START, KMEANS = "skdiec", "skdiec's initial partition", "KMeans"
KEY = ("dataset", "images", "model", "image_size", "clustering", "seed")
VALUES = ("acc", "nmi", "ari", "cell", "explained", "seconds", "peak_gb", "machine")

MTEB = "https://github.com/embeddings-benchmark/results/tree/main/results/"
REPORTED = (
    ("[DiEC](https://arxiv.org/abs/2512.20905), its own diffusion model", "0.714", "0.615"),
    (f"[DINOv2-L]({MTEB}facebook__dinov2-large), mini-batch k-means, 10,000 test images", "0.728", "0.799"),
    (f"[CLIP-L/14]({MTEB}openai__clip-vit-large-patch14), mini-batch k-means, 10,000 test images", "0.797", "0.809"),
)
"""Accuracy and NMI on CIFAR-10 as others report them: the paper, and `CIFAR10Clustering` of embeddings-benchmark."""


def some_images(name: str, folder: Path | None, count: int | None) -> tuple[np.ndarray, np.ndarray, int]:
    """Return images drawn at random and in their order, their classes, and how many classes there are."""
    data = load_dataset(name, folder)
    rows = np.sort(np.random.default_rng(0).permutation(len(data.images))[:count])
    return data.images[rows], data.labels[rows], len(np.unique(data.labels))


def of_backbone(
    name: str, folder: Path | None, count: int | None, model: str, options: dict[str, Any], seed: int
) -> dict[str, dict[str, Any]]:
    """Fit the estimator, and cluster by k-means the representation that it chose; return labels and more of each."""
    from skdiec import DiffusionEmbeddedClustering, load_backbone

    images, _, k = some_images(name, folder, count)
    with tempfile.TemporaryDirectory() as memory:
        settings = {"backbone": load_backbone(model, **options), "random_state": seed, "memory": memory}
        fitted = DiffusionEmbeddedClustering(k, **settings).fit(images)
        cell = {"layer": fitted.layer_, "timestep": fitted.timestep_, "pooling": fitted.pooling_}
        means = DiffusionEmbeddedClustering(k, **settings, **cell, init="k-means++", head=None).fit(images)
    shared = {
        "cell": f"{fitted.layer_} t={fitted.timestep_} p={fitted.pooling_}",
        "explained": " ".join(f"{share:.4f}" for share in fitted.share_explained_.values()),
    }
    before = sum(fitted.fit_seconds_[stage] for stage in ("search", "features"))
    seconds = {OURS: sum(fitted.fit_seconds_.values()), KMEANS: before + means.fit_seconds_["partition"]}
    labels = {OURS: fitted.labels_, KMEANS: means.initial_labels_}
    return {name: {"labels": labels[name], "seconds": seconds[name], **shared} for name in labels}


def of_encoder(
    name: str, folder: Path | None, count: int | None, model: str, options: dict[str, Any], seed: int
) -> dict[str, dict[str, Any]]:
    """Cluster the features of an encoder; return labels and more of each clustering."""
    from sklearn.cluster import KMeans

    images, _, k = some_images(name, folder, count)
    started = time.perf_counter()
    features = encoder_features(model, images)
    taken, found = time.perf_counter() - started, {}
    for clustering in (KMEANS, START):
        started = time.perf_counter()
        if clustering == KMEANS:
            labels = KMeans(k, n_init=10, random_state=seed).fit_predict(features)
        else:
            labels = partition_of_pixels(features, k, seed)
        seconds = taken + time.perf_counter() - started
        found[clustering] = {"labels": labels, "seconds": seconds, "cell": "", "explained": ""}
    return found


def encoder_features(model: str, images: np.ndarray, batch_size: int = 64) -> np.ndarray:
    """Return what an encoder says of each image: CLIP's embedding, of others the class token."""
    import torch

    try:
        from transformers import AutoConfig, AutoImageProcessor, AutoModel, CLIPVisionModelWithProjection
    except ImportError as error:
        raise ImportError('encoders need transformers: pip install "skdiec[text]"') from error
    from skdiec.backbones.devices import default_device

    is_clip = AutoConfig.from_pretrained(model).model_type in ("clip", "clip_vision_model")
    device = default_device(None)
    network = (CLIPVisionModelWithProjection if is_clip else AutoModel).from_pretrained(model).eval().to(device)
    processor = AutoImageProcessor.from_pretrained(model)
    if images.ndim == 3:
        images = np.repeat(images[..., None], 3, axis=-1)
    found = []
    with torch.inference_mode():
        for start in range(0, len(images), batch_size):
            batch = processor(images=list(images[start : start + batch_size]), return_tensors="pt").to(device)
            output = network(**batch)
            found.append((output.image_embeds if is_clip else output.last_hidden_state[:, 0]).float().cpu())
    return torch.cat(found).numpy()


def runs(arguments: argparse.Namespace) -> Iterator[tuple[Any, str, dict[str, Any], tuple[str, ...]]]:
    """Yield what measures a model, the model, how it is loaded, and which clusterings it gets."""
    for model in arguments.backbones:
        options = {"image_size": arguments.image_size, "variant": arguments.variant}
        yield of_backbone, model, options, (OURS, KMEANS)
    for model in arguments.encoders:
        yield of_encoder, model, {}, (KMEANS, START)


def measure(results: Results, arguments: argparse.Namespace) -> None:
    for name in arguments.datasets:
        _, y, _ = some_images(name, arguments.data, arguments.images)
        for function, model, options, clusterings in runs(arguments):
            for seed in range(arguments.seeds):
                key = {"dataset": name, "images": len(y), "model": model, "seed": seed}
                key["image_size"] = options.get("image_size") or ""
                wanted = [each for each in clusterings if not results.find(**key, clustering=each)]
                if not wanted:
                    continue
                given = (name, arguments.data, arguments.images, model, options, seed)
                found, _, peak = in_new_process(function, *given)
                for clustering in wanted:
                    row = {**found[clustering], **agreement(y, found[clustering]["labels"])}
                    del row["labels"]
                    results.add(**key, clustering=clustering, **row, peak_gb=peak, machine=machine())


def results_of(folder: Path | None = None) -> Results:
    return Results("pretrained", KEY, VALUES, **({} if folder is None else {"folder": folder}))


def table(results: Results) -> list[str]:
    header = ("data", "images", "model", "side", "clustering", "seeds", "ACC", "NMI", "ARI", "share explained")
    header += ("representation", "seconds", "peak GB")
    lines = []
    for group in dict.fromkeys(tuple(row[name] for name in KEY[:-1]) for row in results.rows):
        key = dict(zip(KEY[:-1], group, strict=True))
        rows = results.find(**key)
        explained = [np.array(row["explained"].split(), float) for row in rows if row["explained"]]
        lines.append(
            (
                key["dataset"],
                f"{int(key['images']):,}",
                key["model"],
                key["image_size"] or "its own",
                key["clustering"],
                len(rows),
                *(results.mean(column, 3, **key) for column in ("acc", "nmi", "ari")),
                " / ".join(f"{share:.2f}" for share in np.mean(explained, axis=0)) if explained else "-",
                "; ".join(dict.fromkeys(row["cell"] for row in rows)) or "-",
                results.mean("seconds", 0, spread=False, **key),
                results.mean("peak_gb", 1, spread=False, **key),
            )
        )
    unmeasured = [model for model in (*DIFFUSION, *ENCODERS) if not results.find(model=model)]
    measured = [*markdown_table(header, lines), "", *sources(results), ""] if lines else []
    return [
        *measured,
        *([f"Not measured: {', '.join(f'`{model}`' for model in unmeasured)}.", ""] if unmeasured else []),
        *markdown_table(("CIFAR-10, as others report it", "ACC", "NMI"), REPORTED),
        "",
        "Command: `python benchmarks/pretrained.py --datasets cifar10`.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_run_options(parser, DATASETS)
    parser.set_defaults(datasets=["cifar10"], seeds=1)
    parser.add_argument("--images", type=int, help="how many random images (default: all)")
    parser.add_argument("--backbones", nargs="*", default=DIFFUSION, metavar="MODEL", help="diffusion models")
    parser.add_argument("--encoders", nargs="*", default=ENCODERS, metavar="MODEL", help="models of transformers")
    parser.add_argument("--image-size", type=int, help="side that images are scaled to for models of latents")
    parser.add_argument("--variant", help='weights of diffusion models, such as "fp16"')
    parser.add_argument("--results", type=Path, help="folder for the rows and the table, in place of the repository's")
    arguments = parser.parse_args()
    if arguments.images is not None and arguments.images < 1:
        parser.error(f"--images must be at least 1; got {arguments.images}")
    results = results_of(arguments.results)
    if not arguments.table:
        measure(results, arguments)
    if arguments.results is None:
        write_table("pretrained", table(results))
    else:
        arguments.results.mkdir(parents=True, exist_ok=True)
        (arguments.results / "pretrained.md").write_text(table_text(table(results)) + "\n")


if __name__ == "__main__":
    main()
