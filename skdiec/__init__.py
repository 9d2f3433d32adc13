"""skdiec: cluster images with what a pretrained diffusion model already knows.

`DiffusionEmbeddedClustering` is a scikit-learn estimator for the method of "DiEC: Diffusion Embedded
Clustering" (https://arxiv.org/abs/2512.20905); `pretrain` trains a compact diffusion model on unlabelled images and
`load_backbone` reads one that exists. `skdiec.metrics` and `skdiec.scores` evaluate clusterings.
"""

from skdiec._estimator import DiffusionEmbeddedClustering
from skdiec._version import __version__
from skdiec.backbones import load_backbone, pretrain

__all__ = ["DiffusionEmbeddedClustering", "__version__", "load_backbone", "pretrain"]
