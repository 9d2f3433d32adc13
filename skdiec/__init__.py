"""skdiec: cluster images with what a pretrained diffusion model already knows.

`DiffusionEmbeddedClustering` is a scikit-learn estimator for the method of "DiEC: Diffusion Embedded
Clustering" (https://arxiv.org/abs/2512.20905); `pretrain` trains a compact diffusion model on unlabelled images and
`load_backbone` reads one that exists. `load` reads a fitted estimator that was saved. `skdiec.metrics` and
`skdiec.scores` evaluate clusterings, `skdiec.datasets` has what they are compared on.
"""

import importlib
from typing import Any

from skdiec._estimator import DiffusionEmbeddedClustering
from skdiec._version import __version__
from skdiec.backbones import load_backbone, pretrain

_MODULES = ("datasets", "metrics", "scores")

__all__ = ["DiffusionEmbeddedClustering", "__version__", "load", "load_backbone", "pretrain", *_MODULES]


def __getattr__(name: str) -> Any:
    """Import a public module, or `load`, when it is first used."""
    if name in _MODULES:
        return importlib.import_module(f"skdiec.{name}")
    if name == "load":
        return importlib.import_module("skdiec._load").load
    raise AttributeError(f"module 'skdiec' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
