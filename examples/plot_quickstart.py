"""
Cluster images without labels
=============================

The shortest use: images in, clusters out. No labels, no download and no pretrained model are needed, since the fit
trains a small diffusion model on the images first.
"""

# %%
# Fit
# ---
# Every third of scikit-learn's digits and a short training keep this lesson quick. Pixels run from 0 to 16, which has
# to be said: floats could mean anything.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

from skdiec import DiffusionEmbeddedClustering, Pretraining
from skdiec.metrics import clustering_report
from skdiec.plotting import ClusterDisplay, TreeDisplay

digits = load_digits()
images, labels = digits.images[::3], digits.target[::3]
model = DiffusionEmbeddedClustering(
    n_clusters=10,
    value_range=(0, 16),
    backbone=Pretraining(epochs=6, channels=(16, 32)),
    random_state=0,
)
found = model.fit_predict(images)

# %%
# What is in the clusters
# -----------------------
# Each row is a cluster. Its surest images are on the left, its least sure ones on the right.

ClusterDisplay.from_estimator(model, images)
plt.show()

# %%
# How sure are they?
# ------------------
# Two figures need no labels. ``cut_over_noise_`` is near 0 where clusters lie apart, and near 1 where noise could be
# cut as well. ``stability_`` is near 1 where other seeds would find the same clusters.

print(f"cut over noise: {model.cut_over_noise_:.2f}")
print(f"stability:      {model.stability_:.2f}")

# %%
# Here the digits are known, so the clusters can be compared with them. The fit has not seen them.

print(clustering_report(labels, found))

# %%
# Another number of clusters
# --------------------------
# The clusters are joined in a tree. Each leaf on the right is a part of a cluster, with the number of its images.
# ``labels_at`` cuts the tree at another number of clusters, without a second fit. Here it is five in place of ten.

TreeDisplay.from_estimator(model)
plt.show()
print("images in each of five clusters:", np.bincount(model.labels_at(5)))

# %%
# New images
# ----------
# The model puts images that it has not seen into the clusters that it has found.

print(model.predict(digits.images[1:11]))
