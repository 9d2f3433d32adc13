"""
Which layer and timestep cluster best?
======================================

A diffusion model holds one representation of an image for each of its layers and each timestep of its noise
schedule. This lesson draws their scores, as heat maps.
"""

# %%
# A fit
# -----
# The search needs no labels. It scores each layer at each timestep, and takes the best.

import matplotlib.pyplot as plt
from sklearn.datasets import load_digits

from skdiec import DiffusionEmbeddedClustering, Pretraining
from skdiec.plotting import SearchDisplay

images = load_digits().images[::3]
model = DiffusionEmbeddedClustering(
    n_clusters=10,
    value_range=(0, 16),
    timestep=[10, 50, 100, 200],
    pooling=4,
    n_init=2,
    backbone=Pretraining(epochs=6, channels=(16, 32)),
    random_state=0,
).fit(images)
print("chosen:", model.layer_, model.timestep_)

# %%
# Two scores
# ----------
# The paper's Scott score compares the scatter between clusters with the scatter within them. The consensus takes the
# representations where that is highest, and adds up their neighbourhood graphs, in which similar images are joined. It
# says how well the partition of a representation fits that sum. The consensus chooses: the star marks what it chose.

result = model.search_result_
figure, panels = plt.subplots(1, 2, figsize=(10, 3.2), layout="constrained")
for panel, score in zip(panels, result.scores, strict=True):
    SearchDisplay.from_estimator(model, score=score, ax=panel)
plt.show()

# %%
# Bright in both maps is what to look for. The two need not agree on the best representation, so ``criterion`` is a
# parameter.
#
# The same for less
# -----------------
# ``search="halving"`` compares layers first and timesteps then, on fewer images. All images are for the last stage.

quick = DiffusionEmbeddedClustering(
    n_clusters=10,
    value_range=(0, 16),
    timestep=[10, 50, 100, 200],
    pooling=4,
    n_init=2,
    backbone=model.backbone_,
    search="halving",
    head=None,
    random_state=0,
).fit(images)
for stage in quick.search_result_.stages:
    print(f"{stage.n_images} images, {len(stage.cells)} representations, {stage.n_evaluations:.0f} forward passes")
print(f"{quick.search_result_.n_evaluations:.0f} forward passes in all; the grid took {result.n_evaluations:.0f}")
