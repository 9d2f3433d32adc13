"""What scikit-learn's callbacks see of a fit, and what they can do."""

import copy
import inspect
import subprocess
import sys

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from sklearn.base import clone
from sklearn.metrics import adjusted_rand_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

from skdiec import DiffusionEmbeddedClustering, Pretraining
from skdiec._callbacks import Steps
from skdiec._estimator import stages

callback = pytest.importorskip("sklearn.callback", reason="scikit-learn has callbacks from 1.9 on")

STAGES = ["backbone", "search", "features", "partition", "training"]
CHEAP = Pretraining(epochs=2, channels=(8,), batch_size=8, precision="fp32")


@pytest.fixture(scope="module")
def images(planted):
    return planted()[0]


@pytest.fixture(scope="module")
def labels(planted):
    return planted()[1]


class Recorder:
    """Writes down every call, and ends stages where it is told to."""

    def __init__(self, ends=lambda names, number: False):
        self.calls, self.ends, self.n_steps = [], ends, {}

    def setup(self, estimator, context):
        self.calls.append(("setup", estimator, ()))

    def teardown(self, estimator, context):
        self.calls.append(("teardown", estimator, ()))

    def on_fit_task_begin(self, estimator, context):
        self.calls.append(("begin", estimator, path(context)))
        self.n_steps[context.task_name] = context.max_subtasks

    def on_fit_task_end(self, estimator, context, *, X=None, y=None, fitted_estimator=None):
        self.calls.append(("end", estimator, path(context)))
        return self.ends([name for name, _ in path(context)], context.task_id)

    def ended(self, stage):
        """How many steps of a stage ended."""
        found = [names for call, _, names in self.calls if call == "end" and len(names) == 3]
        return sum(names[1][0] == stage for names in found)


def path(context):
    found = []
    while context is not None:
        found.insert(0, (context.task_name, context.task_id))
        context = context.parent
    return tuple(found)


def keep_states(states):
    """A callback that keeps the estimators that would be fitted if training ended."""

    class Keeper(Recorder):
        def on_fit_task_end(self, estimator, context, *, X=None, y=None, fitted_estimator=None):
            if fitted_estimator is not None:
                states.append((path(context)[-1], fitted_estimator, X, y))

    return Keeper()


def test_stages_and_steps_are_told_of_in_order(make_model, images):
    recorder = Recorder()
    model = make_model(backbone=CHEAP, timestep=(50, 100), max_epochs=4, warmup_epochs=9).set_callbacks(recorder)
    model.fit(images)
    assert [call for call, _, _ in recorder.calls][:2] == ["setup", "begin"]
    assert [call for call, _, _ in recorder.calls][-2:] == ["end", "teardown"]
    assert all(estimator is model for _, estimator, _ in recorder.calls)
    stages = [names[1][0] for call, _, names in recorder.calls if call == "begin" and len(names) == 2]
    assert stages == STAGES
    n_passes = sum(
        len({cell.timestep for cell in stage.cells}) * stage.n_draws for stage in model.search_result_.stages
    )
    assert recorder.ended("search") == n_passes == 2
    assert recorder.n_steps["search"] == n_passes
    assert recorder.ended("backbone") == recorder.ended("features") == 100
    assert recorder.ended("partition") == 0
    assert recorder.ended("training") == model.n_iter_ == 4
    begun, ended = ({names for call, _, names in recorder.calls if call == kind} for kind in ("begin", "end"))
    assert begun == ended


@pytest.mark.parametrize("search", ["grid", "halving"])
def test_the_final_comparison_of_the_search_is_its_last_step(search, make_model, images, monkeypatch):
    recorder = Recorder()
    seen, whole = [], stages.search_cells

    def search_cells(*arguments, report, **options):
        def told(done, total):
            seen.append((done, total))
            return report(done, total)

        return whole(*arguments, report=told, **options)

    monkeypatch.setattr(stages, "search_cells", search_cells)
    model = make_model(max_search_samples=20, timestep=(50, 100), pooling=(1, 2), search=search, max_epochs=1)
    model.set_callbacks(recorder).fit(images)
    assert model.search_result_.final is not None
    assert recorder.n_steps["search"] == (3 if search == "grid" else None)
    assert recorder.ended("search") == len(seen)
    assert seen[-1] == (1, 1)
    if search == "grid":
        assert seen[:-1] == [(1, 3), (2, 3)]


