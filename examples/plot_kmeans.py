"""
Compared with k-means
=====================

K-means on pixels is the yardstick of this field. This lesson puts the estimator beside it.
"""

# %%
# Two ways to cluster digits
# --------------------------
# The estimator has an initial partition first, and trains from there. Both are compared with k-means.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits

from skdiec import DiffusionEmbeddedClustering, Pretraining
from skdiec.metrics import clustering_report

digits = load_digits()
images, labels = digits.images[::2], digits.target[::2]
model = DiffusionEmbeddedClustering(
    n_clusters=10,
    value_range=(0, 16),
    timestep=[25, 50, 100],
    pooling=[2, 4],
    backbone=Pretraining(epochs=6, channels=(16, 32)),
    random_state=0,
).fit(images)
found = {
    "k-means on pixels": KMeans(10, n_init=10, random_state=0).fit_predict(images.reshape(len(images), -1)),
    "initial partition": model.initial_labels_,
    "after training": model.labels_,
}

# %%
# Against the true digits
# -----------------------
# Accuracy (ACC) is the share of images in the right cluster, under the best match of clusters and digits. NMI and ARI
# compare the partitions themselves. 1 is perfect in all three.

reports = {name: clustering_report(labels, clusters) for name, clusters in found.items()}
for name, report in reports.items():
    print(f"{name:<17}  {report}")

figure, ax = plt.subplots(figsize=(7, 3), layout="constrained")
for place, (name, report) in enumerate(reports.items()):
    ax.bar(np.arange(3) + 0.25 * (place - 1), [report.acc, report.nmi, report.ari], width=0.22, label=name)
ax.set(xticks=range(3), xticklabels=["ACC", "NMI", "ARI"], ylim=(0, 1))
ax.legend(loc="lower left")
plt.show()

# %%
# Most of the gain is there before training. On few images, training may also lower the accuracy. One seed of one data
# set is an example, no proof. The page on benchmarks has more of both.
