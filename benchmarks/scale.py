"""Send up to a million images through `predict` and `transform`: does the cost of an image, or memory, grow?

The images are 16 x 16 discs of noise in a memory-mapped file, the backbone is as small as one can be, so that whatever
is not the network shows. Every run has a process of its own.

    python benchmarks/scale.py
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import joblib
import numpy as np
from common import Results, bare_pass, in_new_process, machine, markdown_table, seconds, sources, write_table

COUNTS = (10_000, 100_000, 1_000_000)
METHODS = ("predict", "transform")
_BLOCK = 10_000
_ROUNDS = 3


def write_images(path: Path, count: int) -> None:
    """Write discs of three sizes on noise."""
    generator = np.random.default_rng(0)
    y, x = np.mgrid[-7.5:8, -7.5:8]
    discs = np.array([np.hypot(x, y) < radius for radius in (2, 4, 7)])
    images = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(count, 16, 16))
    for start in range(0, count, _BLOCK):
        kinds = generator.integers(3, size=min(_BLOCK, count - start))
        noise = generator.integers(0, 100, (len(kinds), 16, 16))
        images[start : start + len(kinds)] = noise + 150 * discs[kinds]
    images.flush()


def fit(path: Path, folder: Path) -> None:
    from skdiec import DiffusionEmbeddedClustering, Pretraining

    model = DiffusionEmbeddedClustering(
        3,
        layer="mid_block",
        timestep=50,
        pooling=2,
        n_draws=1,
        backbone=Pretraining(epochs=2, channels=(8, 16)),
        random_state=0,
    )
    joblib.dump(model.fit(np.load(path, mmap_mode="r")[:2000]), folder / "model.joblib")


def run(method: str, path: Path, folder: Path, count: int) -> tuple[float, float, int]:
    """Return the seconds of a call, those of the bare truncated pass for as many images, and the output's bytes."""
    from skdiec.features import suited_batch_size

    model = joblib.load(folder / "model.joblib")
    backbone, batch_size = model.backbone_, suited_batch_size(model.backbone_)
    images = np.load(path, mmap_mode="r")[:count]
    run, passes = bare_pass(backbone, model.layer_, model.timestep_, batch_size), _BLOCK // batch_size

    def bare() -> float:
        return sum(seconds(run) for _ in range(passes)) * count / (passes * batch_size)

    # The best of several, before and after: the machine's other work falls on all alike.
    before = [bare() for _ in range(_ROUNDS)]
    started = time.perf_counter()
    output = getattr(model, method)(images)
    spent = time.perf_counter() - started
    return spent, min(*before, *(bare() for _ in range(_ROUNDS))), output.nbytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", action="store_true", help="only write the table of what was measured")
    arguments = parser.parse_args()
    results = results_of()
    missing = [(m, n) for n in COUNTS for m in METHODS if not results.find(method=m, images=n)]
    if missing and not arguments.table:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "images.npy"
            write_images(path, max(count for _, count in missing))
            in_new_process(fit, path, Path(folder))
            for method, count in missing:
                (spent, bare, size), _, peak = in_new_process(run, method, path, Path(folder), count)
                values = {"seconds": spent, "bare_seconds": bare, "output_gb": size / 2**30, "peak_gb": peak}
                results.add(method=method, images=count, machine=machine(), **values)
    write_table("scale", table(results))


def results_of() -> Results:
    return Results("scale", ("method", "images"), ("seconds", "bare_seconds", "output_gb", "peak_gb", "machine"))


def table(results: Results) -> list[str]:
    header = ("method", "images", "images/s", "of the bare pass", "peak GB", "of which output")
    rows = []
    for row in results.rows:
        count, spent = int(row["images"]), float(row["seconds"])
        share = float(row["bare_seconds"]) / spent
        memory = [f"{float(row[column]):.2f}" for column in ("peak_gb", "output_gb")]
        rows.append((row["method"], f"{count:,}", f"{count / spent:,.0f}", f"{share:.0%}", *memory))
    return [
        *markdown_table(header, rows),
        "",
        "16 x 16 images in a memory-mapped file, whose pages count as resident memory too (256 MB for a million); one "
        "noise draw, a backbone with 8 and 16 channels. Bare pass: the network up to the chosen layer alone, in the "
        "same run.",
        *sources(results),
        "Command: `python benchmarks/scale.py`.",
    ]


if __name__ == "__main__":
    main()
