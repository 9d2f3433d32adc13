"""Work side by side: calls that share the cores, and results that are computed while earlier ones are used."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from typing import TypeVar

from joblib import Parallel, delayed, effective_n_jobs
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_info, threadpool_limits

THREADED_ROWS = 1000
"""Work on fewer rows than this is done by one thread: it mostly takes Python's time, which threads do not share."""

_T = TypeVar("_T")
_R = TypeVar("_R")


def in_parallel(
    calls: Sequence[Callable[[], _T]], n_jobs: int | None, n_rows: int, *, threads: bool = False
) -> list[_T]:
    """Return what some calls return, several at the same time, each of them computing with one thread.

    The matrices at hand are small: a second thread for each costs more than it computes, many times more on a busy
    machine.

    Parameters
    ----------
    calls : sequence of callable
    n_jobs : int or None
        As in joblib; None, outside of a `joblib.parallel_config`, is as many threads as libraries compute with, or one
        where there are fewer rows than 1,000.
    n_rows : int
        Rows that each call works on.
    threads : bool, default=False
        Never leave them to other processes.

    Returns
    -------
    list
        In the order of the calls.
    """
    if n_jobs is None and effective_n_jobs(None) == 1 and n_rows >= THREADED_ROWS:
        # Threads need no time to start; two of them do 1.5 times as much as one.
        n_jobs, threads = max((pool["num_threads"] for pool in threadpool_info()), default=1), True
    # Limits and filters here too: what threads restore, each for itself, gets mixed up.
    with threadpool_limits(limits=1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return Parallel(n_jobs, require="sharedmem" if threads else None)(delayed(_alone)(call) for call in calls)


@threadpool_limits.wrap(limits=1)  # OpenMP's limit is not inherited by other threads
def _alone(call: Callable[[], _T]) -> _T:
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
