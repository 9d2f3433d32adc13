"""Odd calls: refused with a message that helps, or with results that hold. See `fuzzing`; `soak/fuzz.py` runs more."""

import inspect
import os
import time
from collections import Counter

import numpy as np
import pytest
import torch
from fuzzing import CASES, OWN, OWN_OF_PRETRAIN, Bench, Case, cases, judge, limited_memory
from fuzzing.cases import AUTO, FITTED
from hypothesis import HealthCheck, given, settings
from threadpoolctl import threadpool_limits

from skdiec import DiffusionEmbeddedClustering, pretrain

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")  # of files that cases leave open

N_EXAMPLES = {
    "parameters": 150,
    "inputs": 120,
    "files": 60,
    "backbones": 60,
    "pretraining": 40,
    "later calls": 90,
}
"""How many are drawn: a sample. `soak/fuzz.py` judges as many as it is told to, a hundred thousand without a word."""


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """One for all cases, whose fits are small: with one thread they take a third of the time."""
    before = torch.get_num_threads()
    with limited_memory(), threadpool_limits(1):
        torch.set_num_threads(1)
        yield Bench(tmp_path_factory.mktemp("fuzz"))
        torch.set_num_threads(before)


# The cases


@pytest.mark.parametrize("kind", CASES)
def test_odd_calls_are_refused_well_or_give_valid_results(kind, bench):
    verdicts = {}

    @settings(max_examples=N_EXAMPLES[kind], suppress_health_check=list(HealthCheck))
    @given(cases(kind))
    def check(case):
        if str(case) not in verdicts:
            verdicts[str(case)] = judge(case, bench)
        verdict = verdicts[str(case)]
        assert not verdict.problem, f"{case}\n{verdict}"

    check()
    outcomes = Counter(verdict.outcome for verdict in verdicts.values())
    assert len(verdicts) > 0.4 * N_EXAMPLES[kind]
    assert outcomes["accepted"] > 0.1 * len(verdicts)
    assert outcomes["rejected"] > 0.2 * len(verdicts)
    assert outcomes["not built"] < 0.2 * len(verdicts)


def test_every_parameter_is_tried():
    estimator = set(inspect.signature(DiffusionEmbeddedClustering).parameters)
    assert estimator == set(OWN)
    assert set(inspect.signature(pretrain).parameters) - {"X"} == set(OWN_OF_PRETRAIN)


@pytest.mark.parametrize("name", FITTED)
def test_every_fit_that_later_calls_start_from_works(name, bench):
    X, parameters = FITTED[name]
    assert judge(Case("fit", X, parameters), bench).outcome == "accepted"
    assert judge(Case("predict", X, fitted=name), bench).outcome == "accepted"


# The judge: what it is to find is done on purpose


@pytest.fixture
def fitting(monkeypatch):
    """Puts a function in the place of the estimator's `fit`, which it is called with."""

    def put(function):
        original = DiffusionEmbeddedClustering.fit
        monkeypatch.setattr(
            DiffusionEmbeddedClustering, "fit", lambda self, X, y=None: function(self, X, lambda: original(self, X))
        )

    return put


def raising(error):
    def fit(model, X, go):
        raise error

    return fit


def after(action):
    """A fit that does one thing more."""

    def fit(model, X, go):
        go()
        action(model, X)
        return model

    return fit


def set_value(name, row, value):
    return after(lambda model, X: getattr(model, name).__setitem__(row, value))


def slow_refusal(model, X, go):
    time.sleep(1.1)
    raise ValueError("alpha is wrong")


def half_refusal(model, X, go):
    model.n_features_in_ = 3
    raise ValueError("alpha is wrong")


def late_refusal(model, X, go):
    before = dict(vars(model))
    go()
    vars(model).clear()
    vars(model).update(before)
    raise ValueError("alpha is wrong")


WRONG = {
    "an error of another type": raising(KeyError("alpha")),
    "the message names no parameter": raising(ValueError("alphabet")),
    "the message is too long": raising(ValueError("alpha" + " " * 2000)),
    "the refused call changed the estimator": lambda model, X, go: (
        setattr(model, "n_features_in_", 3) or float("alpha")
    ),
    "slow": slow_refusal,
    "refused after training began": late_refusal,
    "hangs": after(lambda model, X: time.sleep(60)),
    "labels_ has a label out of range": set_value("labels_", 0, 3),
    "labels_ is not int32 of shape (n,)": after(lambda model, X: setattr(model, "labels_", model.labels_[1:])),
    "embedding_ is not finite": set_value("embedding_", 0, np.nan),
    "cluster_centers_ is not finite": set_value("cluster_centers_", 0, np.inf),
    "predict of the training images is not labels_": after(
        lambda model, X: setattr(model, "labels_", ((model.labels_ + 1) % 3).astype(np.int32))
    ),
    "a parameter was overwritten": after(lambda model, X: setattr(model, "alpha", 2.0)),
    "the caller's X was changed": after(lambda model, X: X.fill(0)),
    "numpy's random state changed": after(lambda model, X: np.random.rand()),  # noqa: NPY002
    "torch's random state changed": after(lambda model, X: torch.rand(1)),
    "torch's threads changed": after(lambda model, X: torch.set_num_threads(2)),
    "files are left in the working directory": after(lambda model, X: open("a.txt", "w").close()),
    "fails on what it accepted": after(lambda model, X: delattr(model, "_cell")),
}
CASE = Case("fit", "images(16, 8, 8)", {"alpha": "1.5"}, odd=False)


@pytest.mark.parametrize("problem", WRONG)
def test_the_judge_finds(problem, fitting, bench, monkeypatch):
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    assert judge(CASE, bench).problem == ""
    fitting(WRONG[problem])
    assert judge(CASE, bench, hang_seconds=2.5).problem == problem
    torch.set_num_threads(1)


@pytest.mark.parametrize("parameters", [{}, AUTO], ids=["training", "pretraining"])
def test_the_judge_sees_training(parameters, fitting, bench):
    fitting(late_refusal)
    problem = judge(Case("fit", CASE.X, {**parameters, **CASE.parameters}, odd=False), bench).problem
    assert problem == f"refused after {'pretraining' if parameters else 'training'} began"


def test_the_judge_lets_a_message_name_a_setting_of_pretrain(fitting, bench):
    fitting(raising(ValueError("epochs must be more")))
    named = {"backbone": "Pretraining(epochs=1)"}
    other = {"backbone": "Pretraining(channels=(8,))"}
    assert judge(Case("fit", CASE.X, named, odd=False), bench).problem == ""
    assert judge(Case("fit", CASE.X, other, odd=False), bench).problem == "the message names no parameter"


def test_the_judge_lets_a_message_name_a_file(fitting, bench):
    fitting(lambda model, X, go: raising(ValueError(f"cannot read {X}/00.png"))(model, X, go))
    assert judge(Case("fit", "folder(many(3))", {}), bench).problem == ""
    assert judge(Case("fit", "images(16, 8, 8)", {}), bench).problem == "the message names no parameter"
