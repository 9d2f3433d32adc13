"""Work side by side: calls that share the cores, and results that are computed while earlier ones are used."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from typing import TypeVar

from joblib import Parallel, delayed, effective_n_jobs
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import ThreadpoolController

_T = TypeVar("_T")
_R = TypeVar("_R")


def in_parallel(
    calls: Sequence[Callable[[], _T]], n_jobs: int | None, *, threads: bool = False, busy: bool = False
) -> list[_T]:
    """Return what some calls return, several at the same time, each of them computing with one thread.

    The matrices at hand are small: a second thread for each costs more than it computes, many times more on a busy
    machine.

    Parameters
    ----------
    calls : sequence of callable
    n_jobs : int or None
        As in joblib; None, outside of a `joblib.parallel_config`, is as many threads as libraries compute with.
    threads : bool, default=False
        Never leave them to other processes.
    busy : bool, default=False
        Other work has the cores: None is one thread then.

    Returns
    -------
    list
        In the order of the calls.
    """
    libraries = ThreadpoolController()
    if n_jobs is None and effective_n_jobs(None) == 1 and not busy:
        # Threads need no time to start; two of them do 1.5 times as much as one.
        n_jobs, threads = max((library["num_threads"] for library in libraries.info()), default=1), True
    shared = libraries if threads or effective_n_jobs(n_jobs) == 1 else None  # not sent to other processes
    # Limits and filters here too: what threads restore, each for itself, gets mixed up.
    with libraries.limit(limits=1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        jobs = (delayed(_alone)(call, shared) for call in calls)
        return Parallel(n_jobs, require="sharedmem" if threads else None)(jobs)


def _alone(call: Callable[[], _T], libraries: ThreadpoolController | None) -> _T:
    """Call with one thread; finding this process's numerical libraries takes as long as two k-means of few rows."""
    with (libraries or ThreadpoolController()).limit(limits=1):  # OpenMP's limit is not inherited by other threads
        return call()


def in_order(pool: Executor, function: Callable[[_T], _R], items: Iterable[_T], *, ahead: int) -> Iterator[_R]:
    """Yield the results for all items, while a pool works on those of the next ones."""
    pending: deque[Future[_R]] = deque()
    for item in items:
        pending.append(pool.submit(function, item))
        if len(pending) > ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()
