"""Passes replayed as CUDA graphs are those that torch computes call by call. These tests need a GPU."""

import numpy as np
import pytest
import torch

from skdiec import pretrain
from skdiec.backbones import trainer
from skdiec.backbones.replay import ReplayedPass

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

IMAGES = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)


def test_loss_and_gradients_are_those_of_a_plain_call():
    generator = torch.Generator("cuda").manual_seed(0)
    weights = [torch.randn(5, 3, device="cuda", generator=generator, requires_grad=True)]

    def loss(x):
        return (x @ weights[0]).square().mean()

    replayed = ReplayedPass(loss, weights, [torch.zeros(4, 5, device="cuda")])
    for _ in range(3):
        x = torch.randn(4, 5, device="cuda", generator=generator)
        (expected,) = torch.autograd.grad(loss(x), weights)
        found = replayed(x)
        torch.testing.assert_close(found, loss(x).detach())
        torch.testing.assert_close(weights[0].grad, expected)
        with torch.no_grad():
            weights[0] -= 0.1 * weights[0].grad


def test_only_inputs_of_the_captured_shape_fit():
    weight = torch.ones(2, device="cuda", requires_grad=True)
    replayed = ReplayedPass(lambda x: (x * weight).sum(), [weight], [torch.zeros(4, 2, device="cuda")])
    assert replayed.fits([torch.zeros(4, 2)])
    assert not replayed.fits([torch.zeros(3, 2)])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_is_that_without_graphs(monkeypatch, precision):
    settings = {
        "epochs": 4,
        "batch_size": 16,
        "channels": (32,),
        "device": "cuda",
        "random_state": 0,
        "precision": precision,
    }
    replayed = pretrain(IMAGES, **settings)
    monkeypatch.setattr(ReplayedPass, "__init__", lambda self, *_: None)
    monkeypatch.setattr(ReplayedPass, "fits", lambda self, inputs: False)
    plain = pretrain(IMAGES, **settings)
    assert replayed.recipe["loss"] == pytest.approx(plain.recipe["loss"], rel=2e-3)


def test_a_stopped_training_goes_on_with_the_same_weights(tmp_path, monkeypatch):
    settings = {"epochs": 3, "batch_size": 16, "channels": (32,), "device": "cuda", "random_state": 0}
    whole = pretrain(IMAGES, **settings)
    step = trainer.Trainer._take_step

    def stop(self):
        if self.step == 5:
            raise KeyboardInterrupt
        step(self)

    with monkeypatch.context() as patched:
        patched.setattr(trainer.Trainer, "_take_step", stop)
        with pytest.raises(KeyboardInterrupt):
            pretrain(IMAGES, tmp_path / "backbone", checkpoint_seconds=0, **settings)
    resumed = pretrain(IMAGES, tmp_path / "backbone", **settings)
    assert resumed.recipe["loss"] == pytest.approx(whole.recipe["loss"], rel=2e-3)
