"""Measure how many 12-megapixel JPEG photos are read in a second, against decoding each whole in one thread.

Photos are made of random fields with the spectrum of natural images and grain, in a temporary folder. Rounds of both
ways alternate. A run that was stopped goes on where it was.

    python benchmarks/files.py
"""

from __future__ import annotations

import argparse
import functools
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from common import Results, machine, markdown_table, mean_of, seconds, sources, write_table
from PIL import Image, ImageOps

HEIGHT, WIDTH = 3000, 4000
GRAIN = 4.0
QUALITIES = (80, 90)
SIDES = (64, 224)
N_FILES, N_PHOTOS = 16, 4
ROUNDS = 3


def photo(rng: np.random.Generator) -> Image.Image:
    """Return a random field whose amplitudes fall with their frequency, as those of natural images do, and grain."""
    frequency = np.hypot(np.fft.fftfreq(HEIGHT)[:, None], np.fft.rfftfreq(WIDTH)[None])
    frequency[0, 0] = 1.0

    def field() -> np.ndarray:
        noise = rng.normal(size=frequency.shape) + 1j * rng.normal(size=frequency.shape)
        values = np.fft.irfft2(noise / frequency**1.6, s=(HEIGHT, WIDTH))
        return (values - values.mean()) / values.std()

    light = field()
    pixels = np.stack([128 + 45 * light + 10 * field() for _ in range(3)], axis=-1)
    pixels += rng.normal(0, GRAIN, (HEIGHT, WIDTH, 1))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def whole(paths: list[Path], side: int) -> np.ndarray:
    """Decode every photo whole, one after the other: the reference."""
    images = []
    for path in paths:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image).convert("RGB")
            images.append(np.asarray(ImageOps.fit(upright, (side, side), method=Image.Resampling.BICUBIC)))
    return np.moveaxis(np.stack(images), -1, 1)


def ours(folder: Path, side: int) -> np.ndarray:
    """Read a folder as `fit` does: its headers, then its pixels."""
    from skdiec.images import as_image_source

    return as_image_source(folder, image_shape=(side, side)).in_memory().array


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", action="store_true", help="only write the table of what was measured")
    arguments = parser.parse_args()
    results = results_of()
    keys = [{"quality": quality, "side": side} for quality in QUALITIES for side in SIDES]
    missing = [key for key in keys if len(results.find(**key)) < ROUNDS]
    if missing and not arguments.table:
        with tempfile.TemporaryDirectory() as temporary:
            measure(results, missing, Path(temporary))
    write_table("files", table(results))


def measure(results: Results, keys: list[dict[str, int]], temporary: Path) -> None:
    rng = np.random.default_rng(0)
    photos = [photo(rng) for _ in range(N_PHOTOS)]
    for quality in sorted({key["quality"] for key in keys}):
        folder = temporary / str(quality)
        folder.mkdir()
        for index in range(N_FILES):
            if index < N_PHOTOS:
                photos[index].save(folder / f"{index:02}.jpg", quality=quality)
            else:
                shutil.copy(folder / f"{index % N_PHOTOS:02}.jpg", folder / f"{index:02}.jpg")
        paths = sorted(folder.iterdir())
        megabytes = sum(path.stat().st_size for path in paths) / len(paths) / 1e6
        for side in (key["side"] for key in keys if key["quality"] == quality):
            difference = np.abs(ours(folder, side)[:N_PHOTOS].astype(int) - whole(paths[:N_PHOTOS], side)).mean()
            for repeat in range(len(results.find(quality=quality, side=side)), ROUNDS):
                reference = N_FILES / seconds(functools.partial(whole, paths, side))
                rate = N_FILES / seconds(functools.partial(ours, folder, side))
                row = {"megabytes": megabytes, "whole": reference, "ours": rate, "difference": difference}
                results.add(quality=quality, side=side, repeat=repeat, **row, cores=os.cpu_count(), machine=machine())


def results_of() -> Results:
    values = ("megabytes", "whole", "ours", "difference", "cores", "machine")
    return Results("files", ("quality", "side", "repeat"), values)


def table(results: Results) -> list[str]:
    header = (
        "JPEG quality",
        "MB a photo",
        "side",
        "cores",
        "whole, images/s",
        "skdiec, images/s",
        "ratio",
        "difference",
    )
    lines = []
    for quality, side in dict.fromkeys((row["quality"], row["side"]) for row in results.rows):
        key = {"quality": quality, "side": side}
        rows = results.find(**key)
        figures = [results.mean(column, 1, spread=False, **key) for column in ("whole", "ours")]
        figures.append(mean_of([float(row["ours"]) / float(row["whole"]) for row in rows], 1))
        figures.append(results.mean("difference", 2, spread=False, **key))
        megabytes = results.mean("megabytes", 1, spread=False, **key)
        lines.append((quality, megabytes, f"{side} x {side}", rows[0]["cores"], *figures))
    return [
        *markdown_table(header, lines),
        "",
        f"Photos of {WIDTH} x {HEIGHT} pixels, {N_FILES} files, {ROUNDS} rounds of each way by turns. Whole: each "
        "decoded at its full size, one after the other. skdiec: headers and pixels of the folder. Both in photos a "
        "second. Difference: of the pixels of both, in levels of 256, on average.",
        *sources(results),
        "Command: `python benchmarks/files.py`.",
    ]


if __name__ == "__main__":
    main()
