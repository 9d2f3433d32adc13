"""Where cases are evaluated."""

import contextlib
import functools
import itertools
import shutil
from pathlib import Path

import numpy as np
import torch
from threadpoolctl import ThreadpoolController

from fuzzing import values
from fuzzing.cases import FITTED, QUICK
from skdiec import DiffusionEmbeddedClustering, Pretraining, pretrain
from skdiec.backbones import PixelBackbone


def _network(seed=0):
    from diffusers import UNet2DModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = UNet2DModel(
            sample_size=8,
            in_channels=1,
            out_channels=1,
            layers_per_block=1,
            block_out_channels=(4,),
            down_block_types=("DownBlock2D",),
            mid_block_type=None,
            up_block_types=("UpBlock2D",),
            norm_num_groups=2,
            add_attention=False,
        )
    return network.eval().requires_grad_(False)


class Bench:
    """What cases are run with: a temporary folder, a small backbone, and fitted estimators.

    Parameters
    ----------
    folder : path
        Empty, for this bench alone.
    """

    def __init__(self, folder):
        from diffusers import DDPMScheduler

        self.folder = Path(folder).resolve()
        self.here = self.folder / "working"
        self.here.mkdir()
        self.files = self.folder / "fuzz-files"
        self.files.mkdir()
        self.backbone = PixelBackbone(_network(), DDPMScheduler())
        self.pipeline = self.folder / "pipeline"
        self.backbone.save_pretrained(self.pipeline)
        self.model = self.folder / "model"
        _network().save_pretrained(self.model)
        self.libraries = ThreadpoolController()
        self.fitted = functools.cache(self._fitted)
        self._count = itertools.count()
        self.names = {
            **{name: value for name, value in vars(values).items() if not name.startswith("_")},
            "BACKBONE": self.backbone,
            "NETWORK": self.backbone.network,
            "Pretraining": Pretraining,
            "QUICK_PRETRAIN": {"epochs": 1, "channels": (8,), "precision": "fp32"},
            "folder": self._new_folder,
            "files_in": lambda folder: sorted(path for path in Path(folder).rglob("*") if not path.is_dir()),
            "backbone": functools.partial(self._copied, self.pipeline),
            "network": functools.partial(self._copied, self.model),
            "pretrained": self._pretrained,
            "memory_map": self._memory_map,
            "tmp": self.files,
        }

    def evaluate(self, expression):
        """The value of an expression of a case."""
        return eval(expression, dict(self.names))

    def _fitted(self, name):
        X, parameters = FITTED[name]
        return self.estimator(parameters).fit(self.evaluate(X))

    def estimator(self, parameters):
        """An estimator over the parameters of `QUICK`."""
        expressions = {**QUICK, **parameters}
        return DiffusionEmbeddedClustering(**{name: self.evaluate(value) for name, value in expressions.items()})

    def clear(self):
        """Delete what the last case made."""
        for folder in (self.files, self.here):
            for path in folder.iterdir():
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()

    def _new_path(self):
        path = self.files / f"{next(self._count):04}" / "it"  # alone: cases have links to what is above
        path.parent.mkdir()
        return path

    def _new_folder(self, *entries):
        path = self._new_path()
        path.mkdir()
        for entry in entries:
            entry(path)
        return path

    def _copied(self, source, *changes):
        path = self._new_path()
        shutil.copytree(source, path)
        for change in changes:
            change(path)
        return path

    @functools.cached_property
    def _checkpoint(self):
        """A folder of a pretraining that was stopped at its end."""

        def stop(*arguments, **keywords):
            raise KeyboardInterrupt

        path = self.folder / "checkpoint"
        saved, PixelBackbone.save_pretrained = PixelBackbone.save_pretrained, stop
        try:
            with contextlib.suppress(KeyboardInterrupt):
                pretrain(values.images(16, 8, 8), path, random_state=0, **self.names["QUICK_PRETRAIN"])
        finally:
            PixelBackbone.save_pretrained = saved
        return path

    @functools.cached_property
    def _finished(self):
        path = self.folder / "finished"
        pretrain(values.images(16, 8, 8), path, random_state=0, **self.names["QUICK_PRETRAIN"])
        return path

    def _pretrained(self, finished, *changes):
        return self._copied(self._finished if finished else self._checkpoint, *changes)

    def _memory_map(self, array):
        path = self._new_path().with_suffix(".npy")
        np.save(path, array)
        return np.load(path, mmap_mode="r")
