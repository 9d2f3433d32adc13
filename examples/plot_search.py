"""
Which layer and timestep cluster best?
======================================

A diffusion model holds one representation of an image for each of its layers and each timestep of its noise
schedule. This example trains a small model on scikit-learn's digits, searches its representations without labels, and
shows what the search saw.
"""

# %%
# A quick model
# -------------
# Six passes over a third of the images make a small, weak diffusion model within seconds; the quickstart takes all
# images and trains for longer. Pixels of these images run from 0 to 16, which has to be said: floats could mean
# anything.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

from skdiec import DiffusionEmbeddedClustering, Pretraining
from skdiec.metrics import clustering_report
from skdiec.plotting import ClusterDisplay, EmbeddingDisplay, HistoryDisplay, SearchDisplay

digits = load_digits()
images, labels = digits.images[::3], digits.target[::3]
model = DiffusionEmbeddedClustering(
    n_clusters=10,
    value_range=(0, 16),
    timestep=[10, 50, 100, 200],
    pooling=4,
    n_init=2,
    backbone=Pretraining(epochs=6, channels=(16, 32)),
    n_snapshots=4,
    random_state=0,
)
model.fit(images)
print("chosen:", model.layer_, model.timestep_, model.pooling_)

# %%
# The scores of the search
# ------------------------
# The paper's Scott score compares the scatter between clusters with that within. The estimator trusts the quarter of
# the cells in which it is highest, adds up their neighbourhood graphs, and chooses the cell whose partition has the
# highest modularity on that consensus. The Scott scores stay in ``scott_scores_``.

result = model.search_result_
figure, panels = plt.subplots(1, 2, figsize=(10, 3.2), layout="constrained")
for panel, score in zip(panels, result.scores, strict=True):
    SearchDisplay.from_estimator(model, score=score, ax=panel)
plt.show()

# %%
# The same for less
# -----------------
# ``search="halving"`` compares layers at two timesteps first, then timesteps with the layers that are left, on fewer
# images, and looks at all of them only for the last cells. Each stage says what it scored, and what it cost in whole
# forward passes.

quick = DiffusionEmbeddedClustering(
    n_clusters=10,
    backbone=model.backbone_,
    value_range=(0, 16),
    timestep=[10, 50, 100, 200],
    pooling=4,
    n_init=2,
    search="halving",
    head=None,
    random_state=0,
).fit(images)
for stage in quick.search_result_.stages:
    cells = ", ".join(f"{cell.layer} {cell.timestep}" for cell in stage.cells)
    print(f"{stage.n_images} images, {stage.n_evaluations:.0f} passes: {cells}")
print(f"{quick.search_result_.n_evaluations:.0f} passes in all; the grid took {result.n_evaluations:.0f}")

# %%
# What training did
# -----------------
# The loss falls while the head learns the start's partition, then DEC's own target takes over. ``n_snapshots`` kept
# embeddings on the way: clusters draw together and apart. The labels only tell afterwards how it went.

HistoryDisplay.from_estimator(model)
EmbeddingDisplay.from_history(model, random_state=0)
plt.show()
print("start   ", clustering_report(labels, model.initial_labels_))
print("trained ", clustering_report(labels, model.labels_))
print("sizes   ", np.bincount(model.labels_))

# %%
# What is in the clusters
# -----------------------
# Each row shows a cluster, the surest images on the left. Where the images on the right are of another digit, the
# features do not tell the two apart.

ClusterDisplay.from_estimator(model, images)
plt.show()

# %%
# In the maps of the search, look for where both are bright: a good representation has dropped what tells one stroke
# from another and still holds what tells digits apart. The two scores need not agree on the best cell, which is why
# the criterion is a parameter.
