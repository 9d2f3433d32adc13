"""skdiec: cluster images with what a pretrained diffusion model already knows.

`DiffusionEmbeddedClustering` is a scikit-learn estimator for the method of "DiEC: Diffusion Embedded Clustering"
(https://arxiv.org/abs/2512.20905). `Pretraining` says how it trains a compact diffusion model on the images; `pretrain`
trains one beforehand, `load_backbone` reads one that exists, and `skdiec.backbones.register` adds a family of them.
`load` reads a fitted estimator that was saved. `skdiec.metrics` and `skdiec.scores` evaluate clusterings,
`skdiec.datasets` has what they are compared on, and `skdiec.plotting` draws them.
"""

import importlib
from typing import Any

from skdiec._estimator import DiffusionEmbeddedClustering
from skdiec._version import __version__
from skdiec.backbones import Pretraining, load_backbone, pretrain

_MODULES = ("backbones", "datasets", "metrics", "plotting", "scores")

__all__ = ["DiffusionEmbeddedClustering", "Pretraining", "__version__", "load", "load_backbone", "pretrain", *_MODULES]


def __getattr__(name: str) -> Any:
    """Import a public module, or `load`, when it is first used."""
    if name in _MODULES:
        return importlib.import_module(f"skdiec.{name}")
    if name == "load":
        return importlib.import_module("skdiec._load").load
    raise AttributeError(f"module 'skdiec' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
