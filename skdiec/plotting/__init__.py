"""Displays of a fitted estimator, in the style of scikit-learn's.

Each has a class method, ``from_estimator(estimator)``, that draws it; ``plot`` draws it again. Without ``ax`` they make
a figure, which ``matplotlib.pyplot.show()`` shows. They need matplotlib: ``pip install "skdiec[plot]"``.
"""

from skdiec.plotting.clusters import ClusterDisplay
from skdiec.plotting.embedding import EmbeddingDisplay
from skdiec.plotting.history import HistoryDisplay
from skdiec.plotting.search import SearchDisplay
from skdiec.plotting.tree import TreeDisplay

__all__ = ["ClusterDisplay", "EmbeddingDisplay", "HistoryDisplay", "SearchDisplay", "TreeDisplay"]
