"""Draw the picture of the README: ``python docs/images/draw.py``, from the root of a clone, takes half a minute."""

from pathlib import Path

import matplotlib.pyplot as plt
from sklearn.datasets import load_digits

from skdiec import DiffusionEmbeddedClustering
from skdiec.plotting import ClusterDisplay

ROOT = Path(__file__).parents[2]

images = load_digits().images
model = DiffusionEmbeddedClustering(
    n_clusters=10,
    backbone=ROOT / "benchmarks/backbones/digits",
    value_range=(0, 16),
    layer="mid_block",
    timestep=50,
    pooling=4,
    random_state=0,
).fit(images)
ClusterDisplay.from_estimator(model, images, n_images=16)
plt.savefig(ROOT / "docs/images/digits.png", dpi=90, bbox_inches="tight")
