"""
Stop early, by a callback
=========================

A callback of scikit-learn sees each step of a fit, and may end it. This lesson ends training as soon as hardly any
image changes cluster. It needs scikit-learn 1.9 or newer.
"""

# %%
# A callback
# ----------
# It is an object with four methods. ``context`` says what has ended: below the task ``"training"`` of a fit, there is a
# task for each epoch. ``fitted_estimator`` is the model as it would be if training ended there. Where the callback
# returns True, it does.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

from skdiec import DiffusionEmbeddedClustering, Pretraining
from skdiec.plotting import HistoryDisplay


class StopWhenSettled:
    """End training after an epoch in which few images changed cluster."""

    def __init__(self, share):
        self.share = share

    def setup(self, estimator, context):
        self.labels = None

    def teardown(self, estimator, context):
        pass

    def on_fit_task_begin(self, estimator, context):
        pass

    def on_fit_task_end(self, estimator, context, *, fitted_estimator=None):
        if context.parent is None or context.parent.task_name != "training":
            return False
        before, self.labels = self.labels, fitted_estimator.labels_
        return before is not None and np.mean(before != self.labels) < self.share


# %%
# With it and without
# -------------------
# Both fits have the same backbone, so that only their training differs. The parameter ``tol`` does nearly the same as
# this callback, but leaves the first epochs alone.

images = load_digits().images[::3]
whole = DiffusionEmbeddedClustering(
    n_clusters=10,
    value_range=(0, 16),
    timestep=[25, 50, 100],
    pooling=[2, 4],
    backbone=Pretraining(epochs=6, channels=(16, 32)),
    random_state=0,
).fit(images)
stopped = DiffusionEmbeddedClustering(**{**whole.get_params(deep=False), "backbone": whole.backbone_})
stopped.set_callbacks(StopWhenSettled(share=0.01)).fit(images)

print(f"epochs without it: {whole.n_iter_}, with it: {stopped.n_iter_}")
figure, panels = plt.subplots(1, 2, figsize=(10, 3.5), layout="constrained", sharey=True)
for panel, model in zip(panels, (whole, stopped), strict=True):
    HistoryDisplay.from_estimator(model, ax=panel)
plt.show()

# %%
# The model is that of the best epoch so far. These fits are over within seconds in any case. A callback pays where
# ``train_backbone=True`` makes epochs long.
