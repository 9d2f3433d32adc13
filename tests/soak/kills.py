"""Kill pretraining and fits at the system calls that change their files, and compare what they end with.

Each case has a new folder. Its first run is killed at one of the calls of an undisturbed run: each has its turn, in an
order drawn at random. It is started again and killed at calls drawn at random, until one run ends before. That one must
give, bitwise, what the undisturbed run gave, without a warning, and leave the same files.

    python tests/soak/kills.py --kills 1000
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import random
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from killing import Call, Run, run, why_not

RESULTS = Path(__file__).parent / "results"
SAME = "same"

PASSING = [
    (r"\.tmp\w+$", ".tmp*"),  # safetensors' files before they are renamed
    (r"\.([0-9a-f]{32}-\d+-\d+|thread-\d+-pid-\d+)$", ".*"),  # joblib's
    (r"[0-9a-f]{32}", "*"),  # folders named by a hash
]
"""Parts of file names that differ from run to run or from one version to the next."""


@dataclass(frozen=True)
class Kill:
    """A system call that a process was killed at: before it, or after the first half of it."""

    call: str
    files: str
    half: bool

    def __str__(self) -> str:
        return f"{'in the middle of' * self.half or 'before'} {self.call} {self.files}"


@dataclass(frozen=True)
class Case:
    """All kills of one folder, and how it ended: "same", or what was wrong."""

    what: str
    kills: tuple[Kill, ...]
    outcome: str

    def __str__(self) -> str:
        return f"{self.what} {self.outcome}; killed {', '.join(map(str, self.kills))}"


def cases(n_kills: int, seed: int = 0) -> Iterator[Case]:
    """Yield cases until there were so many kills. Call it in a process that has imported nothing yet."""
    draw = random.Random(seed)
    works = _works()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        undisturbed = {what: _undisturbed(work, root / what) for what, work in works.items()}
        points = [(what, *point) for what, found in undisturbed.items() for point in _points(found)]
        draw.shuffle(points)
        points = _each_kind_first(points, undisturbed)
        for index, (what, *first) in enumerate(itertools.cycle(points)):
            if n_kills <= 0:
                return
            folder = root / f"{what} {index}"
            point, kills = first, []
            while (found := run(partial(works[what], folder), folder, kill_at=point[0], half=point[1])).killed:
                kills.append(_kill(found.calls[-1], point[1]))
                point = draw.choice(_points(undisturbed[what]))
            yield Case(what, tuple(kills), _outcome(found, folder, undisturbed[what], root / what))
            n_kills -= len(kills)


def _works() -> dict[str, Callable[[Path], Any]]:
    """Return what is to be killed: functions of a folder that return all that must be the same."""
    # Before anything is imported that starts threads, which a copy of this process would not have.
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    import numpy as np
    import torch

    from skdiec import DiffusionEmbeddedClustering, Pretraining, load_backbone, pretrain

    torch.set_num_threads(1)
    images = np.random.default_rng(0).integers(0, 256, (24, 4, 4), dtype=np.uint8)
    images[:12] //= 4
    # Two steps an epoch, each with a checkpoint.
    training = {"channels": (8,), "epochs": 2, "batch_size": 12, "checkpoint_seconds": 0}

    def train(folder: Path) -> Any:
        backbone = pretrain(images, folder, random_state=0, **training)
        return backbone.fingerprint(), load_backbone(folder).fingerprint(), backbone.recipe["loss"]

    def fit(folder: Path | None = None, *, keeping: str = "memory") -> Any:
        model = DiffusionEmbeddedClustering(
            2,
            layer="mid_block",
            timestep=50,
            pooling=1,
            n_init=2,
            max_epochs=3,
            backbone=Pretraining(str(folder) if folder and keeping == "folder" else None, **training),
            device="cpu",
            random_state=0,
            memory=str(folder) if folder and keeping == "memory" else None,
        ).fit(images)
        return model.labels_.tolist(), model.embedding_.tobytes(), model.backbone_.fingerprint()

    fit()  # once here, so that copies find imported what they need
    return {
        "pretrain(folder=)": train,
        "fit(backbone=Pretraining(folder=))": partial(fit, keeping="folder"),
        "fit(memory=)": fit,
    }


def _undisturbed(work: Callable[[Path], Any], folder: Path) -> Run:
    found = run(partial(work, folder), folder)
    if found.error:
        raise RuntimeError(f"an undisturbed run failed: {found.error}")
    return found


def _points(undisturbed: Run) -> list[tuple[int, bool]]:
    """Return where a run can be killed: before each of its calls, and in the middle of each write."""
    calls = enumerate(undisturbed.calls)
    return [(index, half) for index, call in calls for half in ((False, True) if call.name == "write" else (False,))]


def _each_kind_first(points: list[tuple[str, int, bool]], undisturbed: dict[str, Run]) -> list[tuple[str, int, bool]]:
    """Return the points so ordered that the first ones are of many kinds: calls, files, runs, half or not."""
    seen: Counter[tuple[str, str, bool]] = Counter()
    rounds = {}
    for what, index, half in points:
        call = undisturbed[what].calls[index]
        kind = (call.name, _lasting(Path(call.paths[-1]).name) if call.name in ("write", "rename") else what, half)
        rounds[what, index, half] = (seen[kind], call.name not in ("write", "rename"))
        seen[kind] += 1
    return sorted(points, key=lambda point: rounds[point])


def _kill(call: Call, half: bool) -> Kill:
    return Kill(call.name, " -> ".join(map(_lasting, call.paths)), half and call.name == "write")


def _lasting(path: str) -> str:
    for pattern, replacement in PASSING:
        path = re.sub(pattern, replacement, path)
    return path


def _outcome(found: Run, folder: Path, undisturbed: Run, its_folder: Path) -> str:
    if found.error:
        return f"failed: {found.error.splitlines()[-1]}".replace(str(folder), "FOLDER")
    if found.value != undisturbed.value:
        return "another result"
    if found.warnings != undisturbed.warnings:
        return f"warned: {'; '.join(found.warnings)}".replace(str(folder), "FOLDER")
    files, expected = _files(folder), _files(its_folder)
    return SAME if files == expected else f"other files: {', '.join(sorted(map(_lasting, files ^ expected)))}"


def _files(folder: Path) -> set[str]:
    """Return the names of all files of a folder, but for those of joblib's cache, which joblib never clears up."""
    paths = {path.relative_to(folder) for path in folder.rglob("*")}
    return {str(path) for path in paths if path.parts[0] != "joblib"}


