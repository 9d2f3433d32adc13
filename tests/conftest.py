import os
import random
from contextlib import contextmanager

# Several workers share the cores, and the arrays of tests are too small for a second thread. Before numpy and torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")  # figures open no windows

import numpy as np
import pytest
import torch
from hypothesis import settings

# Scripts that made what tests read.
collect_ignore = ["data"]

# The same examples each time, and no deadline: a busy machine is no bug.
settings.register_profile("skdiec", derandomize=True, deadline=None, database=None)
settings.load_profile("skdiec")


def pytest_collection_modifyitems(items):
    """Refuses names of tests with an address of memory: they differ between the workers of one run."""
    if moving := [item.nodeid for item in items if " at 0x" in item.nodeid]:
        raise pytest.UsageError(f"tests must be named alike in each run; got {moving[0]}")


@pytest.fixture(scope="session")
def make_unet():
    """Makes small denoisers with random weights; keywords go over their configuration."""
    from diffusers import UNet2DModel

    def make(seed=0, **config):
        channels = config.setdefault("block_out_channels", (8,))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return UNet2DModel(
                **{
                    "sample_size": 4,
                    "in_channels": 1,
                    "out_channels": config.get("in_channels", 1),
                    "layers_per_block": 1,
                    "down_block_types": ("DownBlock2D",) * len(channels),
                    "up_block_types": ("UpBlock2D",) * len(channels),
                    "norm_num_groups": 4,
                    "attention_head_dim": 8,
                    **config,
                }
            )

    return make


@pytest.fixture(scope="session")
def make_backbone(make_unet):
    """Makes backbones of such denoisers, by default with the schedule that diffusers has by default."""
    from diffusers import DDPMScheduler

    from skdiec.backbones import PixelBackbone

    def make(seed=0, *, scheduler=None, image_shape=None, patch_size=1, recipe=None, **config):
        network = make_unet(seed, **config).eval().requires_grad_(False)
        return PixelBackbone(
            network, scheduler or DDPMScheduler(), image_shape=image_shape, patch_size=patch_size, recipe=recipe
        )

    return make


@pytest.fixture
def rng_untouched():
    """Gives a context that fails where global random states differ at its end."""

    @contextmanager
    def untouched():
        numbers, tensors, plain = np.random.get_state(), torch.get_rng_state(), random.getstate()  # noqa: NPY002
        gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else ()
        yield
        for before, after in zip(numbers, np.random.get_state(), strict=True):  # noqa: NPY002
            np.testing.assert_array_equal(before, after)
        assert torch.equal(tensors, torch.get_rng_state())
        assert all(map(torch.equal, gpus, torch.cuda.get_rng_state_all() if torch.cuda.is_available() else ()))
        assert random.getstate() == plain

    return untouched


@pytest.fixture(scope="session")
def planted():
    """Makes images of clusters that cannot be missed, and their labels: dark and light prototypes, and noise."""

    def make(shape=(8, 8), n_clusters=3, size=16, seed=0):
        rng = np.random.default_rng(seed)
        labels = rng.permutation(np.repeat(np.arange(n_clusters), size))
        prototypes = rng.choice([40, 215], (n_clusters, *shape))
        noise = rng.normal(0, 10, (len(labels), *shape))
        return (prototypes[labels] + noise).clip(0, 255).astype(np.uint8), labels

    return make


@pytest.fixture(scope="session")
def make_model(make_unet):
    """Makes estimators over one representation of a small denoiser with random weights; keywords go over that."""
    from skdiec import DiffusionEmbeddedClustering

    def make(n_clusters=3, **parameters):
        if "backbone" not in parameters:
            parameters["backbone"] = make_unet(sample_size=8)
        fixed = {"layer": "mid_block", "timestep": 50, "pooling": 2}
        quick = {"n_init": 3, "warmup_epochs": 2, "random_state": 0}
        return DiffusionEmbeddedClustering(n_clusters, **{**fixed, **quick, **parameters})

    return make