def test_training_that_converges_has_no_further_step(make_model, images):
    recorder = Recorder()
    model = make_model(max_epochs=9, warmup_epochs=0, tol=1.0).set_callbacks(recorder).fit(images)
    assert recorder.ended("training") == model.n_iter_ == 1
    assert recorder.ended("backbone") == 0


def test_result_is_that_of_a_fit_without_callbacks(make_model, images):
    plain = make_model(backbone=CHEAP).fit(images)
    states = []
    watched = make_model(backbone=CHEAP).set_callbacks(keep_states(states)).fit(images)
    assert_array_equal(watched.embedding_, plain.embedding_)
    assert states
    assert vars(watched).keys() - vars(plain).keys() == {"_skl_callbacks"}


@pytest.mark.parametrize("train_backbone", [False, True])
def test_states_are_those_of_fits_that_ended_there(train_backbone, make_model, images):
    settings = {"train_backbone": train_backbone, "warmup_epochs": 9, "max_epochs": 3}
    states = []
    labels = np.arange(len(images)) % 3
    model = make_model(**settings).set_callbacks(keep_states(states)).fit(images, labels)
    *epochs, (last, whole, _, _) = states
    assert last == ("fit", 0)
    assert_array_equal(whole.predict(images), model.labels_)
    assert [name for name, *_ in epochs] == [("step", 0), ("step", 1), ("step", 2)]
    for n_epochs, (_, state, X, y) in enumerate(epochs, start=1):
        assert X is images
        assert y is labels
        shorter = make_model(**{**settings, "max_epochs": n_epochs}).fit(images)
        assert shorter.n_iter_ == state.n_iter_ == n_epochs
        assert_array_equal(state.predict(images), shorter.predict(images))
        np.testing.assert_allclose(state.transform(images), shorter.transform(images), rtol=1e-5, atol=1e-6)
    assert model.n_iter_ == 3


def test_true_ends_the_training_and_keeps_the_best_state(make_model, images):
    recorder = Recorder(lambda names, number: names[1:2] == ["training"] and number == 1)
    settings = {"warmup_epochs": 9, "max_epochs": 7}
    model = make_model(**settings).set_callbacks(recorder).fit(images)
    assert model.n_iter_ == recorder.ended("training") == 2
    assert len(model.history_["loss"]) == 3
    expected = make_model(**{**settings, "max_epochs": 2}).fit(images)
    assert_array_equal(model.labels_, expected.labels_)


def test_true_ends_the_pretraining(make_model, images, tmp_path):
    recorder = Recorder(lambda names, number: names[1:2] == ["backbone"] and number == 49)
    kept = clone(CHEAP).set_params(folder=tmp_path / "kept")
    model = make_model(backbone=kept).set_callbacks(recorder).fit(images)
    whole = make_model(backbone=CHEAP).fit(images).backbone_
    assert model.backbone_.recipe["steps"] == whole.recipe["steps"] // 2
    # A stopped training goes on in its folder.
    model.set_callbacks().fit(images)
    assert model.backbone_.fingerprint() == whole.fingerprint()


