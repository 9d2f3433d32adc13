"""What images were encoded to, kept in memory and past a limit in files."""

import copy
import gc
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from skdiec import storage
from skdiec.storage import LatentCache, empty_array


class Source:
    """Stands for images."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count


def values(rows, view=0):
    return (
        np.asarray(rows, dtype=np.float32)[:, None, None] * 10 + view + np.arange(6.0, dtype=np.float32).reshape(2, 3)
    )


def test_rows_are_given_back_in_the_order_in_which_they_are_asked_for():
    cache, source = LatentCache(), Source(1000)
    rows = np.array([5, 900, 3, 77])
    assert cache.get(source, (0, 0), rows) is None
    cache.put(source, (0, 0), rows, values(rows))
    for asked in (rows, rows[::-1], np.array([3]), np.array([77, 77, 5])):
        np.testing.assert_array_equal(cache.get(source, (0, 0), asked), values(asked))
        assert cache.has(source, (0, 0), asked)
    assert cache.get(source, (0, 0), np.array([3, 4])) is None
    assert not cache.has(source, (0, 0), np.array([3, 4]))
    cache.put(source, (0, 0), np.array([4, 3]), values([4, 3], view=7))  # what is there stays
    np.testing.assert_array_equal(cache.get(source, (0, 0), np.array([3])), values([3]))
    np.testing.assert_array_equal(cache.get(source, (0, 0), np.array([4])), values([4], view=7))


def test_views_and_sources_are_told_apart():
    cache, one, two = LatentCache(), Source(9), Source(9)
    rows = np.arange(9)
    for number, (source, view) in enumerate([(one, (0, 0)), (one, (1, 0)), (two, (0, 0))]):
        cache.put(source, view, rows, values(rows, view=number))
    np.testing.assert_array_equal(cache.get(one, (1, 0), rows), values(rows, view=1))
    np.testing.assert_array_equal(cache.get(two, (0, 0), rows), values(rows, view=2))
    assert cache.get(two, (1, 0), rows) is None
    del one, source
    gc.collect()
    assert len(cache._stores) == 1  # what belonged to it went with it


@pytest.mark.parametrize("limit", [0, 2 * 256 * 24, 10**9])
def test_past_a_limit_they_go_to_files(limit, monkeypatch):
    monkeypatch.setattr(storage, "MEMORY_MAP_ABOVE", limit)
    cache, source = LatentCache(), Source(1000)
    order = np.random.default_rng(0).permutation(1000)
    for rows in np.array_split(order, 7):
        cache.put(source, "view", rows, values(rows))
    np.testing.assert_array_equal(cache.get(source, "view", np.arange(1000)), values(np.arange(1000)))
    blocks = cache._stores[source]["view"].blocks
    in_memory = {0: 0, 2 * 256 * 24: 2, 10**9: 4}[limit]
    assert [isinstance(block, np.memmap) for block in blocks] == [False] * in_memory + [True] * (4 - in_memory)


def test_copies_and_pickles_are_empty():
    cache, source = LatentCache(), Source(3)
    cache.put(source, 0, np.arange(3), values(np.arange(3)))
    for other in (copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))):
        assert other.get(source, 0, np.arange(3)) is None


def test_threads_share_it():
    cache, source, start = LatentCache(), Source(600), threading.Barrier(4, timeout=30)

    def work(part):
        start.wait()
        for rows in np.array_split(np.arange(part, 600, 4), 20):
            cache.put(source, 0, rows, values(rows))
            np.testing.assert_array_equal(cache.get(source, 0, rows), values(rows))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    np.testing.assert_array_equal(cache.get(source, 0, np.arange(600)), values(np.arange(600)))


def test_memory_that_is_taken_counts(monkeypatch):
    monkeypatch.setattr(storage, "MEMORY_MAP_ABOVE", 100)
    assert not isinstance(empty_array((10,), np.float32, used=60), np.memmap)
    assert isinstance(empty_array((10,), np.float32, used=61), np.memmap)
