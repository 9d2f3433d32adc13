"""
How the clusters form
=====================

Training draws images towards the centre of their cluster. This lesson draws the embedding on the way.
"""

# %%
# Keep some epochs
# ----------------
# ``n_snapshots`` is the number of epochs whose embeddings are kept, from the first to the last.

import matplotlib.pyplot as plt
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
# Before and after
# ----------------
# Training moves few images to another cluster. What it changes is how far apart clusters lie.

print("initial partition", clustering_report(labels, model.initial_labels_))
print("after training   ", clustering_report(labels, model.labels_))

# %%
# A map of the final embedding alone shows how clusters lie to each other, with t-SNE by default.

EmbeddingDisplay.from_estimator(model, random_state=0)
plt.show()
