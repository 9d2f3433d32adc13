"""What came of a case, and what is wrong with it."""

import contextlib
import copy
import functools
import importlib
import math
import os
import random
import re
import resource
import signal
import time
import traceback
import warnings
from collections import deque
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from sklearn.exceptions import NotFittedError

from skdiec import Pretraining, pretrain

REFUSAL_SECONDS = 1.0
MESSAGE_LENGTH = 2000
REFUSALS = (ValueError, TypeError, ImportError, NotFittedError)

TRAINING = {
    "pretraining": [("skdiec.backbones.trainer", "Trainer.run")],
    "training": [("skdiec._estimator.training", "train"), ("skdiec.training", "train")],
}
"""What is entered when training begins: the first of each that there is. A test sees to it that both are found."""


@dataclass(frozen=True)
class Verdict:
    """What came of a case.

    Attributes
    ----------
    outcome : {"accepted", "rejected", "not built"}
        "not built" where the expressions of the case fail before skdiec is called.
    problem : str
        What is wrong with it; "" for nothing.
    error : str
        Type of the exception.
    where : str
        Innermost line of skdiec that the exception passed.
    message : str
    seconds : float
    """

    outcome: str
    problem: str = ""
    error: str = ""
    where: str = ""
    message: str = ""
    seconds: float = 0.0


class _Hang(BaseException):
    """Raised by the alarm: no handler of plain exceptions catches it."""


@contextlib.contextmanager
def _alarm(seconds):
    def ring(number, frame):
        raise _Hang(f"more than {seconds:g} s")

    previous = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


