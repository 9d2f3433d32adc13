"""The share explained: what it is, what it tells, and how a fit tells of it."""

import logging
import math
import warnings

import diffusers
import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from skdiec import DiffusionEmbeddedClustering, Pretraining, load_backbone
from skdiec.backbones import PixelBackbone, check_share_explained
from skdiec.backbones.guard import share_explained
from skdiec.images import as_image_source

DIGITS = "benchmarks/backbones/digits"


@pytest.fixture(scope="module")
def digits():
    return load_digits().images


@pytest.fixture
def trained(request):
    return load_backbone(request.config.rootpath / DIGITS)


def source(images, value_range=(0, 16)):
    return as_image_source(np.asarray(images, dtype=np.float64), value_range=value_range)


def by_hand(backbone, images, timestep, seed=0):
    """The share by numpy's regression, with noise drawn otherwise."""
    x0 = backbone.prepare(torch.as_tensor(images, dtype=torch.float32)[:, None] / 8 - 1)
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(seed + 100))
    abar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[timestep]
    x_t = math.sqrt(abar) * x0 + math.sqrt(1 - abar) * noise
    with torch.no_grad():
        prediction = backbone.network(x_t, timestep).sample.numpy().ravel()
    slope, intercept = np.polyfit(x_t.numpy().ravel(), noise.numpy().ravel(), 1)
    line = slope * x_t.numpy().ravel() + intercept
    noise = noise.numpy().ravel()
    return 1 - np.square(prediction - noise).mean() / np.square(line - noise).mean()


def test_share_is_one_minus_the_ratio_of_losses(trained, digits):
    digits = digits[:96]
    found = share_explained(trained, source(digits))
    assert list(found) == [50, 150, 350]
    for timestep, share in found.items():
        assert type(share) is float
        assert share == pytest.approx(by_hand(trained, digits, timestep), abs=0.06)


def test_share_of_networks_that_are_known(make_backbone, digits):
    """A line explains nothing, the noise itself everything."""
    images = source(digits[:90])
    backbone = make_backbone(sample_size=8)
    seen = {}
    real = backbone.add_noise

    def remember(x0, noise, timesteps):
        x_t = real(x0, noise, timesteps)
        line = np.polyfit(x_t.numpy().ravel(), noise.numpy().ravel(), 1)
        seen["noise"], seen["line"] = noise, x_t * line[0] + line[1]
        return x_t

    backbone.add_noise = remember
    for predict, expected in [("noise", 1.0), ("line", 0.0)]:
        backbone.predict = lambda x_t, timesteps, name=predict: seen[name]
        # Lines differ a little between batches.
        assert list(share_explained(backbone, images).values()) == pytest.approx([expected] * 3, abs=0.02)


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_target_is_that_of_the_prediction_type(kind, make_backbone, digits):
    backbone = make_backbone(sample_size=8, scheduler=diffusers.DDPMScheduler(prediction_type=kind))
    seen = {}
    real = backbone.add_noise

    def remember(x0, noise, timesteps):
        seen["x0"], seen["noise"] = x0, noise
        return real(x0, noise, timesteps)

    backbone.add_noise = remember

    def perfect(x_t, timesteps):
        x0, noise = seen["x0"], seen["noise"]
        abar = backbone.scheduler.alphas_cumprod[timesteps][:, None, None, None]
        return {"epsilon": noise, "sample": x0, "v_prediction": abar.sqrt() * noise - (1 - abar).sqrt() * x0}[kind]

    backbone.predict = perfect
    assert list(share_explained(backbone, source(digits[:50])).values()) == pytest.approx([1, 1, 1], abs=1e-6)


def test_share_tells_what_does_not_fit(trained, digits):
    digits = digits[:48]

    def shares(images, value_range=(0, 16), **config):
        scheduler = diffusers.DDPMScheduler.from_config(trained.scheduler.config, **config)
        backbone = PixelBackbone(trained.network, scheduler, image_shape=trained.image_shape)
        return np.array(list(share_explained(backbone, source(images, value_range)).values()))

    assert (shares(digits) > 0.5).all()
    assert (shares(digits, (-16, 16)) < 0).any()  # black is taken for grey
    assert (shares(digits / 16, (-1, 1)) < 0).any()
    assert (shares(digits, (0, 160)) < 0).any()
    assert (shares(16 - digits) < 0).any()
    assert (shares(np.random.default_rng(0).uniform(0, 16, (48, 8, 8))) < 0).all()
    assert (shares(digits, prediction_type="sample") < 0).all()


def test_share_is_seeded_and_leaves_all_as_it_is(trained, digits, rng_untouched):
    trained.network.train()
    trained.network.mid_block.eval()
    modes = [module.training for module in trained.network.modules()]
    before = trained.fingerprint()
    images = source(digits[:40])
    with rng_untouched():
        first, second, other = (share_explained(trained, images, seed=seed) for seed in (3, 3, 4))
    assert first == second != other
    assert [module.training for module in trained.network.modules()] == modes
    assert trained.fingerprint() == before


