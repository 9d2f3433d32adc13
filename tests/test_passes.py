"""What a fit says of its forward passes before and after the first of them."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from skdiec import DiffusionEmbeddedClustering, Pretraining, passes
from skdiec.activations import Cell
from skdiec.features import FeatureExtractor
from skdiec.images import as_image_source
from skdiec.passes import Passes, search_passes
from skdiec.search import search_cells


@pytest.fixture
def clock(monkeypatch):
    found = SimpleNamespace(now=0.0)
    monkeypatch.setattr(passes, "time", SimpleNamespace(monotonic=lambda: found.now))
    return found


def messages(caplog):
    return [record.message for record in caplog.records if record.name == "skdiec.passes"]


@pytest.mark.parametrize("strategy", ["grid", "halving"])
@pytest.mark.parametrize(
    ("n_images", "n_timesteps", "n_draws", "n_clusters", "n_final"),
    [(90, 8, 2, 3, 0), (600, 5, 1, 3, 0), (60, 1, 3, 2, 0), (60, 3, 1, 2, 200)],
)
def test_passes_of_a_search_are_no_more_than_foretold(strategy, n_images, n_timesteps, n_draws, n_clusters, n_final):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n_images + n_final, 6)).astype(np.float32)
    result = search_cells(
        lambda cells, draw, count: dict.fromkeys(cells, X[:count]),
        strategy=strategy,
        n_images=n_images,
        n_draws=n_draws,
        layers={"a": (6, 2, 2), "b": (6, 1, 1)},
        timesteps=range(0, 10 * n_timesteps, 10),
        poolings=(1,),
        n_clusters=n_clusters,
        n_init=1,
        n_final=n_final,
    )
    foretold = search_passes(
        strategy,
        n_images=n_images,
        n_draws=n_draws,
        n_timesteps=n_timesteps,
        n_clusters=n_clusters,
        n_final=n_final,
    )
    assert result.n_forward <= foretold
    if strategy == "grid":
        assert result.n_forward == foretold == n_images * n_draws * n_timesteps + n_final


def test_time_is_told_once_of_all_that_is_left_when_all_first_passes_are_through(clock, caplog):
    ahead, then = Passes(1000, 500, 0.5, 10**9), []
    with caplog.at_level(logging.INFO, "skdiec"):
        report = ahead.timed(1500, at_once=64, then=lambda *step: then.append(step))
        clock.now = 3.0
        report(32, 100)
        assert messages(caplog) == []
        clock.now = 6.4
        report(64, 100)
        report(100, 100)
        ahead.timed(500, at_once=1)(50, 50)
    # 64 passes in 6.4 s
    assert messages(caplog) == ["at the speed of the first 64 images, they take about 2 min 30 s"]
    assert then == [(32, 100), (64, 100), (100, 100)]


def test_images_may_take_several_passes_and_be_fewer_than_fit_at_once(clock, caplog):
    with caplog.at_level(logging.INFO, "skdiec"):
        report = Passes(0, 100, 0.5, 10**9).timed(100, at_once=64, per_image=5)
        clock.now = 4.0
        report(20, 20)
    assert messages(caplog) == ["at the speed of the first 20 images, they take about 4 s"]


@pytest.mark.parametrize(("shift", "n_motions"), [(0, 0), (1, 13)])
def test_fit_tells_its_passes_before_it_trains_anything(shift, n_motions, planted, caplog, monkeypatch):
    from skdiec._estimator import stages

    images, _ = planted()
    told = []

    def train(*arguments, **options):
        told.extend(messages(caplog))
        return trained(*arguments, **options)

    trained = stages.pretrain
    monkeypatch.setattr(stages, "pretrain", train)
    model = DiffusionEmbeddedClustering(
        3, backbone=Pretraining(epochs=1, channels=(8,)), timestep=(50, 100), search_draws=2, n_draws=3, n_init=1,
        max_epochs=1, shift=shift, random_state=0,
    )  # fmt: skip
    with caplog.at_level(logging.INFO, "skdiec"):
        model.fit(images)
    extractor = FeatureExtractor(model.backbone_)
    share = 100 * max(extractor.layer_costs(model.layers_).values())
    n_features = (3 + n_motions) * len(images)
    expected = (
        f"ahead: at most {model.search_result_.n_forward:,} passes for the search and {n_features:,} for the "
        f"features, each up to {share:.0f} % of {extractor.multiplications() / 1e9:.2g} billion multiplications"
    )
    assert model.search_result_.n_forward == 2 * 2 * len(images)
    assert told == [expected]
    first, second = messages(caplog)
    assert first == expected
    assert second.startswith(f"at the speed of the first {len(images)} images, they take about ")


def test_passes_of_the_first_estimate_of_the_number_are_foretold(planted, caplog, make_backbone):
    images, _ = planted(size=40)
    model = DiffusionEmbeddedClustering(
        "auto", backbone=make_backbone(sample_size=8), layer="mid_block", timestep=50, pooling=1, n_draws=1, n_init=1,
        max_epochs=1, random_state=0,
    )  # fmt: skip
    with caplog.at_level(logging.INFO, "skdiec"):
        model.fit(images)
    assert messages(caplog)[0].startswith("ahead: at most 240 passes for the search and 120 for the features")


def test_multiplications_are_those_of_the_layers(make_backbone):
    """Of a network without attention, all of whose multiplications are those of convolutions and linear layers."""
    extractor = FeatureExtractor(make_backbone(sample_size=8, mid_block_type=None))
    network = extractor.backbone.network
    counted = 0

    def count(module, inputs, output):
        nonlocal counted
        each = output[0].numel() if output.ndim == 4 else output.numel()
        counted += each * module.weight[0].numel()

    for module in network.modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
            module.register_forward_hook(count)
    found = extractor.multiplications()
    counted = 0  # the same hooks counted there
    extractor.backbone.predict(torch.zeros(1, 1, 8, 8), torch.tensor([3]))
    assert found == counted


def test_passes_side_by_side_are_those_that_the_extractor_runs(make_backbone, monkeypatch):
    extractor = FeatureExtractor(make_backbone(sample_size=8), batch_size=33)
    assert extractor.at_once % 64 == 0
    for module in ("batch_sizes", "running"):
        monkeypatch.setattr(f"skdiec.features.{module}.torch_threads", lambda: 3)
    assert extractor.at_once == 192
    source = as_image_source(np.zeros((40, 8, 8), dtype=np.uint8))
    seen = []
    extractor.extract(source, [Cell("mid_block", 5, 1)], report=lambda done, total: seen.append(done))
    assert seen == [40]
