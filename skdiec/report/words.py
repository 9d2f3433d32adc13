"""What the figures and the warnings of a fit mean, in words that one can act on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from skdiec.messages import shortened
from skdiec.report.findings import CLEAR, Membership

SURE_STABILITY = 0.96
"""From which stability on other seeds find about the same clusters."""

HARDLY_BETTER, APART = 0.9, 0.5
"""Of the cut of noise: above the first clusters are hardly better than noise, below the second they lie apart."""

MAX_TEXT = 300
"""Characters of a warning at most: some list the sizes of all clusters."""

MOSTLY_CLEAR, HALF_CLEAR = 0.9, 0.6
"""Shares of images that are clearly in their cluster."""

AGREE, ABOUT_AGREE = 1.2, 2.0
"""Two scores say about the same number of clusters if one's is at most so many times that of the other."""

GOOD, FAIR, POOR = "good", "fair", "poor"


@dataclass(frozen=True)
class Figure:
    """A figure of the headline.

    Attributes
    ----------
    name, value : str
    grade : {"good", "fair", "poor"}
    verdict : str
        What the value means.
    explanation : str
        What the figure is.
    """

    name: str
    value: str
    grade: str
    verdict: str
    explanation: str


@dataclass(frozen=True)
class Advice:
    """A warning, and what to do about it.

    Attributes
    ----------
    text, meaning, action : str
        The latter two are empty for a warning of another library.
    """

    text: str
    meaning: str = ""
    action: str = ""


WARNINGS = {
    "the backbone denoises these images worse than a straight line does": (
        "Backbone and images do not fit: from each noisy pixel alone, a straight line tells the noise better. "
        "share_explained_ is below zero.",
        "If it was trained here, train longer (epochs, max_minutes or --minutes); the warning says how many steps it "
        "had. Else check value_range, the noise schedule, and that the model knows such images.",
    ),
    "has no noise schedule beside it": (
        "The model came alone. A plain DDPM schedule is taken.",
        "Nothing, if that is how it was trained. Else pass diffusers.DDPMPipeline(unet, scheduler).",
    ),
    "is many times slower than 'fp32' on this": (
        "The device has no instructions for precision.",
        'Use precision="fp32".',
    ),
    "images are read. Left out:": (
        "A folder held files that may be images but were not read. The warning counts them.",
        "Mend or move them, or pass a list of files. Input says what is left out.",
    ),
    "only the first page or frame is read of": (
        "Some files have several pages or frames.",
        "Nothing, if the first one is meant. Else save each page as a file.",
    ),
    "the clusters are hardly better than those of noise": (
        "cut_over_noise_ is above 0.9. There may be no clusters, or the features do not show them.",
        "Train the backbone longer, or on more such images. Else believe it.",
    ),
    "clusters have images": (
        "Fewer than n_clusters clusters were found: too few images differ.",
        "Lower n_clusters, or look for duplicates.",
    ),
    "training collapsed": (
        "Clusters were emptied, or one took most images. The best epoch is kept.",
        "Raise gamma or lower alpha.",
    ),
    "training diverged in epoch": (
        "The loss became infinite or not a number. The best epoch is kept.",
        "Lower learning_rate.",
    ),
    "generative drift": (
        "With train_backbone, the denoising loss rose.",
        "Lower alpha or backbone_learning_rate, or raise denoising_weight.",
    ),
}
"""What the warnings that `fit` gives mean, and what to do, by the words that they have in common: as docs/warnings.md
says."""


def advice_on(warnings: list[str]) -> list[Advice]:
    """Explain warnings.

    Parameters
    ----------
    warnings : list of str
        As `DiffusionEmbeddedClustering.warnings_`.

    Returns
    -------
    list of Advice
        One for each different warning.
    """
    found = []
    for text in dict.fromkeys(warnings):
        known = next((said for words, said in WARNINGS.items() if words in text), ("", ""))
        found.append(Advice(shortened(text, MAX_TEXT), *known))
    return found


def lead(model: Any, n_far: int, n_alike: int) -> str:
    """Say where the number of clusters comes from, and what is odd about the images.

    Parameters
    ----------
    model : DiffusionEmbeddedClustering
        Fitted.
    n_far : int
        Images that fit nowhere.
    n_alike : int
        Images with a near-duplicate.

    Returns
    -------
    str
    """
    found, asked = len(np.unique(model.labels_)), model.n_clusters
    if isinstance(asked, str):
        said = ["The fit has found this number itself; the tree below has every other one."]
    elif found == asked:
        said = ["As many as were asked for; the tree below has every other number."]
    else:
        said = [f"{asked:,} were asked for, but too few images differ."]
    if n_far:
        said.append("One image fits nowhere." if n_far == 1 else f"{n_far:,} images fit nowhere.")
    if n_alike:
        said.append(f"{n_alike:,} images have a near-duplicate.")
    return " ".join(said)


