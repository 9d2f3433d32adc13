"""
A folder of photos
==================

Images on disk are read from their folder. Nothing has to be loaded, scaled or cropped beforehand.
"""

# %%
# A folder
# --------
# Yours exists already. This one is made of pieces of scikit-learn's two sample photos, a temple and a flower.

import tempfile
from collections import Counter
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from skdiec import DiffusionEmbeddedClustering, Pretraining
from skdiec.plotting import ClusterDisplay

folder = Path(tempfile.mkdtemp())
rng = np.random.default_rng(0)
for name, photo in zip(["temple", "flower"], load_sample_images().images, strict=True):
    for number in range(150):
        top, left = rng.integers(0, photo.shape[0] - 64), rng.integers(0, photo.shape[1] - 64)
        Image.fromarray(photo[top : top + 64, left : left + 64]).save(folder / f"{name}-{number:03}.jpg")

# %%
# Fit it
# ------
# The folder takes the place of the images. ``image_shape`` is the size at which its files are read: whatever their own
# size is, they are scaled and cropped to it. ``patch_size=2`` folds four pixels into one, which makes training quicker.

model = DiffusionEmbeddedClustering(
    n_clusters=4,
    image_shape=(16, 16),
    timestep=[25, 50, 100],
    pooling=[2, 4],
    backbone=Pretraining(epochs=30, channels=(16, 32), patch_size=2, learning_rate=3e-3),
    random_state=0,
)
model.fit(folder)
ClusterDisplay.from_estimator(model, folder)
plt.show()

# %%
# Which file is where?
# --------------------
# ``files_`` has the files in the order of ``labels_``. Here their names tell which photo they are of.

for cluster in range(4):
    members = [path.name for path, label in zip(model.files_, model.labels_, strict=True) if label == cluster]
    photos = Counter(name.partition("-")[0] for name in members)
    print(f"cluster {cluster}: {len(members)} files, {dict(photos)}, such as {members[0]}")

# %%
# On the command line, ``skdiec cluster FOLDER -k 4`` does the same, and writes a report beside it.
