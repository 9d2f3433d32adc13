"""Judges a long row of odd calls in worker processes, and saves what fails.

python tests/soak/fuzz.py --cases 100000 --jobs 2 --seed 0

A worker that crashes or hangs is replaced, and its case counts as a failure. ``--number`` repeats one case of the row.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import faulthandler
import multiprocessing
import os
import platform
import re
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable
from multiprocessing import connection
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import torch  # noqa: E402
from fuzzing import CASES, Bench, Verdict, judge, limited_memory, numbered_case  # noqa: E402
from threadpoolctl import threadpool_limits  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "fuzz.md"


class Worker:
    """A process that judges cases by their numbers.

    Parameters
    ----------
    seed : int
    hang_seconds : float
    """

    def __init__(self, seed: int, hang_seconds: float) -> None:
        self._seed, self._hang_seconds = seed, hang_seconds
        self.number: int | None = None
        self._start()

    def _start(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="skdiec-fuzz-", ignore_cleanup_errors=True)
        self.pipe, other = multiprocessing.Pipe()
        arguments = (other, self._folder.name, self._seed, self._hang_seconds)
        self._process = multiprocessing.get_context("fork").Process(target=_work, args=arguments)
        self._process.start()
        other.close()

    def begin(self, number: int) -> None:
        """Have a case judged; the pipe is ready when it is done, or when the process has ended."""
        self.number = number
        with contextlib.suppress(BrokenPipeError):
            self.pipe.send(number)

    def result(self) -> Verdict:
        """What came of it. A new process takes the place of one that has ended."""
        try:
            return self.pipe.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            log = (Path(self._folder.name) / "faults").read_text(errors="replace")
            lines = re.findall(r'File ".*/skdiec/(\S+)", line (\d+) in (\w+)', log)
            where = "{}:{} {}".format(*lines[0]) if lines else ""
            problem = "hangs" if "Timeout" in log else f"the process ended with {self._process.exitcode}"
            self._folder.cleanup()
            self._start()
            return Verdict("rejected", problem, "", where, log[:500])

    def end(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()
        self._folder.cleanup()


def _work(pipe: connection.Connection, folder: str, seed: int, hang_seconds: float) -> None:
    log = (Path(folder) / "faults").open("w")
    faulthandler.enable(log)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    null = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):  # progress bars and logs
        os.dup2(null, descriptor)
    torch.set_num_threads(1)  # a worker has one core
    bench = Bench(Path(folder))
    with limited_memory(), threadpool_limits(1):
        while True:
            number = pipe.recv()
            # Ends the process where the alarm of the judge does not get through: in compiled code.
            faulthandler.dump_traceback_later(3 * hang_seconds + 10, exit=True, file=log)
            case = numbered_case(seed, number)[1]
            try:
                verdict = judge(case, bench, hang_seconds=hang_seconds)
            except Exception as error:
                verdict = Verdict("rejected", "the judge failed", type(error).__name__, message=traceback.format_exc())
            pipe.send(verdict)
            faulthandler.cancel_dump_traceback_later()


class Tally:
    """What came of the cases so far.

    Attributes
    ----------
    counts : Counter of (kind, outcome)
    unbuilt : Counter of str
        Why cases were not built.
    failures : dict of (problem, error, where, first words) to (count, number of the shortest case, its verdict)
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self.counts, self.unbuilt, self.failures = collections.Counter(), collections.Counter(), {}

    def add(self, number: int, verdict: Verdict) -> None:
        """Count a case, and tell of the first failure of its kind."""
        kind, case = numbered_case(self._seed, number)
        self.counts[kind, verdict.outcome] += 1
        if verdict.outcome == "not built":
            self.unbuilt[f"{verdict.error}: {verdict.message[:80]}"] += 1
        if verdict.problem:
            # One line may raise for many reasons, and its messages be too long for one.
            words = "" if "long" in verdict.problem else " ".join(re.findall(r"[A-Za-z]+", verdict.message)[:5])
            key = (verdict.problem, verdict.error, verdict.where, words)
            count, shortest, its = self.failures.get(key, (0, number, verdict))
            if len(str(case)) < len(str(numbered_case(self._seed, shortest)[1])):
                shortest, its = number, verdict
            self.failures[key] = (count + 1, shortest, its)
            if not count:
                _say(f"{number}: {': '.join(filter(None, key))}\n    {case}")


