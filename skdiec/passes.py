"""How many forward passes a fit takes, told before them, and how long, told once their speed is known."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from skdiec.messages import duration
from skdiec.search import IMAGES_PER_CLUSTER, SUBSET_FRACTION

logger = logging.getLogger(__name__)


def search_passes(
    strategy: str, *, n_images: int, n_draws: int, n_timesteps: int, n_clusters: int, n_final: int = 0
) -> int:
    """Return how many images a search sends through the network at most, noise draws counted.

    Parameters
    ----------
    strategy : {"grid", "halving"}
    n_images, n_draws, n_timesteps, n_clusters, n_final : int
        As in `search_cells`.

    Returns
    -------
    int
        Of the grid, not only at most, if there are several cells to compare in the end.
    """
    if strategy == "grid":
        return n_timesteps * n_draws * n_images + n_final
    # Each timestep is scored on one draw of fewer images, if at all, then the best one on all.
    size = min(n_images, max(n_images // SUBSET_FRACTION, IMAGES_PER_CLUSTER * n_clusters))
    return n_timesteps * size + n_draws * n_images + n_final


@dataclass
class Passes:
    """The forward passes of a fit, of one image each.

    Parameters
    ----------
    n_search : int
        Of the search, at most.
    n_features : int
        Of the features of all images.
    share : float
        Of a whole pass, what the deepest layer that is wanted takes.
    multiplications : int
        Of a whole pass.

    Examples
    --------
    >>> passes = Passes(16_000, 46_490, 0.87, 350_000_000)
    >>> passes.in_words().partition(", each")[2]
    ' up to 87 % of 0.35 billion multiplications'
    """

    n_search: int
    n_features: int
    share: float
    multiplications: int
    _is_timed: bool = field(default=False, repr=False)

    def in_words(self) -> str:
        """Return what lies ahead."""
        return (
            f"ahead: at most {self.n_search:,} passes for the search and {self.n_features:,} for the features, each up "
            f"to {100 * self.share:.0f} % of {self.multiplications / 1e9:.2g} billion multiplications"
        )

    def announce(self) -> None:
        """Log what lies ahead."""
        logger.info(self.in_words())

    def timed(
        self,
        n_left: int,
        *,
        at_once: int,
        per_image: int = 1,
        then: Callable[[int, int], object] = lambda done, total: None,
    ) -> Callable[[int, int], None]:
        """Return what logs how long the passes that are left will take, as soon as their speed is known.

        Parameters
        ----------
        n_left : int
            Passes that are about to begin, and all after them.
        at_once : int
            Images whose passes are side by side: before all of these are through, there is no speed.
        per_image : int, default=1
            Passes of each image.
        then : callable
            Called with the same.

        Returns
        -------
        callable
            To be called as ``report(done, total)``, in images. Only the first one that is called far enough logs.
        """
        started = time.monotonic()

        def report(done: int, total: int) -> None:
            if not self._is_timed and done >= min(at_once, total):
                self._is_timed = True
                seconds = (time.monotonic() - started) * n_left / (done * per_image)
                logger.info("at the speed of the first %s images, they take about %s", f"{done:,}", duration(seconds))
            then(done, total)

        return report