def test_few_images_are_looked_at(trained, digits):
    rows = []

    class Counting(type(source(digits))):
        def read(self, indices):
            rows.extend(indices)
            return super().read(indices)

    images = source(digits)
    images.__class__ = Counting
    share_explained(trained, images)
    assert len(rows) == len(set(rows)) == 256
    assert max(rows) > 1000


@pytest.mark.parametrize(
    ("scheduler", "settings", "expected"),
    [
        ({"beta_schedule": "squaredcos_cap_v2"}, {}, [103, 299, 639]),
        ({"num_train_timesteps": 50}, {}, None),
        ({}, {"max_timestep": 100}, [50, 100]),
        ({}, {"max_timestep": 0}, [0]),
        ({"rescale_betas_zero_snr": True}, {}, None),
    ],
)
def test_timesteps_are_those_of_equal_noise(scheduler, settings, expected, make_backbone, digits):
    scheduler = diffusers.DDPMScheduler(**scheduler)
    backbone = make_backbone(sample_size=8, scheduler=scheduler, recipe={"settings": settings})
    found = list(share_explained(backbone, source(digits[:40])))
    if expected is not None:
        assert found == pytest.approx(expected, abs=1)
        return
    ratio = ((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod).sqrt().numpy()
    for timestep, wanted in zip(found, (0.176, 0.522, 1.591), strict=True):
        distance = np.abs(np.log(ratio) - np.log(wanted))
        assert distance[timestep] == distance.min()


def test_images_without_contrast_and_predictions_without_numbers(make_backbone):
    backbone = make_backbone(sample_size=8)
    assert all(math.isnan(share) for share in share_explained(backbone, source(np.zeros((9, 8, 8)))).values())
    with torch.no_grad():
        backbone.network.conv_out.bias.fill_(math.nan)
    images = source(np.random.default_rng(0).uniform(0, 16, (9, 8, 8)))
    assert set(share_explained(backbone, images).values()) == {-math.inf}


# Warning


def test_negative_share_warns_with_the_numbers_once(trained, digits):
    digits = digits[:40]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_share_explained(trained, source(digits))
    message = (
        r"denoises these images worse than a straight line does: share explained -\d+\.\d\d at timestep 50, -\d+\.\d\d "
        r"at timestep 150, -\d+\.\d\d at timestep 350 \(1 is perfect\)\. Either value_range .* or too little"
    )
    with pytest.warns(UserWarning, match=message) as caught:
        shares = check_share_explained(trained, source(digits / 16, (-1, 1)))
    assert len(caught) == 1
    assert shares == share_explained(trained, source(digits / 16, (-1, 1)))


def test_training_that_was_too_short_is_told_of_with_its_steps(trained, digits):
    trained.recipe = {"settings": {"epochs": 45, "batch_size": 16}, "steps": 1068, "images": 1797}
    with pytest.warns(UserWarning, match=r"trained too little \(1,068 of 5,085 steps\), or there is nothing to learn"):
        check_share_explained(trained, source(digits[:40] / 16, (-1, 1)), is_trained_on_it=True)


def test_fit_measures_and_tells(trained, digits, caplog):
    model = DiffusionEmbeddedClustering(
        3, backbone=trained, value_range=(0, 16), layer="mid_block", timestep=50, pooling=1, max_epochs=1, n_init=2,
        warmup_epochs=0, random_state=0,
    )  # fmt: skip
    with warnings.catch_warnings(), caplog.at_level(logging.INFO, logger="skdiec"):
        warnings.simplefilter("error")
        model.fit(digits[:90])
    assert model.warnings_ == []
    assert list(model.share_explained_) == [50, 150, 350]
    assert min(model.share_explained_.values()) > 0.4
    assert "share explained of these images: 0." in caplog.text
    with pytest.warns(UserWarning, match="straight line") as caught:
        model.set_params(value_range=(-1, 1)).fit(digits[:90] / 16)
    assert [warning.filename for warning in caught] == [__file__]
    assert model.warnings_ == [str(warning.message) for warning in caught]
    assert min(model.share_explained_.values()) < 0


def test_fit_of_a_backbone_trained_too_little_tells(digits):
    model = DiffusionEmbeddedClustering(
        3, value_range=(0, 16), layer="mid_block", timestep=50, pooling=1, max_epochs=1, n_init=2, warmup_epochs=0,
        backbone=Pretraining(epochs=1), random_state=0,
    )  # fmt: skip
    with pytest.warns(UserWarning, match="straight line"):
        model.fit(digits[:64])
    assert min(model.share_explained_.values()) < 0
