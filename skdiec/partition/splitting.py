"""Merging two clusters and splitting another one, where that mends what k-means has got wrong."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from skdiec.partition.merging import in_order, links_between, strongest_link

WEAKER_BY = 1.2
"""By which factor the strongest link must fall for other clusters to be preferred."""

LOWER_BY = 1.02
"""By which factor the cut must fall: of representations that hardly tell two partitions apart, it may prefer either."""

_MOST_STEPS = 10


def split_and_merge(
    graph: sparse.csr_array,
    labels: NDArray[np.integer],
    cut: Callable[[NDArray[np.int32]], float],
    halves: Callable[[NDArray[np.integer]], NDArray[np.integer]],
) -> NDArray[np.int32]:
    """Merge the two clusters with the strongest link and split another one in two, as long as that mends a partition.

    k-means often splits one class and leaves two others together, from whichever start. Two halves of a class have a
    strong link (`strongest_link`). So the clusters with the strongest one are merged, and the cluster is split whose
    split gives the lowest cut. The new partition is taken if its cut is clearly lower, and its strongest link weaker by
    far. Where classes overlap, links hardly fall whatever is merged, and there a lower cut says little. Of several
    mistakes, those are mended whose link stands out from all others.

    Parameters
    ----------
    graph : sparse array of shape (n, n)
        Neighbourhood graph.
    labels : integer array of shape (n,)
    cut : callable
        ``cut(labels)``, lower is better.
    halves : callable
        ``halves(members)`` returns 0 or 1 for each of some rows, to split a cluster; all 0 where it cannot be split.
        Only called where there may be something to mend.

    Returns
    -------
    ndarray of shape (n,), int32
        As many clusters as before, numbered from 0 in the order of their first rows.
    """
    found = in_order(labels)
    lowest = cut(found)
    for _ in range(_MOST_STEPS):
        links = links_between(graph, found)
        first, second = sorted(divmod(int(links.argmax()), len(links)))
        limit = links[first, second] / WEAKER_BY
        if not limit > 0:
            break
        merged = np.where(found == second, first, found).astype(np.int32)
        splits = []
        for cluster in _may_be_split(links_between(graph, merged) > limit, merged):
            members = np.flatnonzero(merged == cluster)
            half = members[halves(members) == 1]
            if 0 < len(half) < len(members):
                splits.append(merged.copy())
                splits[-1][half] = second
        cuts = [cut(split) for split in splits]
        if not splits or LOWER_BY * min(cuts) > lowest:
            break
        split = splits[int(np.argmin(cuts))]
        if strongest_link(graph, split) > limit:
            break
        found, lowest = in_order(split), min(cuts)
    return found


def _may_be_split(is_strong: NDArray[np.bool_], labels: NDArray[np.int32]) -> NDArray[np.integer]:
    """Return the clusters that all strong links are of: a split of any other one would leave a strong link."""
    n_links = is_strong.sum()
    has_all = 2 * is_strong.sum(axis=0) == n_links
    return np.flatnonzero(has_all & (np.bincount(labels, minlength=len(is_strong)) > 1))
