"""
Save a model, and load it elsewhere
===================================

A fitted model becomes a folder, without pickles. Another process, or another machine, loads it and goes on.
"""

# %%
# Save
# ----

import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

import skdiec
from skdiec import DiffusionEmbeddedClustering, Pretraining
from skdiec.plotting import ClusterDisplay

images = load_digits().images[::3]
model = DiffusionEmbeddedClustering(
    n_clusters=10,
    value_range=(0, 16),
    timestep=[25, 50, 100],
    pooling=[2, 4],
    backbone=Pretraining(epochs=6, channels=(16, 32)),
    random_state=0,
).fit(images)

work = Path(tempfile.mkdtemp())
model.save(work / "digits")
for path in sorted((work / "digits").iterdir()):
    print(path.name)

# %%
# Load in a fresh process
# -----------------------
# Loading runs no code of the model: its files are JSON and numbers. So a model from elsewhere can be looked at.

code = """
import numpy as np, skdiec
model = skdiec.load("digits")
np.save("labels.npy", model.predict(np.load("images.npy")))
"""
np.save(work / "images.npy", images)
subprocess.run([sys.executable, "-c", code], cwd=work, check=True)

# %%
# It predicts what the saved one does.

print("the same labels:", np.array_equal(np.load(work / "labels.npy"), model.predict(images)))

# %%
# Go on with it
# -------------
# All that was fitted is there: labels, embedding, history, and the tree of clusters. The images of the fit are not
# kept, so they are passed.

loaded = skdiec.load(work / "digits")
print("clusters in five groups:", np.unique(loaded.labels_at(5), return_counts=True)[1])
ClusterDisplay.from_estimator(loaded, images, n_images=8)
plt.show()
