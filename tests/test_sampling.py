"""New images, from noise."""

import diffusers
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from skdiec.backbones import check_can_sample, make_sampler
from skdiec.sampling import sample_images


class Ideal:
    """The exact denoiser of one image: the noise in x_t is what is left when its share of the image is taken away."""

    def __init__(self, backbone, image):
        self.x0, self.abar = backbone.prepare(image[None]), backbone.scheduler.alphas_cumprod

    def __call__(self, x_t, timesteps, return_dict=False):
        abar = self.abar[timesteps].reshape(-1, 1, 1, 1)
        return ((x_t - abar.sqrt() * self.x0) / (1 - abar).sqrt(),)


@pytest.fixture
def backbone(make_backbone):
    return make_backbone(image_shape=(1, 7, 6), patch_size=2, in_channels=4, sample_size=4)


def test_restore_undoes_prepare(backbone):
    images = torch.rand(3, 1, 7, 6) * 2 - 1
    assert torch.equal(backbone.decode(backbone.prepare(images)), images)


def test_ideal_denoiser_ends_at_its_image(backbone, monkeypatch):
    image = torch.rand(1, 7, 6, generator=torch.Generator().manual_seed(0)) * 2 - 1
    ideal = Ideal(backbone, image)
    monkeypatch.setattr(type(backbone), "predict", lambda self, x_t, timesteps: ideal(x_t, timesteps)[0])
    told = []
    images = sample_images(backbone, 2, n_steps=5, report=lambda *numbers: told.append(numbers))
    assert images.dtype == np.float32
    assert_allclose(images, np.broadcast_to(image, (2, 1, 7, 6)), atol=1e-4)
    assert told == [(step, 5) for step in range(1, 6)]


def test_images_follow_from_the_seed_and_not_from_how_many_there_are(backbone, rng_untouched, monkeypatch):
    monkeypatch.setattr("skdiec.sampling._BATCH_SIZE", 2)
    with rng_untouched():
        images = sample_images(backbone, 3, n_steps=2, seed=4)
        again = sample_images(backbone, 1, n_steps=2, seed=4)
        other = sample_images(backbone, 1, n_steps=2, seed=5)
    assert_allclose(images[:1], again, atol=1e-5)
    assert np.abs(images).max() <= 1
    assert not np.allclose(again, other, atol=0.1)
    assert not np.allclose(images[0], images[1], atol=0.1)
    with pytest.raises(ValueError, match="n_images must be an int of at least 1; got 0"):
        sample_images(backbone, 0)


def test_sampler_begins_at_the_last_timestep(backbone):
    assert_array_equal(make_sampler(backbone, 4).timesteps, [999, 749, 499, 249])
    for wrong in (0, 1001):
        with pytest.raises(ValueError, match=f"n_steps must be an int from 1 to 1000; got {wrong}"):
            make_sampler(backbone, wrong)


def test_backbone_that_knows_low_timesteps_only_says_how_to_get_another(make_backbone):
    backbone = make_backbone(recipe={"settings": {"max_timestep": 400}})
    message = (
        r"the backbone was trained up to timestep 400 of 999, which is enough to cluster, but new images begin at 999: "
        r"train one that can make them with max_timestep=999 \(skdiec pretrain IMAGES FOLDER --max-timestep 999\)"
    )
    for call in (check_can_sample, lambda backbone: sample_images(backbone, 1)):
        with pytest.raises(ValueError, match=message):
            call(backbone)


def test_model_of_latents_makes_images_and_its_latents_are_not_clipped():
    from types import SimpleNamespace

    from tiny_models import FAMILIES

    from skdiec import load_backbone

    tiny = FAMILIES["DiT"]
    parts = {**tiny.build(), "scheduler": diffusers.DDPMScheduler()}
    backbone = load_backbone(SimpleNamespace(components=parts))
    assert make_sampler(backbone, 4).config.clip_sample is False
    images = sample_images(backbone, 2, n_steps=3)
    assert images.shape == (2, 3, 16, 16)
    sampler = diffusers.DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    sampler.set_timesteps(3)
    x = torch.from_numpy(np.random.default_rng((0, 1)).standard_normal((1, 4, 8, 8), dtype=np.float32))
    with torch.no_grad():
        for t in sampler.timesteps:
            labels = torch.tensor([10])
            output = parts["transformer"](x, timestep=t[None], class_labels=labels).sample[:, :4]
            x = sampler.step(output, t, x).prev_sample
        expected = parts["vae"].decode(x / 0.18215).sample.clamp(-1, 1)
    np.testing.assert_allclose(images[1:], expected, atol=1e-4)


def test_other_noise_than_that_of_a_ddpm_makes_no_images(make_backbone):
    backbone = make_backbone(scheduler=diffusers.EDMEulerScheduler())
    with pytest.raises(ValueError, match="by models with the noise of a DDPM; the backbone's is a EDMEulerScheduler's"):
        make_sampler(backbone, 3)
