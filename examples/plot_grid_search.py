"""
Search parameters, and watch it
===============================

``GridSearchCV`` compares settings by the estimator's own score, which needs no labels. A progress bar of scikit-learn
shows how far it is. This lesson needs scikit-learn 1.9 or newer, and ``rich``.
"""

# %%
# What to search
# --------------
# How a backbone is trained are parameters too: ``backbone__epochs`` is the number of passes over the images. One layer
# and one timestep keep the fits short here.

import matplotlib.pyplot as plt
from sklearn.callback import ProgressBar
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV

from skdiec import DiffusionEmbeddedClustering, Pretraining

X = load_digits().data[::4]
model = DiffusionEmbeddedClustering(
    n_clusters=10,
    image_shape=(8, 8),
    value_range=(0, 16),
    layer="mid_block",
    timestep=50,
    pooling=[1, 2],
    backbone=Pretraining(channels=(16, 32), learning_rate=3e-3),
    random_state=0,
)
search = GridSearchCV(model, {"backbone__epochs": [3, 9]}, cv=2)

# %%
# A progress bar
# --------------
# Callbacks are set on the search, and reach the fits inside of it. The number is how deep the bar looks: 0 is the
# search alone, 1 the stages of each fit too.

search.set_callbacks(ProgressBar(max_propagation_depth=0))
search.fit(X)

# %%
# What was found
# --------------
# The score says how well the predicted clusters fit together on held-out images: neighbours are to be in one cluster
# (modularity). Higher is better.

results = search.cv_results_
epochs = results["param_backbone__epochs"].astype(int)
figure, ax = plt.subplots(figsize=(5, 3), layout="constrained")
ax.errorbar(epochs, results["mean_test_score"], results["std_test_score"], marker="o", capsize=4)
ax.set(xticks=epochs, xlabel="epochs of pretraining", ylabel="score on held-out images")
plt.show()
print(search.best_params_)

# %%
# The bars are the standard deviation over the folds: a difference below it says nothing. With ``memory="cache"``, fits
# that share a training compute it once.
