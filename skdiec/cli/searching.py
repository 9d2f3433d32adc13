"""``skdiec search``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from skdiec.cli.console import command, show, show_json, shown_path
from skdiec.cli.fitting import Request, check_number, checked, fit, goes_on, read_for_fit
from skdiec.cli.options import (
    DEFAULT_MINUTES,
    AsJson,
    Backbone,
    Clusters,
    Device,
    Epochs,
    Folder,
    ImageShape,
    Output,
    Quiet,
    Seed,
    TrainingMinutes,
    ValueRange,
    limits,
    number_of_clusters,
    numbers,
)
from skdiec.cli.output import OutputFolder, default_output

if TYPE_CHECKING:
    from skdiec.search import SearchResult

SEARCH_FILE = "search.csv"

_SHOWN = 10


def search(
    folder: Folder,
    k: Clusters = None,
    out: Output = None,
    minutes: TrainingMinutes = DEFAULT_MINUTES,
    epochs: Epochs = None,
    backbone: Backbone = None,
    image_shape: ImageShape = None,
    value_range: ValueRange = None,
    seed: Seed = 0,
    device: Device = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Score the representations (layer, timestep, pooling), without training the head. skdiec cluster goes on here."""
    with command(quiet, goes_on=lambda: goes_on(folder, out)) as console:
        place = out or default_output(folder)
        shape, levels = numbers("image-shape", image_shape, int), limits("value-range", value_range)
        request = Request(backbone, minutes, epochs, shape, levels, seed, device)
        n_clusters = number_of_clusters(k)
        from skdiec.cli.reading import find_files
        from skdiec.cli.tables import csv_of, rows_of

        request = checked(request, console)
        files = find_files(folder, console, leave_out=place)
        check_number(n_clusters, files)
        results = OutputFolder(place, console)
        results.check_free([SEARCH_FILE])
        images = read_for_fit(request, files, results, console)
        check_number(n_clusters, images.files)
        model = fit(request, images, n_clusters, results, console, head=None, n_draws=1)
        table = _score_table(model.search_result_)
        results.write({SEARCH_FILE: csv_of(table)})
        rows = rows_of(table)
        if as_json:
            show_json(rows)
        else:
            show(_in_words(rows, model.search_result_, place / SEARCH_FILE))


def _score_table(result: SearchResult) -> dict[str, list[Any]]:
    """Return the scores of all representations, the best first."""
    import numpy as np

    scores = {name: values for name, values in result.scores.items() if name != result.criterion}
    scores = {result.criterion: result.scores[result.criterion], **scores}
    finite = np.argwhere(np.isfinite(scores[result.criterion]))
    places = sorted(finite.tolist(), key=lambda place: -scores[result.criterion][tuple(place)])
    best = list(result.position(result.best))
    return {
        "layer": [result.layers[place[0]] for place in places],
        "timestep": [result.timesteps[place[1]] for place in places],
        "pooling": [result.poolings[place[2]] for place in places],
        **{name: [float(values[tuple(place)]) for place in places] for name, values in scores.items()},
        "chosen": [place == best for place in places],
    }


def _in_words(rows: list[dict[str, Any]], result: SearchResult, path: Path) -> str:
    """Return the best representations as people read them."""
    criterion, best, final = result.criterion, result.best, result.final
    width = max(len("layer"), *(len(row["layer"]) for row in rows))
    lines = ["", f"{'layer':<{width}}  timestep  pooling  {criterion:>12}  {'scott':>8}"]
    for row in rows[:_SHOWN]:
        lines.append(
            f"{row['layer']:<{width}}  {row['timestep']:>8}  {row['pooling']:>7}  {row[criterion]:>12.4f}  "
            f"{row['scott']:>8.3g}"
        )
    chosen = f"chosen: {best.layer}, timestep {best.timestep}, pooling {best.pooling}"
    if final is not None:
        chosen += f", of the best {len(final.cells)} at this timestep on {final.n_images:,} images"
    return "\n".join([*lines, "", chosen, f"All {len(rows)} are in {shown_path(path)}"])
