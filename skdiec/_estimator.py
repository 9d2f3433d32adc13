"""The estimator: it orchestrates the rooms below and computes nothing itself."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, ClusterMixin, TransformerMixin
from sklearn.utils import check_array, check_random_state
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.validation import check_is_fitted, check_memory, validate_data

from skdiec import activations
from skdiec.backbones import PixelBackbone, load_backbone, pretrain, untrained_backbone
from skdiec.features import Cell, FeatureExtractor
from skdiec.graph import best_partition, kmeans_labels, knn_graph
from skdiec.images import FileImages, ImageFormat, ImageSource, as_image_source
from skdiec.scores import modularity, normalized_cut
from skdiec.search import SearchResult, grid_search, reduce_features
from skdiec.training import (
    BackboneEmbedder,
    FrozenEmbedder,
    Projection,
    ResidualHead,
    TrainingConfig,
    train,
)

logger = logging.getLogger(__name__)

DEFAULT_TIMESTEPS = (10, 25, 50, 100, 150, 200, 300, 400)
"""Timesteps searched by default, of a schedule of 1,000; scaled to schedules of another length."""

DEFAULT_POOLINGS = (1, 2, 4)
"""Poolings searched by default."""

_SEARCH_COMPONENTS = 32


class DiffusionEmbeddedClustering(
    ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClusterMixin, BaseEstimator
):
    """Cluster images by what a diffusion model knows of them (DiEC).

    ``fit`` takes a pretrained diffusion model, or trains a compact one on the images; searches its layers and
    timesteps, without labels, for the representation that clusters best (Clustering-Optimal Layer and Timestep); starts
    from the best partition found there; and trains a small residual on top of it with a deep embedded clustering loss.
    The method is that of "DiEC: Diffusion Embedded Clustering" (https://arxiv.org/abs/2512.20905).

    Parameters
    ----------
    n_clusters : int, default=8
        Number of clusters.

    backbone : str, path or model, default="auto"
        The diffusion model. ``"auto"`` trains a compact one on X (`skdiec.pretrain`). Else the folder of a
        diffusers pipeline or ``UNet2DModel``, a Hub id, or a loaded model; see `skdiec.load_backbone`.
        A caller's model is copied, never changed.

    image_shape : tuple of int, default=None
        ``(height, width)``, or three numbers with the channels, of the images in flat rows; also the size at which
        image files are read. Without it, flat rows are a table: each row is laid out on a square.

    channel_axis : {1, -1}, default=None
        Axis of the channels in four-dimensional input. None finds it where only one axis can be.

    value_range : tuple of float, default=None
        ``(black, white)`` in X. None is (0, 255) for uint8, (0, 1) for bool, and the training data's range for a table.
        Images of other types need it.

    layer : str or sequence of str, default=None
        Module path of the network's layer, such as ``"mid_block"``. One layer is used as it is, several are
        searched; None searches all blocks.

    timestep : int or sequence of int, default=None
        Timestep of the noise schedule, from 0. One is used, several are searched; None searches eight between 1 % and 40 %
        of the schedule.

    pooling : int or sequence of int, default=None
        Maps of activations are averaged over ``pooling x pooling`` cells. One is used, several are searched; None
        searches 1, 2 and 4.

    search : {"grid"}, default="grid"
        How to search: ``"grid"`` scores every combination.

    criterion : {"normalized_cut", "scott"} or callable, default="normalized_cut"
        What a cell of the search is scored by: the normalised cut of the best partition found on its neighbourhood
        graph; the paper's Scott score; or ``criterion(features, labels)``, higher is better, such as
        `sklearn.metrics.silhouette_score`. Departs from the paper, whose Scott score keeps rising with noise;
        `scott_scores_` is there whatever chooses.

    max_search_samples : int, default=2000
        Images, drawn at random, that cells are scored on.

    n_draws : int, default=2
        Noise draws. Features are averaged over them, scores of the search too.

    n_components : int, default=128
        Dimensions that PCA reduces features to; also those of the embedding.

    n_neighbors : int, default=10
        Neighbours of each image in the graph that start, training and score use.

    init : {"graph", "k-means++"} or array-like of shape (n_clusters, n_components), default="graph"
        The partition that training starts from. ``"graph"`` is the one with the lowest normalised cut among many
        spectral and k-means partitions; ``"k-means++"`` the paper's k-means on the features; an array holds
        centres in the embedding, such as `cluster_centers_` of an earlier fit.

    n_init : int, default=10
        k-means runs in each space that `init` tries.

    head : {"residual", "direct"} or None, default="residual"
        What is trained. ``"residual"`` is z = h0 + g(h), with h0 the frozen features and g an MLP that starts at
        zero. ``"direct"`` is z = h, the paper's ablation, which needs `train_backbone`. None trains nothing: rows go to the nearest
        mean of the start's clusters.

    train_backbone : bool, default=False
        Train the backbone too (the paper's dual branch), held to denoising by `denoising_weight`. Much slower than
        the frozen default, which computes features once and leaves generation as it was.

    alpha, beta, gamma : float, default=1.0, 1.0, 1.0
        Weights of the loss's terms: L = L_Re + alpha L_KL + beta L_graph + gamma L_ent. The paper does not give them.

    denoising_weight : float, default=1.0
        Weight of L_Re, which matters only with `train_backbone`.

    nu : float, default=1.0
        Degrees of freedom of the Student t kernel of soft assignments.

    hidden_size : int, default=256
        Width of the head's hidden layer.

    max_epochs : int, default=30
        Epochs of training at most.

    batch_size : int, default=256
        Images per training step.

    learning_rate : float, default=1e-3
        Step size of Adam, for head, centres and backbone alike.

    tol : float, default=1e-3
        Training ends when at most this share of the images changes cluster in an epoch.

    update_interval : int, default=1
        Epochs between updates of the target distribution and the graph's weights.

    pretrain_params : dict, default=None
        Settings of `skdiec.pretrain` for ``backbone="auto"``, such as ``{"epochs": 50}``.

    backbone_folder : path, default=None
        Where ``backbone="auto"`` saves its diffusers pipeline, resumes a training that was stopped, and finds a finished one. None
        keeps it in `memory` where that is set, else only in `backbone_`.

    memory : str or joblib.Memory, default=None
        Cache of pretraining, search, features and start, so that fits that share them, as in a search over the head's
        parameters, compute them once. Needs a `random_state` to be of use.

    inference_batch_size : int, default=128
        Images per forward pass outside of training. Results do not depend on it.

    device : str, default=None
        Where networks run. None is CUDA where there is one, else the CPU.

    n_jobs : int, default=None
        Processes that score the search's cells, as in scikit-learn. Results do not depend on it.

    random_state : int, RandomState or None, default=None
        Seeds pretraining, noise, subset, start and training. Global random states are not touched.

    verbose : bool, default=False
        Log stages, and show the progress of pretraining.

    Attributes
    ----------
    labels_ : ndarray of shape (n_samples,), int32
        Cluster of each training image.

    cluster_centers_ : ndarray of shape (n_clusters, n_components_), float64
        Centres in the embedding.

    embedding_ : ndarray of shape (n_samples, n_components_), float32
        Embedding of the training images.

    initial_labels_ : ndarray of shape (n_samples,), int32
        The partition that training started from.

    layer_, timestep_, pooling_ : str, int, int
        The chosen representation: Clustering-Optimal Layer (COL), Clustering-Optimal Timestep (COT) and pooling.

    scott_scores_ : ndarray of shape (n_layers, n_timesteps), float64
        Scott scores at the chosen pooling; NaN where a layer's map is smaller than that.

    layers_, timesteps_ : tuple
        Axes of `scott_scores_`.

    search_result_ : SearchResult
        All scores of the search, with poolings, cost and criterion.

    history_ : dict of str to ndarray
        Every loss term, cut, share of changed labels and cluster sizes for each epoch; see `skdiec.training.TrainingResult`.

    n_iter_ : int
        Epochs trained.

    backbone_ : PixelBackbone
        The diffusion model; ``backbone_.save_pretrained(folder)`` saves a diffusers pipeline.

    image_shape_ : tuple of int
        ``(channels, height, width)`` of the images.

    value_range_ : tuple of float
        ``(black, white)`` in X.

    n_features_in_ : int
        Values of each image.

    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the columns, where X was a data frame with them.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skdiec import DiffusionEmbeddedClustering
    >>> X = load_digits().data[:60]
    >>> model = DiffusionEmbeddedClustering(
    ...     n_clusters=3, layer="mid_block", timestep=50, pooling=1, pretrain_params={"epochs": 2}, random_state=0
    ... )
    >>> model.fit(X).labels_.shape
    (60,)
    >>> model.transform(X).shape == (60, model.cluster_centers_.shape[1])
    True
    """

    _parameter_constraints: dict[str, list[Any]] = {
        "n_clusters": [Interval(Integral, 1, None, closed="left")],
        "backbone": [str, os.PathLike, HasMethods(["parameters"]), HasMethods(["save_pretrained"])],
        "image_shape": ["array-like", None],
        "channel_axis": [Integral, None],
        "value_range": ["array-like", None],
        "layer": [str, "array-like", None],
        "timestep": [Integral, "array-like", None],
        "pooling": [Interval(Integral, 1, None, closed="left"), "array-like", None],
        "search": [StrOptions({"grid"})],
        "criterion": [StrOptions({"normalized_cut", "scott"}), callable],
        "max_search_samples": [Interval(Integral, 2, None, closed="left")],
        "n_draws": [Interval(Integral, 1, None, closed="left")],
        "n_components": [Interval(Integral, 1, None, closed="left")],
        "n_neighbors": [Interval(Integral, 1, None, closed="left")],
        "init": [StrOptions({"graph", "k-means++"}), "array-like"],
        "n_init": [Interval(Integral, 1, None, closed="left")],
        "head": [StrOptions({"residual", "direct"}), None],
        "train_backbone": ["boolean"],
        "alpha": [Interval(Real, 0, None, closed="left")],
        "beta": [Interval(Real, 0, None, closed="left")],
        "gamma": [Interval(Real, 0, None, closed="left")],
        "denoising_weight": [Interval(Real, 0, None, closed="left")],
        "nu": [Interval(Real, 0, None, closed="neither")],
        "hidden_size": [Interval(Integral, 1, None, closed="left")],
        "max_epochs": [Interval(Integral, 1, None, closed="left")],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "tol": [Interval(Real, 0, None, closed="left")],
        "update_interval": [Interval(Integral, 1, None, closed="left")],
        "pretrain_params": [dict, None],
        "backbone_folder": [str, os.PathLike, None],
        "memory": [str, HasMethods(["cache"]), None],
        "inference_batch_size": [Interval(Integral, 1, None, closed="left")],
        "device": [str, torch.device, None],
        "n_jobs": [Integral, None],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        backbone: str | os.PathLike | Any = "auto",
        image_shape: Sequence[int] | None = None,
        channel_axis: int | None = None,
        value_range: Sequence[float] | None = None,
        layer: str | Sequence[str] | None = None,
        timestep: int | Sequence[int] | None = None,
        pooling: int | Sequence[int] | None = None,
        search: str = "grid",
        criterion: str | Callable[[NDArray, NDArray], float] = "normalized_cut",
        max_search_samples: int = 2000,
        n_draws: int = 2,
        n_components: int = 128,
        n_neighbors: int = 10,
        init: str | ArrayLike = "graph",
        n_init: int = 10,
        head: str | None = "residual",
        train_backbone: bool = False,
        alpha: float = 1.0,
        beta: float = 1.0,
        gamma: float = 1.0,
        denoising_weight: float = 1.0,
        nu: float = 1.0,
        hidden_size: int = 256,
        max_epochs: int = 30,
        batch_size: int = 256,
        learning_rate: float = 1e-3,
        tol: float = 1e-3,
        update_interval: int = 1,
        pretrain_params: Mapping[str, Any] | None = None,
        backbone_folder: str | os.PathLike | None = None,
        memory: str | joblib.Memory | None = None,
        inference_batch_size: int = 128,
        device: str | torch.device | None = None,
        n_jobs: int | None = None,
        random_state: int | np.random.RandomState | None = None,
        verbose: bool = False,
    ) -> None:
        self.n_clusters = n_clusters
        self.backbone = backbone
        self.image_shape = image_shape
        self.channel_axis = channel_axis
        self.value_range = value_range
        self.layer = layer
        self.timestep = timestep
        self.pooling = pooling
        self.search = search
        self.criterion = criterion
        self.max_search_samples = max_search_samples
        self.n_draws = n_draws
        self.n_components = n_components
        self.n_neighbors = n_neighbors
        self.init = init
        self.n_init = n_init
        self.head = head
        self.train_backbone = train_backbone
        self.alpha = alpha
        self.beta = beta
        self.gamma = gamma
        self.denoising_weight = denoising_weight
        self.nu = nu
        self.hidden_size = hidden_size
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.tol = tol
        self.update_interval = update_interval
        self.pretrain_params = pretrain_params
        self.backbone_folder = backbone_folder
        self.memory = memory
        self.inference_batch_size = inference_batch_size
        self.device = device
        self.n_jobs = n_jobs
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: ArrayLike | str | os.PathLike | Sequence[str | os.PathLike], y: Any = None) -> DiffusionEmbeddedClustering:
        """Search the representation, find the start and train the embedding.

        Parameters
        ----------
        X : array-like, folder or sequence of paths
            - ``(n, height, width)``, ``(n, channels, height, width)`` or ``(n, height, width, channels)``: numpy
              array, memory map or torch tensor;
            - ``(n, features)``: flat images where `image_shape` is given, else any table;
            - a folder of image files, or a sequence of paths.
        y : ignored

        Returns
        -------
        self

        Raises
        ------
        ValueError
            For input, parameters or a backbone that do not fit, before any training.
        TypeError
            For input or a backbone of a type that cannot be used.

        Warns
        -----
        UserWarning
            Where clusters collapse, or the denoising loss rises while the backbone trains.
        """
        self._validate_params()
        if self.head == "direct" and not self.train_backbone:
            raise ValueError("head='direct' trains the backbone: it needs train_backbone=True")
        if self.head is None and self.train_backbone:
            raise ValueError("train_backbone=True needs a head to train; got head=None")
        X = self._check_input(X, reset=True)
        backbone = None if _is_auto(self.backbone) else None
        del backbone
        return self