def table(found: list[Case], seconds: float) -> list[str]:
    """Return the lines of the table of all cases, and those of what went wrong."""
    kills = [(case.what, kill, case.outcome == SAME) for case in found for kill in case.kills]
    lines = ["| killed | before or in | kills | in its middle | ended the same |", "|---|---|---|---|---|"]
    for what, call in sorted({(what, kill.call) for what, kill, _ in kills}):
        ends = [(kill.half, same) for other, kill, same in kills if (other, kill.call) == (what, call)]
        halves, same = map(sum, zip(*ends, strict=True))
        lines.append(f"| `{what}` | {call} | {len(ends)} | {halves} | {same} |")
    points = {(what, kill) for what, kill, _ in kills}
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers", "safetensors", "joblib"))
    return [
        *lines,
        "",
        f"{len(kills)} kills at {len(points)} places (a call of certain files, before it or in its middle), "
        f"{seconds:.0f} s. {sum(case.outcome == SAME for case in found)} of {len(found)} cases ended the same.",
        f"Versions: Python {platform.python_version()}, {libraries}.",
        "Command: `python tests/soak/kills.py --kills 1000`.",
        *(f"- {case}" for case in found if case.outcome != SAME),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=1000, help="kills to make at least (default: 1000)")
    parser.add_argument("--seed", type=int, default=0, help="of the order and of the random kills (default: 0)")
    arguments = parser.parse_args()
    if reason := why_not():
        sys.exit(reason)
    started, found = time.monotonic(), []
    for case in cases(arguments.kills, arguments.seed):
        found.append(case)
        if case.outcome != SAME:
            print(case, flush=True)
        print(f"\r{sum(len(case.kills) for case in found)} kills", end="", file=sys.stderr)
    lines = table(found, time.monotonic() - started)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "kills.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    sys.exit(any(case.outcome != SAME for case in found))


if __name__ == "__main__":
    main()
