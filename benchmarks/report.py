"""Write reports of tens of thousands of images, and open them in Chromium: how long does it take, how large are they?

The models that they are of are fitted once, with one representation, to `benchmarks/cache/`. Every opening has a
browser of its own, without a window. Needs Chromium and playwright.

    python benchmarks/report.py --data FOLDER
"""

from __future__ import annotations

import argparse
import functools
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
from common import (
    BACKBONES,
    CACHE,
    Results,
    in_new_process,
    machine,
    markdown_table,
    mean_of,
    seconds,
    sources,
    write_table,
)
from PIL import Image

from skdiec.datasets import FOLDER_VARIABLE, load_dataset

DATA = {"signs": "hand signs, 64 x 64 files", "usps": "USPS", "cifar10": "CIFAR-10", "mnist": "MNIST"}
OPENINGS = 5
SETTINGS = {"layer": "mid_block", "timestep": 100, "pooling": 4, "n_draws": 1, "n_init": 4, "n_snapshots": 10}
VALUES = ("images", "write_seconds", "megabytes", "paint_ms", "ready_ms", "sheet_ms", "slider_ms")


def images_of(name: str, data: Path | None) -> np.ndarray | Path:
    """Return the images of a data set; photos are a folder of files."""
    images = load_dataset(name, data).images
    if name != "signs":
        return images
    folder = CACHE / "report" / "hand signs"
    folder.mkdir(parents=True, exist_ok=True)
    for row, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{row:04}.png")
    return folder


def fitted(name: str, images: np.ndarray | Path) -> Path:
    """Return the folder of a model of all images, fitted where there is none yet."""
    folder = CACHE / "report" / name
    if not folder.exists():
        from skdiec import DiffusionEmbeddedClustering, Pretraining

        settings = {"image_shape": (32, 32)} if name == "signs" else {"backbone": BACKBONES / name}
        if name == "signs":
            settings["backbone"] = Pretraining(epochs=8)
        elif len(images) > 20_000:
            settings["neighbors_algorithm"] = "nndescent"
        model = DiffusionEmbeddedClustering(10, random_state=0, **settings, **SETTINGS)
        model.fit(images).save(folder)
    return folder


def write(folder: Path, images: np.ndarray | Path, path: Path) -> float:
    """Return the seconds of writing a report."""
    import skdiec

    model = skdiec.load(folder)
    return seconds(functools.partial(skdiec.report.write_report, model, images, path))


def opened(path: Path) -> dict[str, float]:
    """Return the milliseconds from a browser's start of reading to the first text, to a page that answers, to the
    first sheet of thumbnails, and those that a step of the slider takes."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(path.as_uri())
        page.locator("html[data-ready]").wait_for()
        paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
        ready = float(page.locator("html").get_attribute("data-ready"))
        step = "(k) => { const t = performance.now(); k.stepDown(); k.dispatchEvent(new Event('input'));"
        slider = page.locator("#k").evaluate(step + " document.body.offsetHeight; return performance.now() - t; }")
        began = page.evaluate("performance.now()")
        page.locator(".card").first.evaluate("(card) => card.scrollIntoView({behavior: 'instant'})")
        page.locator(".card").first.locator("canvas[data-drawn]").nth(17).wait_for()
        sheet = page.evaluate("performance.now()") - began
        browser.close()
    return {"paint_ms": paint, "ready_ms": ready, "sheet_ms": sheet, "slider_ms": slider}


def number_of(folder: Path) -> int:
    """Return how many images a saved model was fitted on."""
    return json.loads((folder / "model.json").read_text())["fitted"]["n_samples"]


def chromium() -> str:
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        raise SystemExit("Chromium is not installed")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--datasets", nargs="+", choices=list(DATA), default=list(DATA), metavar="NAME")
    parser.add_argument(
        "--data", type=Path, help=f"folder with the data sets (default: {FOLDER_VARIABLE}, or download)"
    )
    parser.add_argument("--table", action="store_true", help="only write the table of what was measured")
    arguments = parser.parse_args()
    results = results_of()
    for name in arguments.datasets:
        missing = [opening for opening in range(OPENINGS) if not results.find(data=name, opening=opening)]
        if arguments.table or not missing:
            continue
        images = images_of(name, arguments.data)
        model, *_ = in_new_process(fitted, name, images)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "report.html"
            for opening in missing:
                spent, *_ = in_new_process(write, model, images, path)
                written = {"write_seconds": spent, "megabytes": path.stat().st_size / 1e6}
                results.add(
                    data=name, opening=opening, images=number_of(model), machine=machine(), **written, **opened(path)
                )
    write_table("report", table(results))


def results_of() -> Results:
    return Results("report", ("data", "opening"), (*VALUES, "machine"))


def table(results: Results) -> list[str]:
    header = ("data", "images", "write s", "file MB", "first text s", "ready s", "sheet s", "slider ms")
    lines = []
    for name in dict.fromkeys(row["data"] for row in results.rows):
        rows = results.find(data=name)
        milliseconds = [
            mean_of([float(row[column]) / 1000 for row in rows], 2) for column in ("paint_ms", "ready_ms", "sheet_ms")
        ]
        lines.append(
            (
                DATA[name],
                f"{int(rows[0]['images']):,}",
                results.mean("write_seconds", 1, data=name),
                results.mean("megabytes", 1, spread=False, data=name),
                *milliseconds,
                results.mean("slider_ms", 0, data=name),
            )
        )
    return [
        *markdown_table(header, lines),
        "",
        f"Means of {OPENINGS} files and openings, ten clusters. First text and ready: from the start of reading the "
        "file, ready with the tree, all cards and the map. Sheet: from scrolling to the first card until its 18 "
        "thumbnails are drawn. Slider: one step, with the new sheets chosen and laid out.",
        *sources(results),
        "Command: `python benchmarks/report.py`.",
    ]


if __name__ == "__main__":
    main()
