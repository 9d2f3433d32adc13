"""Work side by side: calls that share the cores, and results that are computed while earlier ones are used.

Limits of threads and filters of warnings belong to the whole process, and fits may run in several of its threads. So a
limit is set by the first thread that wants it and undone by the last one. Settings of libraries that belong to a thread
are kept from the work of this library.
"""

from __future__ import annotations

import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import torch
from joblib import Parallel, delayed, effective_n_jobs
from sklearn import config_context
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import ThreadpoolController

_T = TypeVar("_T")
_R = TypeVar("_R")


class SharedContext:
    """A context of the process that several threads may be in at once: the first one enters it, the last one leaves it.

    Parameters
    ----------
    make : callable
        Returns the context.
    """

    def __init__(self, make: Callable[[], AbstractContextManager[Any]]) -> None:
        self._make, self._lock, self._inside = make, threading.Lock(), 0

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._context = self._make()
                self._context.__enter__()
            self._inside += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._context.__exit__(None, None, None)


class _Muted(warnings.catch_warnings):
    """A filter of warnings that can be undone."""

    def __enter__(self) -> Any:
        entered = super().__enter__()
        warnings.simplefilter("ignore", ConvergenceWarning)
        return entered


one_blas_thread = SharedContext(lambda: ThreadpoolController().select(user_api="blas").limit(limits=1))
"""Products of matrices have one thread: their last bits would depend on how many there are, which other threads of the
process may be changing."""

muted = SharedContext(_Muted)
"""Without scikit-learn's warnings of k-means runs, of which a fit has many; it tells once, of its result."""


@contextmanager
def library_defaults() -> Iterator[None]:
    """Keep what a program has set for its own use of scikit-learn, numpy and torch from this library's use of them."""
    torch_threads()
    with (
        config_context(transform_output="default", array_api_dispatch=False),
        np.errstate(divide="warn", over="warn", under="ignore", invalid="warn"),
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast("cpu", enabled=False),
        torch.autocast("cuda", enabled=False) if torch.cuda.is_available() else nullcontext(),
        # Only where it is another one: this mode costs each call of torch some time.
        torch.device("cpu") if torch.get_default_device().type != "cpu" else nullcontext(),
    ):
        yield


_SETTING_THREADS = threading.Lock()
"""Held while torch's number of threads is set for some: for a moment threads that are new to torch would get it too."""


def torch_threads() -> int:
    """Return how many threads torch computes with in this thread, and keep it to that number from now on."""
    with _SETTING_THREADS:
        return torch.get_num_threads()


def torch_pool(n_workers: int, threads_each: int) -> ThreadPoolExecutor:
    """Make a pool whose threads let torch compute with so many threads each; all others keep what they have."""
    pool = ThreadPoolExecutor(n_workers)
    all_started = threading.Barrier(n_workers)

    def settle() -> None:
        torch.get_num_threads()  # else the first layer would set this thread to the process's number
        torch.set_num_threads(threads_each)
        all_started.wait()  # else one worker could serve several of these calls

    with _SETTING_THREADS:
        threads = torch.get_num_threads()
        for started in [pool.submit(settle) for _ in range(n_workers)]:
            started.result()
        torch.set_num_threads(threads)  # also what threads that are new to torch get
    return pool


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
        As in joblib; None, outside of a `joblib.parallel_config`, is as many threads as libraries compute with. More
        than there are calls are not used.
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
    if n_jobs is not None:
        n_jobs = min(n_jobs, max(1, len(calls)))
    shared = libraries if threads or effective_n_jobs(n_jobs) == 1 else None  # not sent to other processes
    with one_blas_thread, muted:
        jobs = (delayed(_alone)(call, shared) for call in calls)
        return Parallel(n_jobs, require="sharedmem" if threads else None)(jobs)


def useful_jobs(n_jobs: int | None) -> int | None:
    """Return a number of jobs as joblib takes it, at most as many as the machine or joblib's backend has workers."""
    return n_jobs if n_jobs is None else min(n_jobs, effective_n_jobs(-1))


def _alone(call: Callable[[], _T], libraries: ThreadpoolController | None) -> _T:
    """Call with one thread; finding this process's numerical libraries takes as long as two k-means of few rows."""
    libraries = libraries or ThreadpoolController()
    # OpenMP's limit is each thread's own: neither inherited from the caller nor seen by others.
    with one_blas_thread, muted, libraries.select(user_api="openmp").limit(limits=1):
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
