"""What scikit-learn's callbacks are told of a fit: its stages and their steps, and how long each stage took."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

try:
    from sklearn.callback import CallbackSupportMixin, with_callbacks
except ImportError:  # scikit-learn has callbacks from 1.9 on

    class CallbackSupportMixin:  # type: ignore[no-redef] # either of them
        """Nothing: this scikit-learn has no callbacks."""

    def with_callbacks(method: Callable) -> Callable:
        """Return the method as it is: this scikit-learn has no callbacks."""
        return method


if TYPE_CHECKING:
    from sklearn.base import BaseEstimator
    from sklearn.callback import CallbackContext

__all__ = ["OF_SKLEARN", "CallbackSupportMixin", "Stages", "Steps", "with_callbacks"]

OF_SKLEARN = ("_skl_callbacks", "_skl_callbacks_to_teardown", "_callback_fit_ctx", "_parent_callback_ctx")
"""Attributes that scikit-learn sets on an estimator for its callbacks."""

Attributes = Callable[[], Mapping[str, Any]]


class Stages:
    """The stages of one fit, each of which callbacks see as a task below that of the fit.

    Parameters
    ----------
    estimator : DiffusionEmbeddedClustering
        The user's, which callbacks get.
    X, y : object
        What `fit` was given, which callbacks get.
    n_stages : int

    Attributes
    ----------
    seconds : dict of str to float
        Wall time of each stage that ended.
    """

    def __init__(self, estimator: BaseEstimator, X: Any, y: Any, n_stages: int) -> None:
        self.seconds: dict[str, float] = {}
        self._shown = {"estimator": estimator, "X": X, "y": y}
        self._root: CallbackContext | None = None
        if hasattr(estimator, "_init_callback_context"):
            self._root = estimator._init_callback_context(max_subtasks=n_stages)
            self._root.call_on_fit_task_begin(**self._shown)

    @contextmanager
    def stage(self, name: str, n_steps: int | None = 0) -> Iterator[Steps]:
        """Time a stage, of so many steps; None where their number is not known."""
        started = time.perf_counter()
        context = None
        if self._root is not None:
            context = self._root.subcontext(name, max_subtasks=n_steps)
            context.call_on_fit_task_begin(**self._shown)
        steps = Steps(context, n_steps, self._shown)
        yield steps
        steps.close()
        self.seconds[name] = time.perf_counter() - started
        if context is not None:
            context.call_on_fit_task_end(**self._shown)

    def end(self, attributes: Attributes) -> None:
        """Say that the fit has ended, with the attributes of the fitted estimator."""
        if self._root is not None:
            self._root.call_on_fit_task_end(**self._shown, reconstruction_attributes=attributes)


class Steps:
    """The steps of a stage, each of which callbacks see as a task below that of the stage.

    Parameters
    ----------
    context : CallbackContext or None
        Of the stage; None where this scikit-learn has no callbacks.
    n_steps : int or None
        Steps that callbacks see. What has more of them is told of in so many parts of about equal size. None is a step
        for each report.
    shown : dict
        What callbacks get: estimator, X and y.
    """

    def __init__(self, context: CallbackContext | None, n_steps: int | None, shown: Mapping[str, Any]) -> None:
        self._context, self._n_steps, self._shown = context, n_steps, shown
        self._n_ended = 0
        self._open: CallbackContext | None = None
        if n_steps:
            self._begin()

    def report(self, done: int, total: int, attributes: Attributes | None = None, *, is_last: bool = False) -> bool:
        """Say how much is done.

        Parameters
        ----------
        done, total : int
        attributes : callable, default=None
            Returns those of an estimator that would be fitted if the stage ended here.
        is_last : bool, default=False
            Nothing follows, even where `done` is less than `total`.

        Returns
        -------
        bool
            Whether a callback wants the stage to end here.
        """
        if self._context is None:
            return False
        if self._n_steps is None:
            self._begin()
            return self._end(attributes)
        stop = False
        while self._open is not None and self._n_ended < done * self._n_steps // total:
            stop |= self._end(attributes)
            if not (stop or is_last) and self._n_ended < self._n_steps:
                self._begin()
        return stop

    def close(self) -> None:
        """End the step that is open, in a stage whose result was in a cache or a folder."""
        if self._open is not None:
            self._end(None)

    def _begin(self) -> None:
        if self._context is not None:
            self._open = self._context.subcontext("step")
            self._open.call_on_fit_task_begin(**self._shown)

    def _end(self, attributes: Attributes | None) -> bool:
        context, self._open = self._open, None
        self._n_ended += 1
        if context is None:  # nothing is open
            return False
        return bool(context.call_on_fit_task_end(**self._shown, reconstruction_attributes=attributes))