@contextlib.contextmanager
def limited_memory(more=4 * 2**30):
    """Let this process have so many bytes more than it has, where the system can tell: gigabytes become MemoryError."""
    if not os.path.exists("/proc/self/statm"):
        yield
        return
    with open("/proc/self/statm") as file:
        held = int(file.read().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (held + more, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


@contextlib.contextmanager
def watched_training():
    """Gives a list that the name of each training that is entered is added to."""
    entered, patched = [], []

    def watch(owner, name, label):
        original = getattr(owner, name)

        @functools.wraps(original)
        def call(*arguments, **keywords):
            entered.append(label)
            return original(*arguments, **keywords)

        patched.append((owner, name, original))
        setattr(owner, name, call)

    for label, places in TRAINING.items():
        for module, path in places:
            *parents, name = path.split(".")
            owner = functools.reduce(lambda at, part: getattr(at, part, None), parents, importlib.import_module(module))
            if getattr(owner, name, None) is not None:
                watch(owner, name, label)
                break
        else:
            raise AssertionError(f"the judge finds no {label}: see TRAINING")
    try:
        yield entered
    finally:
        for owner, name, original in patched:
            setattr(owner, name, original)


@contextlib.contextmanager
def _working_in(folder):
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def judge(case, bench, *, hang_seconds=20.0):
    """Run a case and say what came of it.

    Parameters
    ----------
    case : Case
    bench : Bench
    hang_seconds : float, default=20.0
        A call that takes longer has hung.

    Returns
    -------
    Verdict
    """
    verdict = _judge(case, bench, hang_seconds)
    if verdict.problem == "slow":  # the machine may have been busy, or a library was imported
        verdict = _judge(case, bench, hang_seconds)
    return verdict


def _judge(case, bench, hang_seconds):
    bench.clear()
    with _working_in(bench.here), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with _alarm(hang_seconds):
                call, model = _prepared(case, bench)
                X = bench.evaluate(case.X)
        except (Exception, _Hang) as error:
            return Verdict("not built", error=type(error).__name__, message=_text(error))
        before = _surroundings(bench)
        attributes = {} if model is None else dict(vars(model))
        started = time.perf_counter()
        error, result = None, None
        with watched_training() as entered:
            try:
                with _alarm(hang_seconds):
                    result = call(X)
            except BaseException as raised:
                if isinstance(raised, KeyboardInterrupt):
                    raise
                error = raised
            seconds = time.perf_counter() - started
        problems = _changed(before, _surroundings(bench))
        if case.parameters.get("random_state") in ("np.random", "None"):  # numpy's global generator is asked for
            problems = [problem for problem in problems if problem != "numpy's random state changed"]
        if not {"memory", "folder"} & set(case.parameters) and any(bench.here.iterdir()):
            problems.append("files are left in the working directory")
        if not _same(X, bench.evaluate(case.X)):
            problems.append("the caller's X was changed")
        if error is not None:
            verdict = _refusal(case, bench, error, entered, seconds, attributes, model, problems)
            error.__traceback__ = None  # its frames hold the arrays of the case
            return verdict
        try:
            with _alarm(hang_seconds):
                problems += _wrong_results(case, bench, model, result, attributes)
        except (Exception, _Hang) as raised:
            name = type(raised).__name__
            return Verdict("accepted", "fails on what it accepted", name, _where(raised), _text(raised), seconds)
        return Verdict("accepted", problems[0] if problems else "", seconds=seconds)


def _prepared(case, bench):
    """Return what is called with X, and the estimator that it belongs to."""
    if case.call == "pretrain":
        values = {name: bench.evaluate(value) for name, value in case.parameters.items()}
        return functools.partial(pretrain, **{**bench.names["QUICK_PRETRAIN"], **values}), None
    if case.fitted:
        model = copy.copy(bench.fitted(case.fitted))
        model.set_params(**{name: bench.evaluate(value) for name, value in case.parameters.items()})
    else:
        model = bench.estimator(case.parameters)
    return getattr(model, case.call), model


def _surroundings(bench):
    """What no call may change."""
    name, state, *rest = np.random.get_state()  # noqa: NPY002
    threads = [(library["filepath"], library["num_threads"]) for library in bench.libraries.info()]
    return {
        "numpy's random state": (name, state.tobytes(), rest),
        "torch's random state": torch.get_rng_state().numpy().tobytes(),
        "random's state": random.getstate(),
        "torch's threads": torch.get_num_threads(),
        "the libraries' threads": threads,
        "gradients": torch.is_grad_enabled(),
        "the default type": torch.get_default_dtype(),
        "the working directory": os.getcwd(),
        "numpy's error state": np.geterr(),
    }


def _changed(before, after):
    return [f"{name} changed" for name in before if before[name] != after[name]]


def _same(one, other):
    """Whether two evaluations of an expression are equal, as far as they are numbers."""
    if isinstance(one, pd.DataFrame):
        one, other = one.select_dtypes("number").to_numpy(), other.select_dtypes("number").to_numpy()
    if isinstance(one, np.ndarray) and one.dtype.kind in "biufc":
        return np.array_equal(np.asarray(one), np.asarray(other), equal_nan=True)
    if isinstance(one, torch.Tensor) and one.layout == torch.strided and one.device.type == "cpu":
        return one.is_quantized or one.is_nested or torch.allclose(one * 1.0, other * 1.0, 0, 0, equal_nan=True)
    if isinstance(one, (list, tuple)) and one and isinstance(one[0], np.ndarray):
        return len(one) == len(other) and all(map(_same, one, other))
    return True


def _text(error):
    try:
        return str(error)
    except Exception as problem:
        return f"<no message: {type(problem).__name__}>"


def _where(error):
    frames = traceback.extract_tb(error.__traceback__)
    inside = [frame for frame in frames if f"{os.sep}skdiec{os.sep}" in frame.filename]
    return "" if not inside else f"{inside[-1].filename.split('/skdiec/')[-1]}:{inside[-1].lineno} {inside[-1].name}"


def _refusal(case, bench, error, entered, seconds, attributes, model, problems):
    """Judge an exception."""
    message = _text(error)
    if isinstance(error, _Hang):
        problems = ["hangs"]
    elif _raised_by_the_caller(error):
        pass
    elif not isinstance(error, REFUSALS):
        problems = ["an error of another type", *problems]
    else:
        if case.call in ("fit", "pretrain", "fit_transform") and entered:
            problems.append(f"refused after {entered[0]} began")
        if not _names_what_is_wrong(case, bench, error, message):
            problems.append("the message names no parameter")
        if len(message) > MESSAGE_LENGTH:
            problems.append("the message is too long")
        if model is not None and not _unchanged(attributes, vars(model)):
            problems.append("the refused call changed the estimator")
        waiting = max(1.0, os.getloadavg()[0] / os.cpu_count())  # a busy machine is that much slower
        if seconds > waiting * REFUSAL_SECONDS:
            problems.append("slow")
    problem = problems[0] if problems else ""
    return Verdict("rejected", problem, type(error).__name__, _where(error), message, seconds)


def _raised_by_the_caller(error):
    """Whether an expression of the case raised it, such as a generator when it was read."""
    return any(frame.filename == "<string>" for frame in traceback.extract_tb(error.__traceback__))


def _unchanged(before, after):
    return before.keys() == after.keys() and all(after[name] is value for name, value in before.items())


def _names_what_is_wrong(case, bench, error, message):
    if isinstance(error, NotFittedError):
        return not case.fitted
    names = set(case.parameters)
    names |= set(re.findall(r"\w+", case.parameters.get("backbone", ""))) & set(Pretraining().get_params())
    if "image_shape" in names:  # makes images of rows, whose range may have to be stated
        names.add("value_range")
    if case.odd:
        names |= {"X", "n_samples", "features", "image_shape", "value_range"}
    if any(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", message) for name in names):
        return True
    if "image files" in message and case.odd:
        return True
    # scikit-learn's own words for X, which its checks of estimators ask for.
    if case.odd and ("sample(s)" in message or "feature(s)" in message or "Complex data not supported" in message):
        return True
    return bench.files.name in message  # a path of a file that the case made


def _wrong_results(case, bench, model, result, attributes):
    """List what is wrong with the results of an accepted call."""
    problems = []
    if case.call == "pretrain":
        values = result.network.state_dict().values()
        if not all(bool(value.isfinite().all()) for value in values):
            problems.append("weights are not finite")
        return problems
    parameters = model.get_params(deep=False)
    if any(parameters[name] is not attributes[name] for name in parameters):
        problems.append("a parameter was overwritten")
    if case.call not in ("fit", "fit_transform"):
        if not _unchanged(attributes, vars(model)):
            problems.append("the call changed the estimator")
        return problems + _wrong_outcome(case.call, result, model, _count(bench.evaluate(case.X)))
    n_clusters, labels, embedding = int(parameters["n_clusters"]), model.labels_, model.embedding_
    n_samples = _count(bench.evaluate(case.X)) or len(labels)
    checks = {
        "labels_ is not int32 of shape (n,)": labels.dtype == np.int32 and labels.shape == (n_samples,),
        "labels_ has a label out of range": bool(((labels >= 0) & (labels < n_clusters)).all()),
        "embedding_ is not float32 of shape (n, d)": embedding.dtype == np.float32
        and embedding.shape == (n_samples, model.n_components_),
        "embedding_ is not finite": bool(np.isfinite(embedding).all()),
        "cluster_centers_ is of another shape": model.cluster_centers_.shape == (n_clusters, model.n_components_),
        "cluster_centers_ is not finite": bool(np.isfinite(model.cluster_centers_).all()),
        "value_range_ is not finite": all(map(math.isfinite, model.value_range_)),
        "image_shape_ is not three numbers": len(model.image_shape_) == 3,
    }
    problems += [problem for problem, holds in checks.items() if not holds]
    if problems:
        return problems
    proba = model.predict_proba(bench.evaluate(case.X))
    problems += _wrong_outcome("predict_proba", proba, model, n_samples)
    if not problems:
        highest = np.sort(proba, axis=1)
        clear = np.ones(len(proba), bool) if n_clusters == 1 else highest[:, -1] - highest[:, -2] > 1e-4
        if (proba.argmax(axis=1) != labels)[clear].any():
            problems.append("predict of the training images is not labels_")
    return problems


def _wrong_outcome(call, result, model, n_samples):
    if call == "score":
        return [] if isinstance(result, float) and math.isfinite(result) else ["score is no finite float"]
    n_clusters, dimensions = model.cluster_centers_.shape
    kind = {"predict": np.int32, "predict_proba": np.float64, "transform": np.float32}[call]
    shape = {"predict": (), "predict_proba": (n_clusters,), "transform": (dimensions,)}[call]
    if result.dtype != kind or result.shape[1:] != shape or len(result) != (n_samples or len(result)):
        return [f"{call} returns another type or shape"]
    if not np.isfinite(result).all():
        return [f"{call} is not finite"]
    if call == "predict" and not ((result >= 0) & (result < n_clusters)).all():
        return ["predict has a label out of range"]
    if call == "predict_proba" and not np.allclose(result.sum(axis=1), 1, atol=1e-6):
        return ["rows of predict_proba do not sum to 1"]
    return []


def _count(X):
    """How many images X holds; None where the judge does not know."""
    if isinstance(X, (np.ndarray, torch.Tensor, pd.DataFrame, pd.Series, list, tuple, deque)):
        return len(X)
    return None