def run(tally: Tally, numbers: Iterable[int], n_jobs: int, seed: int, hang_seconds: float) -> None:
    """Judge cases side by side."""
    remaining, started, done = iter(numbers), time.monotonic(), 0
    workers = [Worker(seed, hang_seconds) for _ in range(n_jobs)]
    try:
        for worker, number in zip(workers, remaining, strict=False):
            worker.begin(number)
        while busy := {worker.pipe: worker for worker in workers if worker.number is not None}:
            for pipe in connection.wait(list(busy)):
                worker = busy[pipe]
                tally.add(worker.number, worker.result())
                worker.number = next(remaining, None)
                if worker.number is not None:
                    worker.begin(worker.number)
                done += 1
                if done % 1000 == 0:
                    rate = done / (time.monotonic() - started)
                    _say(f"{done} cases, {rate:.1f} a second, {len(tally.failures)} kinds of failure")
    finally:
        for worker in workers:
            worker.end()


def report(tally: Tally, seed: int, command: str, seconds: float) -> str:
    """The results as Markdown."""
    libraries = {name: __import__(name).__version__ for name in ("skdiec", "torch", "diffusers", "sklearn", "numpy")}
    outcomes = ("accepted", "rejected", "not built")
    total = sum(tally.counts.values())
    lines = [
        "# Fuzzing",
        "",
        f"`{command}`: {total:,} cases in {seconds / 60:.0f} minutes, {total / seconds:.0f} a second.",
        "",
        f"Python {platform.python_version()}, " + ", ".join(f"{name} {version}" for name, version in libraries.items()),
        "",
        f"| cases | {' | '.join(outcomes)} |",
        "|---" * 4 + "|",
        *[f"| {kind} | {' | '.join(f'{tally.counts[kind, outcome]:,}' for outcome in outcomes)} |" for kind in CASES],
        "",
        f"{sum(count for count, _, _ in tally.failures.values()):,} failures of {len(tally.failures)} kinds.",
    ]
    for (problem, error, where, _), (count, number, verdict) in sorted(
        tally.failures.items(), key=lambda item: -item[1][0]
    ):
        message = " ".join(verdict.message.split())[:200]
        lines += [
            "",
            f"- **{problem}**, {count:,} times: {error} at `{where}`. Case {number}:",
            f"  `{numbered_case(seed, number)[1]}`",
            *([f"  {message}"] if message else []),
        ]
    return "\n".join(lines) + "\n"


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> int:
    """Run the command line; the exit status is 1 where a case failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--hang-seconds", type=float, default=20.0)
    parser.add_argument("--number", type=int, help="repeat this case alone, in this process")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.number is not None:
        torch.set_num_threads(1)
        case = numbered_case(options.seed, options.number)[1]
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, limited_memory(), threadpool_limits(1):
            _say(f"{case}\n{judge(case, Bench(folder), hang_seconds=options.hang_seconds)}")
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    started, tally = time.monotonic(), Tally(options.seed)
    with contextlib.suppress(KeyboardInterrupt):  # what was done till then is saved
        numbers = range(options.first, options.first + options.cases)
        run(tally, numbers, options.jobs, options.seed, options.hang_seconds)
    command = f"python tests/soak/fuzz.py --cases {options.cases} --jobs {options.jobs} --seed {options.seed}"
    text = report(tally, options.seed, command, time.monotonic() - started)
    for reason, count in tally.unbuilt.most_common(5):
        _say(f"not built, {count} times: {reason}")
    options.results.parent.mkdir(exist_ok=True)
    options.results.write_text(text)
    _say(text)
    return int(bool(tally.failures))


if __name__ == "__main__":
    sys.exit(main())
