"""
How the clusters form
=====================

Training draws images towards the centre of their cluster. This lesson draws the embedding on the way, and looks whether
training has helped.
"""

# %%
# Keep some epochs
# ----------------
# ``n_snapshots`` is the number of epochs whose embeddings are kept, from the first to the last.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

from skdiec import DiffusionEmbeddedClustering, Pretraining
from skdiec.metrics import clustering_report
from skdiec.plotting import EmbeddingDisplay, HistoryDisplay

digits = load_digits()
images, labels = digits.images[::3], digits.target[::3]
model = DiffusionEmbeddedClustering(
    n_clusters=10,
    value_range=(0, 16),
    timestep=[25, 50, 100],
    pooling=[2, 4],
    backbone=Pretraining(epochs=6, channels=(16, 32)),
    n_snapshots=4,
    random_state=0,
).fit(images)

# %%
# The embedding over epochs
# -------------------------
# All panels have one map: that of the last epoch, applied to the earlier ones. So distances can be compared.

EmbeddingDisplay.from_history(model, random_state=0)
plt.show()

# %%
# The losses
# ----------
# In the first epochs the network learns the initial partition. From the dotted line on, its own sure assignments are
# the target. The dashed line is the share of images that changed cluster: training ends when hardly any does.

HistoryDisplay.from_estimator(model)
plt.show()

# %%
# Did it help?
# ------------
# Clusters always end further apart than they began, since that is what training does. It does not follow that they are
# better: training may also lower the accuracy, and on few images, as here, it often does. The losses do not tell, for
# they fall in either case. Where labels are known, comparing with the initial partition tells.

print("initial partition", clustering_report(labels, model.initial_labels_))
print("after training   ", clustering_report(labels, model.labels_))

# %%
# Where none are known, look at the images that training has moved to another cluster. They are few. Each is drawn over
# the numbers of its clusters, before and after.

moved = np.flatnonzero(model.labels_ != model.initial_labels_)
print(f"{len(moved)} of {len(images)} images were moved")
figure, panels = plt.subplots(2, 10, figsize=(10, 2.6), layout="constrained")
for panel in panels.flat:
    panel.axis("off")
for panel, row in zip(panels.flat, moved, strict=False):
    panel.imshow(images[row], cmap="gray_r")
    panel.set_title(f"{model.initial_labels_[row]} to {model.labels_[row]}", fontsize=8)
plt.show()

# %%
# If most of them were better off before, leave training out: ``head=None`` keeps the initial partition, but for images
# that are nearer to the mean of another cluster. More images, or a backbone that was trained for longer, help both.
#
# The last map alone
# ------------------
# It shows how clusters lie to each other, by t-SNE. Distances between clusters mean little in it.

EmbeddingDisplay.from_estimator(model, random_state=0)
plt.show()
