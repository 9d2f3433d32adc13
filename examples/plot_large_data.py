"""
More images than memory holds
=============================

Images may lie in a file, and a fit needs to see only some of them. All others are assigned afterwards.
"""

# %%
# Images in a file
# ----------------
# A memory map looks like an array, but is read piece by piece. This one has 5,391 images: each digit three times, with
# some noise.

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

from skdiec import DiffusionEmbeddedClustering, Pretraining
from skdiec.metrics import clustering_report

digits = load_digits()
pixels, labels = np.tile(digits.images, (3, 1, 1)), np.tile(digits.target, 3)
noisy = pixels + np.random.default_rng(0).normal(scale=1.0, size=pixels.shape)
path = Path(tempfile.mkdtemp()) / "images.npy"
np.save(path, (255 / 16 * noisy.clip(0, 16)).astype(np.uint8))

images = np.load(path, mmap_mode="r")
print(f"{len(images):,} images, {type(images).__name__}")

# %%
# Fit some
# --------
# A sample makes the clusters. Two settings keep the search small: ``search="halving"`` compares the representations on
# few images first, and ``max_search_samples`` limits the others.

sample = images[:: len(images) // 600]
model = DiffusionEmbeddedClustering(
    n_clusters=10,
    timestep=[25, 50, 100],
    pooling=[2, 4],
    search="halving",
    max_search_samples=500,
    backbone=Pretraining(epochs=6, channels=(16, 32)),
    random_state=0,
).fit(sample)

# %%
# Assign all
# ----------
# ``predict`` reads the file batch by batch, and keeps nothing but the labels. Its results do not depend on the batches.

found = model.predict(images)
print(clustering_report(labels, found))

figure, ax = plt.subplots(figsize=(6, 2.5), layout="constrained")
ax.bar(range(10), np.bincount(found, minlength=10))
ax.set(xlabel="cluster", ylabel="images", xticks=range(10))
plt.show()

# %%
# Where all images are to be fitted, and they are some hundred thousand, ``neighbors_algorithm="nndescent"`` finds
# neighbours faster. The time of the exact search grows with the square of their number.