def test_fit_that_fails_is_torn_down_and_leaves_the_estimator_as_it_was(make_model, images, monkeypatch):
    recorder = Recorder()
    model = make_model().set_callbacks(recorder)
    monkeypatch.setattr("skdiec._estimator.training.train", lambda *arguments, **keywords: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.fit(images)
    assert recorder.calls[-1][0] == "teardown"
    assert vars(model).keys() == {*model.get_params(deep=False), "_skl_callbacks"}
    assert not any(call == "end" and len(names) == 1 for call, _, names in recorder.calls)


def test_wrong_parameters_set_nothing_up(make_model, images):
    recorder = Recorder()
    with pytest.raises(ValueError, match="n_clusters"):
        make_model().set_params(n_clusters=0).set_callbacks(recorder).fit(images)
    assert recorder.calls == []


def test_callbacks_reach_the_fit_through_pipeline_and_search(make_model, images, recwarn):
    X = images.reshape(len(images), -1)
    recorder = Recorder()
    recorder.max_propagation_depth = None
    model = make_model(image_shape=(8, 8))
    make_pipeline("passthrough", model).set_callbacks(recorder).fit(X)
    names = {name for _, _, names in recorder.calls for name, _ in names}
    assert set(STAGES) <= names
    assert [str(warning.message) for warning in recwarn if "callbacks" in str(warning.message)] == []


def test_progress_bar_through_a_search(make_model, images, capsys, recwarn):
    X = images.reshape(len(images), -1)
    search = GridSearchCV(make_model(image_shape=(8, 8)), {"n_clusters": [2, 3]}, cv=2)
    search.set_callbacks(callback.ProgressBar(max_propagation_depth=2)).fit(X)
    shown = capsys.readouterr().out
    for stage in ("search", "features", "training"):
        assert f"DiffusionEmbeddedClustering - {stage}" in shown
    assert [str(warning.message) for warning in recwarn if "callbacks" in str(warning.message)] == []


def test_scores_are_monitored(make_model, images, labels):
    def ari(estimator, X, y):
        return adjusted_rand_score(y, estimator.predict(X))

    monitor = callback.ScoringMonitor(scoring={"ari": ari})
    model = make_model(warmup_epochs=9, max_epochs=2).set_callbacks(monitor).fit(images, labels)
    logs = monitor.get_logs().data
    assert [row["task_name"] for row in logs] == ["fit", "step", "step"]
    assert logs[0]["ari"] == pytest.approx(adjusted_rand_score(labels, model.labels_))


def test_backbones_parameters_can_be_searched(make_model, images):
    X = images.reshape(len(images), -1)
    model = make_model(backbone=clone(CHEAP), image_shape=(8, 8))
    search = GridSearchCV(model, {"backbone__epochs": [1, 3]}, cv=2).fit(X)
    epochs = search.best_estimator_.backbone.epochs
    assert epochs == search.best_params_["backbone__epochs"]
    assert len(search.best_estimator_.backbone_.recipe["loss"]) == epochs
    assert model.backbone.epochs == 2


def test_without_callbacks_in_scikit_learn_a_fit_is_the_same(tmp_path):
    """scikit-learn before 1.9 has no `sklearn.callback`."""
    code = inspect.cleandoc("""
        import builtins
        of_python = builtins.__import__

        def without_callbacks(name, globals=None, *arguments, **keywords):
            if name == "sklearn.callback" and globals["__name__"].startswith("skdiec"):
                raise ImportError(name)
            return of_python(name, globals, *arguments, **keywords)

        builtins.__import__ = without_callbacks
        from sklearn.datasets import load_digits
        from skdiec import DiffusionEmbeddedClustering, Pretraining
        model = DiffusionEmbeddedClustering(
            3, backbone=Pretraining(epochs=1, channels=(8,)), layer="mid_block", timestep=50, pooling=1, random_state=0
        )
        print(hasattr(model, "set_callbacks"), *model.fit(load_digits().data[:40]).labels_)
    """)
    found = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    from sklearn.datasets import load_digits

    model = DiffusionEmbeddedClustering(
        3, backbone=Pretraining(epochs=1, channels=(8,)), layer="mid_block", timestep=50, pooling=1, random_state=0
    )
    labels = model.fit(load_digits().data[:40]).labels_
    assert found.stdout.split() == ["False", *map(str, labels)]


# The steps themselves


class Context:
    """What `Steps` needs of scikit-learn's contexts."""

    def __init__(self, log, stops=()):
        self.log, self.stops, self.n = log, stops, 0

    def subcontext(self, name):
        self.n += 1
        return copy.copy(self)

    def call_on_fit_task_begin(self, **shown):
        self.log.append(f"begin {self.n}")

    def call_on_fit_task_end(self, **shown):
        self.log.append(f"end {self.n}")
        return self.n in self.stops


@pytest.mark.parametrize(
    ("n_steps", "reports", "expected"),
    [
        (2, [(1, 2), (2, 2)], ["begin 1", "end 1", "begin 2", "end 2"]),
        (2, [(1, 4), (2, 4), (3, 4), (4, 4)], ["begin 1", "end 1", "begin 2", "end 2"]),
        (3, [(1, 1)], ["begin 1", "end 1", "begin 2", "end 2", "begin 3", "end 3"]),
        (None, [(1, 5), (2, 5)], ["begin 1", "end 1", "begin 2", "end 2"]),
        (2, [(1, 2)], ["begin 1", "end 1", "begin 2", "end 2"]),  # the second is ended by close
        (0, [], []),
    ],
)
def test_steps_are_begun_and_ended_in_turn(n_steps, reports, expected):
    log = []
    steps = Steps(Context(log), n_steps, {})
    assert [steps.report(*report) for report in reports] == [False] * len(reports)
    steps.close()
    assert log == expected


def test_nothing_begins_after_a_stop():
    log = []
    steps = Steps(Context(log, stops={1}), 3, {})
    assert steps.report(1, 3) is True
    steps.close()
    assert log == ["begin 1", "end 1"]


def test_steps_without_callbacks_say_nothing():
    assert Steps(None, 3, {}).report(1, 3) is False
