"""skdiec: cluster images with what a pretrained diffusion model already knows.

`DiffusionEmbeddedClustering` is a scikit-learn estimator for the method of "DiEC: Diffusion Embedded Clustering"
(https://arxiv.org/abs/2512.20905). `Pretraining` says how it trains a compact diffusion model on the images; `pretrain`
trains one beforehand, `load_backbone` reads one that exists, and `skdiec.backbones.register` adds a family of them.
`load` reads a fitted estimator that was saved. `skdiec.metrics` and `skdiec.scores` evaluate clusterings,
`skdiec.datasets` has what they are compared on, `skdiec.plotting` draws them, `skdiec.naming` names their clusters, and
`skdiec.report` writes what a fit has found as a page to look at and to correct.
"""

import importlib
from typing import TYPE_CHECKING, Any

from skdiec._version import __version__

if TYPE_CHECKING:
    from skdiec._estimator import DiffusionEmbeddedClustering
    from skdiec._load import load
    from skdiec.backbones import Pretraining, load_backbone, pretrain

_MODULES = ("backbones", "datasets", "metrics", "naming", "plotting", "report", "scores")
_HOMES = {
    "DiffusionEmbeddedClustering": "_estimator",
    "Pretraining": "backbones",
    "load": "_load",
    "load_backbone": "backbones",
    "pretrain": "backbones",
}
"""The module of each public name, imported when the name is first used: so the command line answers at once."""

__all__ = ["DiffusionEmbeddedClustering", "Pretraining", "__version__", "load", "load_backbone", "pretrain", *_MODULES]


def __getattr__(name: str) -> Any:
    """Import a public name, or a public module, when it is first used."""
    if name in _HOMES:
        return getattr(importlib.import_module(f"skdiec.{_HOMES[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"skdiec.{name}")
    raise AttributeError(f"module 'skdiec' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
