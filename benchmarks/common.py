"""What all benchmarks share: results that a stopped run goes on from, measured runs, and the tables made of them."""

from __future__ import annotations

import csv
import multiprocessing
import os
import platform
import resource
import textwrap
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from skdiec.datasets import DATASETS, FOLDER_VARIABLE, load_dataset
from skdiec.metrics import clustering_report

HERE = Path(__file__).parent
BACKBONES = HERE / "backbones"
RESULTS = HERE / "results"
CACHE = HERE / "cache"
"""What a stopped run goes on from, and nobody else needs."""

SEEDS = 5
"""Seeds of a measurement unless told otherwise."""

WIDTH = 120
"""Characters of a line of prose in a table's notes."""

N_IMAGES = 10_000
"""Images of `random_images` at most."""


class Results:
    """Rows of a CSV file, each found by its key, so that nothing is measured twice.

    Rows are appended one by one: what was measured when a run was stopped stays.
    """

    def __init__(self, name: str, key: Sequence[str], values: Sequence[str], folder: Path = RESULTS) -> None:
        self.path = folder / f"{name}.csv"
        self.key, self.fields = tuple(key), (*key, *values)
        self.rows: list[dict[str, str]] = []
        if self.path.exists():
            with self.path.open(newline="") as file:
                reader = csv.DictReader(file)
                if tuple(reader.fieldnames or ()) != self.fields:
                    raise ValueError(f"{self.path} has other columns: move it away to measure again")
                self.rows = list(reader)

    def find(self, **key: object) -> list[dict[str, str]]:
        """Return the rows with some values, in the order they were measured in."""
        wanted = {name: str(value) for name, value in key.items()}
        return [row for row in self.rows if wanted.items() <= row.items()]

    def add(self, **row: object) -> None:
        """Append a row; floats keep six significant digits."""
        text = {name: f"{value:.6g}" if isinstance(value, float) else str(value) for name, value in row.items()}
        if set(text) != set(self.fields):
            raise ValueError(f"a row of {self.path.name} needs {self.fields}; got {tuple(text)}")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = not self.path.exists()
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, self.fields)
            if new:
                writer.writeheader()
            writer.writerow(text)
        self.rows.append({name: text[name] for name in self.fields})
        print(" ", ", ".join(f"{name} {text[name]}" for name in self.fields if name != "machine"), flush=True)

    def mean(self, column: str, digits: int = 4, *, spread: bool = True, **key: object) -> str:
        """Return "mean ± standard deviation" of a column over the rows with some values, or a dash."""
        return mean_of([float(row[column]) for row in self.find(**key) if row[column]], digits, spread=spread)


def mean_of(values: Sequence[float], digits: int = 4, *, spread: bool = True) -> str:
    """Return "mean ± standard deviation" of some values, or a dash where there are none."""
    if not len(values):
        return "-"
    deviation = f" ± {np.std(values, ddof=1):.{digits}f}" if spread and len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{deviation}"


def in_new_process(function: Callable, *arguments: Any) -> tuple[Any, float, float]:
    """Run a function of a module in a process of its own.

    Returns its result, its wall time in seconds (without starting Python and importing) and the peak resident memory
    of the process in gigabytes.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_measured, function, arguments).result()


def _measured(function: Callable, arguments: tuple) -> tuple[Any, float, float]:
    started = time.perf_counter()
    result = function(*arguments)
    seconds = time.perf_counter() - started
    return result, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def bare_pass(backbone: Any, layer: str, timestep: int, batch_size: int) -> Callable[[], None]:
    """Return what sends a batch through the network up to a layer, and does nothing else."""
    import torch

    from skdiec.activations import capture

    batch = torch.zeros((batch_size, *backbone.input_shape))
    timesteps = torch.full((batch_size,), timestep)

    def run() -> None:
        with torch.inference_mode():
            capture(backbone.network, lambda: backbone.predict(batch, timesteps), [layer], lambda *_: None)

    return run


def seconds(function: Callable[[], object]) -> float:
    """Return the wall time of a call."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def agreement(y: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return ACC, NMI and ARI of labels, for the rows of a table; y evaluates, and does nothing else."""
    report = clustering_report(y, labels)
    return {"acc": report.acc, "nmi": report.nmi, "ari": report.ari}


def machine() -> str:
    """Say what the figures were measured on."""
    import torch

    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = names[0] if names else name
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    name = f"{name}, {torch.backends.cpu.get_cpu_capability()}"
    return f"{name} ({torch.get_num_threads()} threads of {os.cpu_count()}; {device}; torch {torch.__version__})"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table."""
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    return lines + [f"| {' | '.join(map(str, row))} |" for row in rows]


def write_table(name: str, lines: Sequence[str]) -> None:
    """Write a results file, and put it into every document that has a place for it.

    The place is between the comments ``<!-- results: NAME -->`` and ``<!-- end -->``.
    """
    text = table_text(lines)
    (RESULTS / f"{name}.md").write_text(text + "\n")
    for document in (HERE.parent / "README.md", *sorted((HERE.parent / "docs").rglob("*.md"))):
        document.write_text(with_table(document.read_text(), name, text))
    print(text)


def table_text(lines: Sequence[str]) -> str:
    """Join lines, and wrap those that are no rows of tables."""
    return "\n".join(part for line in lines for text in line.split("\n") for part in wrapped(text)).strip()


def wrapped(line: str) -> list[str]:
    """Wrap a line of prose, or a point of a list, at 120 characters."""
    if line.startswith("|") or len(line) <= WIDTH:
        return [line]
    indent = "  " if line.startswith("- ") else ""
    return textwrap.wrap(line, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def with_table(document: str, name: str, table: str) -> str:
    """Return a document's text with a table in the places that it has for it."""
    begin, end = f"<!-- results: {name} -->", "<!-- end -->"
    parts = document.split(begin)
    return parts[0] + "".join(f"{begin}\n{table}\n{end}{part.split(end, 1)[1]}" for part in parts[1:])


def sources(results: Results) -> list[str]:
    """Return lines that say on which machines the rows were measured."""
    found = dict.fromkeys(row["machine"] for row in results.rows)
    return [f"Machine: {'; '.join(found)}."]


def listed(settings: Mapping[str, object]) -> str:
    """Write settings as keyword arguments."""
    return ", ".join(f"{name}={value}" for name, value in settings.items())


def departures(settings: Mapping[str, object]) -> str:
    """Say in what a benchmark's fits depart from the estimator's defaults."""
    return f"the defaults, but for {listed(settings)}"


def random_images(name: str, folder: Path | None, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return at most `N_IMAGES` images of a data set, drawn at random and in their order, with their labels."""
    data = load_dataset(name, folder)
    rows = np.sort(np.random.default_rng(seed).permutation(len(data.images))[:N_IMAGES])
    return data.images[rows], data.labels[rows]


def add_data_options(parser: Any, datasets: Mapping[str, object] | Sequence[str] = DATASETS) -> None:
    """Add the options of all commands: which data sets, where they are, and how many seeds."""
    parser.add_argument("--datasets", nargs="+", choices=list(datasets), default=list(datasets), metavar="NAME")
    parser.add_argument(
        "--data", type=Path, help=f"folder with the data sets (default: {FOLDER_VARIABLE}, or download)"
    )
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"random states 0 to SEEDS - 1 (default: {SEEDS})")


def add_run_options(parser: Any, datasets: Mapping[str, object] | Sequence[str] = DATASETS) -> None:
    """Add the options of commands that measure, or only write the table of what was measured."""
    add_data_options(parser, datasets)
    parser.add_argument("--table", action="store_true", help="only write the table of what was measured")
