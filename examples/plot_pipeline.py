"""
In a pipeline
=============

The estimator is a clusterer and a transformer, so that it can be any step of a pipeline. Here a step before it
prepares the images, and a classifier after it uses the embedding.
"""

# %%
# A step before
# -------------
# Rows of a table are images where ``image_shape`` says so. The first step turns ink from white to black.

import matplotlib.pyplot as plt
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from skdiec import DiffusionEmbeddedClustering, Pretraining
from skdiec.plotting import ClusterDisplay


def invert(X):
    return 16 - X


digits = load_digits()
train, test, train_labels, test_labels = train_test_split(
    digits.data[::3], digits.target[::3], test_size=0.3, random_state=0
)
model = DiffusionEmbeddedClustering(
    n_clusters=10,
    image_shape=(8, 8),
    value_range=(0, 16),
    timestep=[25, 50, 100],
    backbone=Pretraining(epochs=6, channels=(16, 32)),
    random_state=0,
)
clusters = make_pipeline(FunctionTransformer(invert), model).fit(train)

# %%
# The pipeline assigns images that it has not seen. Its last step is the fitted model.

print(clusters.predict(test)[:10])
ClusterDisplay.from_estimator(clusters[-1], clusters[:-1].transform(train))
plt.show()

# %%
# A step after
# ------------
# As a step in the middle, the model embeds images. Its fit does not look at the labels; the classifier does. The first
# pipeline has a backbone already, so this fit needs to train none.

model.set_params(backbone=clusters[-1].backbone_)
classifier = make_pipeline(FunctionTransformer(invert), model, KNeighborsClassifier(n_neighbors=5))
classifier.fit(train, train_labels)
print(f"accuracy on new images: {classifier.score(test, test_labels):.2f}")