def figures(model: Any, membership: Membership) -> list[Figure]:
    """Say how sure a clustering is.

    Parameters
    ----------
    model : DiffusionEmbeddedClustering
        Fitted.
    membership : Membership
        Of its images.

    Returns
    -------
    list of Figure
        Without those that the fit has not.
    """
    number = number_found(model)
    found = [_clearness(model, membership)] if number is None else [number, _clearness(model, membership)]
    if not math.isnan(model.stability_):
        found.append(_stability(model.stability_))
    if not math.isnan(model.cut_over_noise_):
        found.append(_separation(model.cut_over_noise_))
    return found


def number_found(model: Any) -> Figure | None:
    """Say how sure the number of clusters is.

    Parameters
    ----------
    model : DiffusionEmbeddedClustering
        Fitted.

    Returns
    -------
    Figure or None
        None where the fit has not found the number itself, or had too few images for it.
    """
    scores = getattr(model, "n_clusters_scores_", None)
    if scores is None or not len(scores["n_clusters"]):
        return None
    best = {name: int(scores["n_clusters"][scores[name].argmax()]) for name in ("silhouette", "modularity")}
    low, *_, high = sorted((*best.values(), model.n_clusters_))
    grade, verdict = (
        (POOR, "There may be no clusters: these are hardly better than those of noise.")
        if model.cut_over_noise_ > HARDLY_BETTER
        else (POOR, "There may be more: no higher number was looked at, so try one.")
        if low == scores["n_clusters"][-1] and len(scores["n_clusters"]) > 1
        else (GOOD, "Two scores agree on it.")
        if high <= AGREE * low
        else (FAIR, f"Two scores agree roughly: compare it with up to {high}.")
        if high <= ABOUT_AGREE * low
        else (
            POOR,
            f"Two scores disagree, and point to numbers from {low} to {high}; the right one may lie outside. Ask for "
            "some, and compare.",
        )
    )
    return Figure(
        "Number of clusters",
        str(model.n_clusters_),
        grade,
        verdict,
        f"The silhouette is highest at {best['silhouette']} clusters, modularity at {best['modularity']}. The number "
        "is chosen by a score of both.",
    )


def _clearness(model: Any, membership: Membership) -> Figure:
    shares = membership.shares
    clear = 1.0 if shares.shape[1] < 2 else float(np.mean(shares[:, 0] >= CLEAR * shares[:, 1]))
    grade, verdict = (
        (GOOD, "Nearly all images have one cluster that they clearly belong to.")
        if clear >= MOSTLY_CLEAR
        else (FAIR, "Some images lie between clusters: look at the borderline ones.")
        if clear >= HALF_CLEAR
        else (POOR, "Many images lie between clusters: try fewer clusters, or a better backbone.")
    )
    return Figure(
        "Clear images",
        f"{100 * clear:.0f} %",
        grade,
        verdict,
        f"Images whose cluster is at least {CLEAR:g} times as likely as the next one. The mean probability is "
        f"{np.mean(model.probabilities_):.2f}; with many clusters it is low even where all is clear.",
    )


def _stability(stability: float) -> Figure:
    grade, verdict = (
        (GOOD, "Other seeds find about the same clusters.")
        if stability >= SURE_STABILITY
        else (POOR, "Other seeds may find other clusters: compare several values of random_state and n_clusters.")
    )
    return Figure(
        "Stability",
        f"{stability:.2f}",
        grade,
        verdict,
        "Agreement (adjusted Rand index, up to 1) of the initial partition with others that the images support about "
        "as well.",
    )


def _separation(cut: float) -> Figure:
    grade, verdict = (
        (GOOD, "The clusters lie apart.")
        if cut < APART
        else (FAIR, "The clusters overlap, but are better than those of noise.")
        if cut <= HARDLY_BETTER
        else (POOR, "The clusters are hardly better than those of noise: believe them only with other evidence.")
    )
    return Figure(
        "Overlap",
        f"{cut:.2f}",
        grade,
        verdict,
        "Edges of the neighbourhood graph that join clusters, compared with the best clusters of random noise: 0 is "
        "apart, 1 is no better than noise.",
    )
