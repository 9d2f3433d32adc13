"""The real nndescent, whose compilation takes up to a minute."""

import numpy as np
import pytest

from skdiec import graph as graph_module
from skdiec.graph import knn_graph


def test_nndescent_finds_nearly_the_exact_graph_and_the_same_each_time(monkeypatch):
    pytest.importorskip("pynndescent")
    X = np.random.default_rng(0).normal(size=(1500, 8)).astype(np.float32)
    exact = knn_graph(X, 6)
    small = knn_graph(X, 6, algorithm="nndescent")
    np.testing.assert_array_equal(small.toarray(), exact.toarray())  # too few rows to be worth an approximation
    monkeypatch.setattr(graph_module, "_EXACT_BELOW", 0)
    found, again = (knn_graph(X, 6, algorithm="nndescent", seed=3) for _ in range(2))
    assert np.array_equal(found.toarray(), again.toarray())
    assert found.dtype == np.float64
    assert found.diagonal().sum() == 0
    assert (found != found.T).nnz == 0
    assert found.sum() == exact.sum() == 1500 * 6  # each row has as many neighbours
    assert found.minimum(exact).sum() > 0.95 * exact.sum()


def test_nndescent_takes_duplicates(monkeypatch):
    pytest.importorskip("pynndescent")
    monkeypatch.setattr(graph_module, "_EXACT_BELOW", 0)
    graph = knn_graph(np.repeat(np.eye(8, dtype=np.float32), 30, axis=0), 5, algorithm="nndescent")
    assert graph.diagonal().sum() == 0
    assert np.array_equal(graph.indices // 30, np.repeat(np.arange(240) // 30, np.diff(graph.indptr)))
