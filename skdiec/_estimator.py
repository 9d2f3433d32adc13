"""The estimator: it orchestrates the rooms below and computes nothing itself."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import importlib.util
import logging
import math
import os
import re
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any, ClassVar

import joblib
import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from sklearn import get_config
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, ClusterMixin, TransformerMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import pairwise_distances_argmin
from sklearn.utils import Tags, check_array, check_random_state
from sklearn.utils._param_validation import (
    HasMethods,
    Interval,
    InvalidParameterError,
    StrOptions,
    validate_parameter_constraints,
)
from sklearn.utils.validation import check_is_fitted, check_memory, validate_data

from skdiec._version import __version__
from skdiec.activations import Cell
from skdiec.backbones import (
    PixelBackbone,
    check_share_explained,
    default_device,
    is_emulated,
    load_backbone,
    pretrain,
    untrained_backbone,
)
from skdiec.features import CellFeatures, FeatureExtractor, check_space, map_features, suited_batch_size
from skdiec.graph import knn_graph
from skdiec.images import (
    FileImages,
    ImageFormat,
    ImageSource,
    as_image_source,
    is_rows,
    refuse_one_image,
    thumbnails,
    unpack,
)
from skdiec.messages import MAX_LENGTH, shortened, shown
from skdiec.parallel import in_parallel, library_defaults, one_blas_thread, useful_jobs
from skdiec.partition import cluster_tree, cut_over_noise, cut_tree, initial_partition, kmeans_labels
from skdiec.scores import balanced_cut, modularity, normalized_cut
from skdiec.search import SearchResult, principal_components, search_cells
from skdiec.state import push_model, save_model
from skdiec.training import (
    BackboneEmbedder,
    Embedder,
    EmbeddingModel,
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

_SHIFT_FROM_SIDE = 16
"""Sides from which images are moved by default: in smaller ones, a pixel is too much of what they show."""

_SEARCH_COMPONENTS = 32
_SEARCH_INIT = 2

_HARDLY_BETTER = 0.9  # of the cut of noise
_LEAST_TO_TELL = 100  # images: of fewer, noise may have clusters by chance
_SPREAD = 4.0
"""Root mean square distance of projected features from their mean, on which depends how far a Student t kernel of unit
width reaches."""


class DiffusionEmbeddedClustering(ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClusterMixin, BaseEstimator):
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
        ``(black, white)`` in X. None is (0, 255) for uint8 and files of 8 bits, (0, 1) for bool, and the training
        data's range for a table. Images of other types need it. Where it is stated, it holds for all later images,
        whatever their type. Where it is not, later images must be of the type of those of `fit` (uint8 arrays and files
        of 8 bits are one type); the later rows of a table may be of any, unless it was uint8 or bool.

    layer : str or sequence of str, default=None
        Module path of the network's layer, such as ``"mid_block"``. One layer is used as it is, several are
        searched; None searches all blocks.

    timestep : int or sequence of int, default=None
        Timestep of the noise schedule, from 0. One is used, several are searched; None searches eight
        between 1 % and 40 % of the schedule.

    pooling : int or sequence of int, default=None
        Maps of activations are averaged over ``pooling x pooling`` cells. One is used, several are searched; None
        searches 1, 2 and 4.

    search : {"grid", "halving"}, default="grid"
        How to search. ``"grid"`` scores every combination of layer, timestep and pooling on the same images (Algorithm
        A1 of the paper); ``"halving"`` compares the layers first and the timesteps then, on a third of the images, and
        only the best ones on all, which costs a third, and less than a tenth where timesteps and draws are many; see
        `skdiec.search.search_cells`. `search_result_` says what each stage scored and cost.

    criterion : {"consensus", "relative_cut", "normalized_cut", "scott"} or callable, default="consensus"
        What a cell of the search is scored by. All but the Scott score look at the best partition found on the cell's
        neighbourhood graph: its modularity on the graphs of the quarter of the cells (at least four) with the highest
        Scott scores taken together (``"consensus"``); its normalised cut on its own graph, as it is or relative to what
        further clusters would cost (`skdiec.scores.relative_cut`); or ``criterion(features, labels)``, higher is
        better, such as `sklearn.metrics.silhouette_score`, which several threads call at once where `n_jobs` is None.
        ``"scott"`` is the paper's, which keeps rising with noise; `scott_scores_` is there whatever chooses.

    max_search_samples : int, default=2000
        Images, drawn at random, that cells are scored on.

    search_draws : int, default=1
        Noise draws that the scores of the search are averaged over.

    n_draws : int, default=5
        Noise draws that the features of the chosen cell are averaged over: as many forward passes for each image.

    shift : int, default=None
        Pixels by which draws after the first see the images moved: right, left, down and up by turns. None is 1 for
        images of at least 16 pixels a side, 0 for smaller ones and tables. Departs from the paper, whose draws differ
        in noise alone, as they do with 0.

    n_components : int, default=128
        Dimensions that PCA reduces features to; also those of the embedding.

    n_neighbors : int, default=10
        Neighbours of each image in the graphs that search, start, training and score use.

    neighbors_algorithm : {"exact", "nndescent"}, default="exact"
        How they are found (`skdiec.graph.knn_graph`). The time of ``"exact"`` grows with the square of the number of
        images; from some hundred thousand on take ``"nndescent"``, which is approximate and needs ``pynndescent``
        (the extra ``nndescent``). The search, on its subset, is exact.

    init : {"graph", "k-means++"} or array-like of shape (n_samples,) or (n_clusters, n_components_), default="graph"
        The partition that training starts from.

        - ``"graph"`` is the one with the lowest balanced cut (`skdiec.scores.balanced_cut`) of the neighbourhood graph
          among many spectral and k-means partitions. Where that has split a large class, as it does where sizes differ
          by far, it is one of merged clusters (`skdiec.partition.initial_partition`).
        - ``"k-means++"`` is the paper's k-means on the features.
        - One dimension: labels, the cluster of each image from 0 to n_clusters - 1, each cluster with an image. So a
          partition that was corrected by hand can be trained on.
        - Two dimensions: centres in the space of the projected features, where the embedding starts. Rows go to the
          nearest one.

    n_init : int, default=10
        k-means runs in each space that `init` tries. Of those of ``"graph"``, half are in its second round.

    head : {"residual", "direct"} or None, default="residual"
        What is trained. ``"residual"`` is z = h0 + g(h), with h0 the frozen features and g an MLP that starts at
        zero. ``"direct"`` is z = h, the paper's ablation, which needs `train_backbone`. None trains nothing: rows go
        to the nearest mean of the start's clusters.

    train_backbone : bool, default=False
        Train the backbone too (the paper's dual branch), held to denoising by `denoising_weight`. Much slower than
        the frozen default, which computes features once and leaves generation as it was.

    alpha, beta, gamma : float, default=1.0, 3.0, 1.0
        Weights of the loss's terms, from 0 to 1e6: L = L_Re + alpha L_KL + beta L_graph + gamma L_ent. The paper does
        not give them. `gamma` is also what sizes count for when partitions are compared
        (`skdiec.scores.balanced_cut`): lower it where clusters are known to be of very different sizes.

    denoising_weight : float, default=1.0
        Weight, up to 1e6, of L_Re, which matters only with `train_backbone`.

    nu : float, default=1.0
        Degrees of freedom of the Student t kernel of soft assignments, from 1e-6 to 1e6.

    hidden_size : int, default=512
        Width of the head's hidden layer.

    max_epochs : int, default=20
        Epochs of training at most.

    warmup_epochs : int, default=5
        First epochs, in which the target distribution is the start's partition itself. Departs from the paper, whose
        k-means start needs none: the graph's partition is not what lies nearest to its means. A safeguard: on USPS and
        MNIST the present head ends at the same accuracy without.

    batch_size : int, default=None
        Images per training step. None is a sixteenth of the images, from 128 to 512; with `train_backbone`, where
        memory grows with it, 128.

    learning_rate : float, default=None
        Step size of Adam for head and centres. None is 3e-3 for a `batch_size` of 128, and in proportion for others.

    backbone_learning_rate : float, default=1e-4
        Step size of Adam for the backbone, with `train_backbone`.

    tol : float, default=1e-4
        Training ends when at most this share of the images changes cluster in an epoch after warm-up.

    update_interval : int, default=1
        Epochs between updates of the target distribution and the graph's weights.

    pretrain_params : dict, default=None
        Settings of `skdiec.pretrain` for ``backbone="auto"``, such as ``{"epochs": 50}``.

    backbone_folder : path, default=None
        Where ``backbone="auto"`` saves its diffusers pipeline, resumes a training that was stopped, and finds a
        finished one, with any seed where `random_state` is None; one that was trained on other images or with other
        settings is an error. So for cross-validation, whose folds differ, train it beforehand (`skdiec.pretrain`) and
        pass the folder as `backbone`. None keeps it in `memory` where that is set, else only in `backbone_`.

    memory : str or joblib.Memory, default=None
        Cache of pretraining, search, features and start, so that fits that share them, as in a search over the head's
        parameters, compute them once. Needs a `random_state` to be of use. A search by a callable `criterion` is not
        kept, since nothing tells whether two functions of one name are the same.

    inference_batch_size : int, default=None
        Images per forward pass outside of training; halved as often as the device's memory does not suffice. None is
        64 on a CPU, where passes over small images run side by side, up to one for each of torch's threads; on a GPU
        as many as half of its free memory suffices for, from 32 to 1,024. Results do not depend on it.

    precision : {"fp32", "bf16", "fp16"}, default="fp32"
        Number format of forward passes outside of training (autocast where it is not fp32). ``"bf16"`` is faster on
        processors and GPUs that compute with it (1.5 times as fast) and many times slower on others, where a warning
        says so; it changes features by up to 2 % of their variation. On a GPU, ``"fp32"`` rules out its shortened kind
        (TF32).

    device : str, default=None
        Where networks run. None is CUDA where there is one, else the CPU.

    n_jobs : int, default=None
        Processes that score the search's cells, and threads that find neighbours and candidates of the start, as in
        scikit-learn; but for cells and candidates None, outside of a `joblib.parallel_config`, is as many threads as
        numerical libraries use. More than the machine, or joblib's backend, has workers are not used. Results do not
        depend on it.

    random_state : int, RandomState or None, default=None
        Seeds pretraining, noise, subset, start and training. Global random states are not touched, but None draws from
        numpy's, as in scikit-learn. Results repeat on machines of one kind; pretraining computes in bfloat16 where the
        hardware does, unless ``pretrain_params={"precision": "fp32"}`` says otherwise.

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

    fine_labels_ : ndarray of shape (n_samples,), int32
        A finer partition: clusters of `labels_`, split by k-means in the embedding into at most 4 each.

    linkage_ : ndarray of shape (n_fine - 1, 4), float64
        The tree of clusters: how the finer ones are merged, first into those of `labels_`, then into one. The format is
        that of `scipy.cluster.hierarchy.linkage`, its leaves are the clusters of `fine_labels_`. The height of a merge
        is 1 minus the link of the two clusters (the share of their edges that join them), or that of the merge before.

    cut_over_noise_ : float
        Whether there are clusters: the normalised cut of `labels_`, over the lowest one of Gaussian noise with the
        variance of the features. Near 0 clusters lie apart. Above 0.9, which is warned of, they are hardly better than
        what noise would be cut into. NaN for a single cluster.

    stability_ : float
        How sure the initial partition is, up to 1: its mean adjusted Rand index with its rivals, that is partitions
        which the images' neighbourhood graph supports about as well. Below 0.9 or so, other seeds will find other
        clusters. NaN where `init` is not ``"graph"``.

    initial_labels_ : ndarray of shape (n_samples,), int32
        The partition that training started from.

    layer_, timestep_, pooling_ : str, int, int
        The chosen representation: Clustering-Optimal Layer (COL), Clustering-Optimal Timestep (COT) and pooling.

    scott_scores_ : ndarray of shape (n_layers, n_timesteps), float64
        Scott scores at the chosen pooling; NaN where a layer's map is smaller than that, and where halving dropped the
        cell.

    layers_, timesteps_ : tuple
        Axes of `scott_scores_`.

    search_result_ : SearchResult
        All scores of the search, with poolings, cost and criterion.

    history_ : dict of str to ndarray
        Every loss term, cut, share of changed labels and cluster sizes for each epoch; see
        `skdiec.training.TrainingResult`.

    n_iter_ : int
        Epochs trained.

    fit_seconds_ : dict of str to float
        Wall time of each stage of `fit`: backbone, search, features, start, training.

    share_explained_ : dict of int to float
        Share of its task that the backbone solves on 256 of the images, at three timesteps: 1 minus its denoising loss
        over that of a straight line. 1 is perfect; below 0, with a warning, backbone and images do not fit.

    backbone_ : PixelBackbone
        The diffusion model; ``backbone_.save_pretrained(folder)`` saves a diffusers pipeline.

    n_components_ : int
        Dimensions of the embedding: `n_components`, or fewer where there are fewer images or features.

    image_shape_ : tuple of int
        ``(channels, height, width)`` of the images.

    value_range_ : tuple of float
        ``(black, white)`` in X.

    files_ : list of Path
        The image files in the order of `labels_`. Only where X was a folder or paths.

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

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "n_clusters": [Interval(Integral, 1, None, closed="left")],
        "backbone": [str, os.PathLike, HasMethods(["parameters"]), HasMethods(["save_pretrained"])],
        "image_shape": ["array-like", None],
        "channel_axis": [Integral, None],
        "value_range": ["array-like", None],
        "layer": [str, "array-like", None],
        "timestep": [Integral, "array-like", None],
        "pooling": [Interval(Integral, 1, None, closed="left"), "array-like", None],
        "search": [StrOptions({"grid", "halving"})],
        "criterion": [StrOptions({"consensus", "relative_cut", "normalized_cut", "scott"}), callable],
        "max_search_samples": [Interval(Integral, 2, None, closed="left")],
        "search_draws": [Interval(Integral, 1, 10_000, closed="both")],
        "n_draws": [Interval(Integral, 1, 10_000, closed="both")],
        "shift": [Interval(Integral, 0, None, closed="left"), None],
        "n_components": [Interval(Integral, 1, None, closed="left")],
        "n_neighbors": [Interval(Integral, 1, None, closed="left")],
        "neighbors_algorithm": [StrOptions({"exact", "nndescent"})],
        "init": [StrOptions({"graph", "k-means++"}), "array-like"],
        "n_init": [Interval(Integral, 1, 10_000, closed="both")],
        "head": [StrOptions({"residual", "direct"}), None],
        "train_backbone": ["boolean"],
        "alpha": [Interval(Real, 0, 1e6, closed="both")],
        "beta": [Interval(Real, 0, 1e6, closed="both")],
        "gamma": [Interval(Real, 0, 1e6, closed="both")],
        "denoising_weight": [Interval(Real, 0, 1e6, closed="both")],
        "nu": [Interval(Real, 1e-6, 1e6, closed="both")],
        "hidden_size": [Interval(Integral, 1, 2**16, closed="both")],
        "max_epochs": [Interval(Integral, 1, None, closed="left")],
        "warmup_epochs": [Interval(Integral, 0, None, closed="left")],
        "batch_size": [Interval(Integral, 1, None, closed="left"), None],
        "learning_rate": [Interval(Real, 0, 1e6, closed="right"), None],
        "backbone_learning_rate": [Interval(Real, 0, 1e6, closed="right")],
        "tol": [Interval(Real, 0, 1, closed="both")],
        "update_interval": [Interval(Integral, 1, None, closed="left")],
        "pretrain_params": [dict, None],
        "backbone_folder": [str, os.PathLike, None],
        "memory": [str, joblib.Memory, None],
        "inference_batch_size": [Interval(Integral, 1, None, closed="left"), None],
        "precision": [StrOptions({"fp32", "bf16", "fp16"})],
        "device": [str, torch.device, None],
        "n_jobs": [Interval(Integral, None, None, closed="neither"), None],
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
        criterion: str | Callable[[NDArray, NDArray], float] = "consensus",
        max_search_samples: int = 2000,
        search_draws: int = 1,
        n_draws: int = 5,
        shift: int | None = None,
        n_components: int = 128,
        n_neighbors: int = 10,
        neighbors_algorithm: str = "exact",
        init: str | ArrayLike = "graph",
        n_init: int = 10,
        head: str | None = "residual",
        train_backbone: bool = False,
        alpha: float = 1.0,
        beta: float = 3.0,
        gamma: float = 1.0,
        denoising_weight: float = 1.0,
        nu: float = 1.0,
        hidden_size: int = 512,
        max_epochs: int = 20,
        warmup_epochs: int = 5,
        batch_size: int | None = None,
        learning_rate: float | None = None,
        backbone_learning_rate: float = 1e-4,
        tol: float = 1e-4,
        update_interval: int = 1,
        pretrain_params: Mapping[str, Any] | None = None,
        backbone_folder: str | os.PathLike | None = None,
        memory: str | joblib.Memory | None = None,
        inference_batch_size: int | None = None,
        precision: str = "fp32",
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
        self.search_draws = search_draws
        self.n_draws = n_draws
        self.shift = shift
        self.n_components = n_components
        self.n_neighbors = n_neighbors
        self.neighbors_algorithm = neighbors_algorithm
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
        self.warmup_epochs = warmup_epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.backbone_learning_rate = backbone_learning_rate
        self.tol = tol
        self.update_interval = update_interval
        self.pretrain_params = pretrain_params
        self.backbone_folder = backbone_folder
        self.memory = memory
        self.inference_batch_size = inference_batch_size
        self.precision = precision
        self.device = device
        self.n_jobs = n_jobs
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: ArrayLike | str | os.PathLike | Iterable, y: Any = None) -> DiffusionEmbeddedClustering:
        """Search the representation, find the start and train the embedding.

        Parameters
        ----------
        X : array-like, folder, sequence or iterable of images or of paths
            - ``(n, height, width)``, ``(n, channels, height, width)`` or ``(n, height, width, channels)``: numpy
              array, memory map or torch tensor;
            - ``(n, features)``: flat images where `image_shape` is given, else any table;
            - a folder of image files, or a sequence of paths. Searches of scikit-learn index X: they take no folder;
            - a sequence of PIL images, arrays or tensors, such as a list or a column of a table;
            - an iterable of images or of paths, such as a generator, all of which is held in memory;
            - a map-style dataset of torch or a dataset of Hugging Face. Its labels are not looked at;
            - an array of HDF5 or zarr.

            What a dataset or a file gives is kept in memory up to 1 GiB, and else read whenever it is needed: it must
            be the same each time. `memory` and `backbone_folder` read all of it once more.
        y : ignored

        Returns
        -------
        self

        Raises
        ------
        ValueError
            For input, parameters or a backbone that do not fit, before any training; and for a backbone whose
            activations, or a criterion whose values, are not finite.
        TypeError
            For input or a backbone of a type that cannot be used.
        FloatingPointError
            Where pretraining diverges.
        ImportError
            Where `neighbors_algorithm` needs a package that is not installed.

        Warns
        -----
        UserWarning
            Where the backbone does not fit the images, clusters are hardly better than those of noise, training
            collapses, the denoising loss rises while the backbone trains, or `precision` is one that the device
            computes with slowly.
        ConvergenceWarning
            Where fewer clusters than `n_clusters` have images, as where fewer images differ.
        """
        fitting = self._checked()
        for name in [name for name in vars(fitting) if name.endswith("_") and not name.startswith("_")]:
            delattr(fitting, name)
        with _logging(fitting.verbose), library_defaults():
            fitting._fit(X)
        # In one step: a fit that fails, or is interrupted, leaves all that there was before.
        given = {name: vars(self)[name] for name in self.get_params(deep=False)}
        self.__dict__ = {**vars(fitting), **given}
        self._warn_of_empty_clusters()
        self._warn_of_noise()
        return self

    def _fit(self, X: Any) -> None:
        device = default_device(self.device)
        if is_emulated(self.precision, device):
            warnings.warn(
                f"precision={self.precision!r} is many times slower than 'fp32' on this {device.type}, which has no "
                "instructions for it",
                stacklevel=3,
            )
        memory = check_memory(self.memory)
        seeds = _Seeds.draw(self.random_state)
        # Loaded when first needed: wrong input is told of before a download.
        load = functools.cache(lambda: None if _is_auto(self.backbone) else load_backbone(self.backbone))
        source = self._image_source(self._check_input(X, reset=True), file_shape=lambda: load().image_shape)
        if len(source) < self.n_clusters:
            raise ValueError(f"n_samples={len(source)} should be >= n_clusters={self.n_clusters}.")
        if len(source) < 2:
            raise ValueError("X must hold at least 2 images to tell what they vary in; got n_samples=1")
        # Any backbone in the folder will do where no seed is asked for.
        any_seed = self.random_state is None and self.backbone_folder is not None
        pretrain_params = {
            "random_state": None if any_seed else seeds.pretrain,
            "device": device,
            "verbose": self.verbose,
            **(self.pretrain_params or {}),
        }
        backbone = load() or untrained_backbone(source, **pretrain_params)
        backbone.check_channels(source.shape[0])
        layers, timesteps, poolings = self._search_space(backbone)
        widths = [
            channels * pooling**2
            for channels, *sides in layers.values()
            for pooling in poolings
            if pooling <= min(sides)
        ]
        self._check_init(len(source), widths)
        check_space(4 * len(source) * max(widths))
        if self.shift is not None and self.shift >= min(source.shape[1:]):
            raise ValueError(
                f"shift must be less than the images' sides, {source.shape[1:]} (height, width); got {self.shift}"
            )
        files = source.paths if isinstance(source, FileImages) else None
        source = source.in_memory()

        clock = _Clock()
        if _is_auto(self.backbone):
            folder = self._pretrain_folder(source, backbone.recipe["settings"], memory)
            backbone = pretrain(source, folder, **pretrain_params)
        elif backbone is self.backbone:  # a PixelBackbone of the caller's
            backbone = backbone.copy()
        backbone = backbone.to(device)
        shares = check_share_explained(backbone, source, is_trained_on_it=_is_auto(self.backbone), seed=seeds.noise)
        shift = self.shift
        if shift is None:
            shift = int(min(source.shape[1:]) >= _SHIFT_FROM_SIDE and not source.format.is_table)
        batch_size = self.inference_batch_size or suited_batch_size(backbone)
        extractor = FeatureExtractor(backbone, self.n_draws, shift, seeds.noise, batch_size, self.precision)
        clock.stop("backbone")
        search = self._search(extractor, source, layers, timesteps, poolings, memory, seeds)
        cell = search.best
        clock.stop("search")
        features = dataclasses.replace(extractor, memory=memory).extract(source, [cell])[cell]
        clock.stop("features")
        features = np.asarray(features)  # a memory map has another hash, in the cache, than the same numbers
        with one_blas_thread:
            start = memory.cache(_find_start, ignore=["n_jobs"])(
                __version__,
                features,
                self.n_clusters,
                self.n_components,
                self.n_neighbors,
                self.neighbors_algorithm,
                self.init,
                self.n_init,
                self.gamma,
                seeds.start,
                self.n_jobs,
            )
        clock.stop("start")
        extractors = self._train(extractor, source, cell, start, seeds.head)
        clock.stop("training")

        self._format = source.format
        self._extractors, self._cell = extractors, cell
        # A trained backbone has other features now.
        self.embedding_ = self._map(source, self._model.embed) if self.train_backbone else self._model.embed(features)
        self.labels_ = self._model.assign(self.embedding_).argmax(axis=1).astype(np.int32)
        self.n_components_ = self._n_features_out = self.embedding_.shape[1]
        self.image_shape_ = source.shape
        self.value_range_ = source.format.value_range
        self.layer_, self.timestep_, self.pooling_ = search.best.layer, search.best.timestep, search.best.pooling
        self.search_result_ = search
        self.layers_, self.timesteps_ = search.layers, search.timesteps
        self.scott_scores_ = search.scores["scott"][:, :, search.poolings.index(search.best.pooling)]
        self.initial_labels_, self.stability_ = start.labels, start.stability
        tree = functools.partial(cluster_tree, self.embedding_, start.graph, self.labels_, seed=seeds.start)
        compare = functools.partial(
            cut_over_noise, start.h, self.labels_, self.n_neighbors, normalized_cut, seed=seeds.start
        )
        (self.fine_labels_, self.linkage_), self.cut_over_noise_ = in_parallel([tree, compare], 1)
        self.backbone_ = extractors[-1].backbone
        self.share_explained_ = shares
        self.fit_seconds_ = clock.seconds
        if files is not None:
            self.files_ = files
        self.n_features_in_ = math.prod(source.shape) if not source.format.is_table else self.n_features_in_

    def predict(self, X: ArrayLike | str | os.PathLike | Iterable) -> NDArray[np.int32]:
        """Assign images to the clusters.

        Parameters
        ----------
        X : array-like, folder, sequence or iterable of images or of paths
            As in `fit`.

        Returns
        -------
        ndarray of shape (n_samples,), int32
        """
        return self.predict_proba(X).argmax(axis=1).astype(np.int32)

    def predict_proba(self, X: ArrayLike | str | os.PathLike | Iterable) -> NDArray[np.float64]:
        """Assign images softly to the clusters, by a Student t kernel around each centre.

        Parameters
        ----------
        X : array-like, folder, sequence or iterable of images or of paths
            As in `fit`.

        Returns
        -------
        ndarray of shape (n_samples, n_clusters), float64
            Rows sum to 1.
        """
        fitted = self._fitted()
        with library_defaults():
            source = fitted._fitted_source(X)
            return fitted._map(source, lambda *features: fitted._model.assign(fitted._model.embed(*features)))

    def transform(self, X: ArrayLike | str | os.PathLike | Iterable) -> NDArray[np.float32]:
        """Embed images.

        Parameters
        ----------
        X : array-like, folder, sequence or iterable of images or of paths
            As in `fit`.

        Returns
        -------
        ndarray of shape (n_samples, n_components_), float32
        """
        fitted = self._fitted()
        with library_defaults():
            return fitted._map(fitted._fitted_source(X), fitted._model.embed)

    def fit_transform(self, X: ArrayLike | str | os.PathLike | Iterable, y: Any = None) -> NDArray[np.float32]:
        """Fit, and return the embedding of X without computing it again.

        Parameters
        ----------
        X : array-like, folder, sequence or iterable of images or of paths
            As in `fit`.
        y : ignored

        Returns
        -------
        ndarray of shape (n_samples, n_components_), float32
        """
        return self.fit(X).embedding_.copy()

    def labels_at(self, n_clusters: int) -> NDArray[np.int32]:
        """Cut the tree of clusters: the images of `fit` in another number of clusters, without another fit.

        Parameters
        ----------
        n_clusters : int
            From 1 to as many as `fine_labels_` has. With the number of `fit`, the result is `labels_`, numbered anew.

        Returns
        -------
        ndarray of shape (n_samples,), int32
            Numbered from 0.

        Raises
        ------
        ValueError
            For a number of clusters that the tree does not have.
        """
        check_is_fitted(self)
        highest = len(self.linkage_) + 1
        is_int = isinstance(n_clusters, Integral) and not isinstance(n_clusters, bool)
        if not is_int or not 1 <= n_clusters <= highest:
            raise ValueError(f"n_clusters must be an int from 1 to {highest}; got {shown(n_clusters)}")
        return cut_tree(self.linkage_, int(n_clusters))[self.fine_labels_]

    def score(self, X: ArrayLike | str | os.PathLike | Iterable, y: Any = None) -> float:
        """Score the clustering of images without labels, higher is better.

        The figure is the modularity (`skdiec.scores.modularity`) of the predicted labels on the neighbourhood graph of
        the images: the sum of the k-nearest-neighbour graphs of their frozen features and of their pixels (averaged
        to at most 16 x 16). Modularity compares numbers of clusters; the pixels, which are the same for all
        candidates, keep a representation from winning for what it leaves out.

        Parameters
        ----------
        X : array-like, folder, sequence or iterable of images or of paths
            As in `fit`; a few hundred images at least, better held out.
        y : ignored

        Returns
        -------
        float
            From -0.5 to 1.
        """
        fitted = self._fitted()
        with library_defaults(), one_blas_thread:
            return fitted._score(fitted._fitted_source(X))

    def save(self, folder: str | os.PathLike, *, backbone: str = "copy", overwrite: bool = False) -> None:
        """Save the fitted model as a folder, which `skdiec.load` reads without running any code.

        The folder has ``model.json`` (parameters and plain values), ``model.safetensors`` (arrays), the backbone as a
        diffusers pipeline, and a ``README.md``, which the Hugging Face Hub shows as a model card. It is written beside
        its place and renamed when it is complete: a kill leaves what was there before, or all of the new.

        Parameters
        ----------
        folder : path
            Made where it does not exist.
        backbone : {"copy", "reference"}, default="copy"
            Whether the backbone's weights are saved, or only the parameter `backbone`, a path or Hub id, with a hash of
            its weights: loading reads them from there, and fails where they are others by then.
        overwrite : bool, default=False
            Whether a saved model in the folder is replaced. A folder with anything else is refused in any case.

        Raises
        ------
        NotFittedError
            Where there is nothing to save.
        ValueError
            For a folder that is not empty, and for a `backbone` that cannot be referred to: a model that was passed,
            ``"auto"``, or one that `train_backbone` has trained.
        OSError
            Where the folder cannot be written to, for instance for want of space.

        Warns
        -----
        UserWarning
            Where parameters cannot be saved: a ``RandomState``, a callable criterion, a model as `backbone`, and any
            `memory`, whose files are pickles. The loaded model has their defaults, and predicts the same.
        """
        self._fitted()
        save_model(self, folder, backbone=backbone, overwrite=overwrite)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = False,
        token: str | bool | None = None,
        commit_message: str = "Upload a model of skdiec",
    ) -> str:
        """Save the fitted model to the Hugging Face Hub, whence ``skdiec.load(repo_id)`` loads it.

        All of it is shared, the embedding and the labels of the images of `fit` and the paths in `files_` and among the
        parameters included; the images are not.

        Parameters
        ----------
        repo_id : str
            ``"owner/name"``. Made where it does not exist; a model that it holds is replaced by a commit.
        private : bool, default=False
            Whether a new repository is private.
        token : str or bool, default=None
            Access token of the Hub. None is the one that ``hf auth login`` has stored.
        commit_message : str, default="Upload a model of skdiec"

        Returns
        -------
        str
            The address of the repository.

        Raises
        ------
        NotFittedError
            Where there is nothing to save.
        ValueError
            For a `repo_id` that is none.
        OSError
            Where it cannot be uploaded.

        Warns
        -----
        UserWarning
            As `save` does.
        """
        self._fitted()
        return push_model(self, repo_id, private=private, token=token, commit_message=commit_message)

    def _score(self, source: ImageSource) -> float:
        def label_and_project(*features: NDArray) -> NDArray[np.float64]:
            labels = self._model.assign(self._model.embed(*features)).argmax(axis=1)
            return np.column_stack([labels, self._model.projection.project(features[0])])

        labels, h = np.split(self._map(source, label_and_project), [1], axis=1)
        graphs = [
            knn_graph(rows, self.n_neighbors, algorithm=self.neighbors_algorithm, n_jobs=self.n_jobs)
            for rows in (h, thumbnails(source))
        ]
        return modularity(graphs[0] + graphs[1], labels.ravel())

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = []  # the embedding is float32 whatever X is
        return tags

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "backbone_")  # not n_features_in_, which a fit that fails later has set too

    def _fitted(self) -> DiffusionEmbeddedClustering:
        check_is_fitted(self)
        return self._checked()

    def _checked(self) -> DiffusionEmbeddedClustering:
        """Return a shallow copy, whose parameters are checked and plain numbers of Python."""
        checked = copy.copy(self)
        for name, kind in _NUMBERS.items():
            setattr(checked, name, _as_plain_number(name, getattr(self, name), kind))
        checked._check_parameters()
        checked.n_jobs = useful_jobs(checked.n_jobs)
        return checked

    def _check_constraints(self) -> None:
        """Check each parameter by scikit-learn's rules, whose messages show values at any length."""
        for name, value in self.get_params(deep=False).items():
            rules = {name: self._parameter_constraints[name]}
            try:
                validate_parameter_constraints(rules, {name: value}, caller_name=type(self).__name__)
            except InvalidParameterError as error:
                expected, _, found = str(error).partition(" Got ")
                if len(found) > MAX_LENGTH:
                    raise InvalidParameterError(f"{expected} Got {shown(value)} instead.") from None
                raise
            except Exception as error:  # of values that cannot be compared or shown
                raise InvalidParameterError(
                    f"The {name!r} parameter of {type(self).__name__} cannot be {shown(value)}."
                ) from error

    def _warn_of_noise(self) -> None:
        if self.cut_over_noise_ > _HARDLY_BETTER and len(self.labels_) >= _LEAST_TO_TELL:
            warnings.warn(
                f"the clusters are hardly better than those of noise: {self.cut_over_noise_:.2f} of its cut "
                "(cut_over_noise_; 1 is no better). Either X has no clusters, or these features do not show them: try "
                "a backbone that was trained longer, or on more such images",
                stacklevel=3,
            )

    def _warn_of_empty_clusters(self) -> None:
        found = len(np.unique(self.labels_))
        if found < self.n_clusters:
            distinct = len(np.unique(self.embedding_, axis=0))
            warnings.warn(
                f"only {found} of n_clusters={self.n_clusters} clusters have images: the {len(self.labels_)} images of "
                f"X have {distinct} different embeddings",
                ConvergenceWarning,
                stacklevel=3,
            )

    def _check_parameters(self) -> None:
        if not get_config()["skip_parameter_validation"]:
            self._check_constraints()
        try:
            check_memory(self.memory)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"memory must be a folder that can be written to; got {shown(self.memory)} ({shortened(str(error))})"
            ) from error
        for name in self.pretrain_params or {}:
            if not isinstance(name, str):
                raise ValueError(f"pretrain_params must have names of settings as keys; got {shown(name)}")
        for name, reason in _NOT_IN_PRETRAIN_PARAMS.items():
            if name in (self.pretrain_params or {}):
                raise ValueError(f"pretrain_params must not have {name!r}, {reason}")
        if self.head == "direct" and not self.train_backbone:
            raise ValueError("head='direct' trains the backbone: it needs train_backbone=True")
        if self.head is None and self.train_backbone:
            raise ValueError("train_backbone=True needs a head to train; got head=None")
        if self.neighbors_algorithm == "nndescent" and importlib.util.find_spec("pynndescent") is None:
            raise ImportError(
                "neighbors_algorithm='nndescent' needs pynndescent, which is not installed: pip install pynndescent"
            )
        if self.max_search_samples < self.n_clusters:
            raise ValueError(
                f"max_search_samples must be at least n_clusters={self.n_clusters}; got {self.max_search_samples}"
            )
        if self.n_jobs == 0:  # joblib would say so too, after the backbone was trained
            raise ValueError("n_jobs must be None, positive or negative, as in scikit-learn; got 0")
        if not isinstance(self.init, str):
            self._check_init_values()
        if callable(self.criterion):
            _check_criterion(self.criterion)

    def _check_init_values(self) -> None:
        """Raise ValueError for an array that can be neither labels nor centres of `n_clusters`."""
        try:
            values = check_array(self.init, dtype=np.float64, ensure_2d=False, input_name="init")
            if values.ndim not in (1, 2):
                raise ValueError(f"got shape {values.shape}")
        except (TypeError, ValueError) as error:
            expected = "labels of shape (n_samples,) or centres of shape (n_clusters, n_components_)"
            raise ValueError(f"init must be {expected}: {error}") from error
        if values.ndim == 2 and len(values) != self.n_clusters:
            raise ValueError(f"init must have n_clusters={self.n_clusters} rows; got shape {values.shape}")
        if values.ndim == 1:
            wrong = values[(values != np.floor(values)) | (values < 0) | (values >= self.n_clusters)]
            if len(wrong):
                raise ValueError(f"init must have integers from 0 to n_clusters - 1 as labels; got {wrong[0]:g}")
            missing = np.setdiff1d(np.arange(self.n_clusters), values)
            if len(missing):
                raise ValueError(f"init must have each of n_clusters={self.n_clusters} labels; got no {missing[0]}")

    def _check_input(self, X: Any, *, reset: bool) -> Any:
        """Unpack X, and let scikit-learn check what it knows: finite numbers, names and number of features."""
        X = unpack(X)
        if not reset and not self._format.is_table:
            refuse_one_image(X, self._format.shape)
        try:
            if is_rows(X):
                return validate_data(self, X, reset=reset)
            if isinstance(X, np.ndarray):
                return check_array(X, allow_nd=True, estimator=self, input_name="X")
        except (OverflowError, TypeError, ValueError) as error:
            message = shortened(str(error), 2 * MAX_LENGTH)  # some show all of the data
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(message if re.search(r"\bX\b", message) else f"X cannot be used: {message}") from error
        return X

    def _image_source(
        self, X: Any, *, file_shape: Callable[[], tuple[int, int, int]] | None = None, like: ImageFormat | None = None
    ) -> ImageSource:
        return as_image_source(
            X,
            image_shape=self.image_shape,
            channel_axis=self.channel_axis,
            value_range=self.value_range,
            file_shape=None if _is_auto(self.backbone) else file_shape,
            like=like,
        )

    def _fitted_source(self, X: Any) -> ImageSource:
        return self._image_source(self._check_input(X, reset=False), like=self._format)

    def _search_space(
        self, backbone: PixelBackbone
    ) -> tuple[dict[str, tuple[int, int, int]], tuple[int, ...], tuple[int, ...]]:
        """Return the candidates, checked against the backbone."""
        schedule = backbone.num_train_timesteps
        default = sorted({round(timestep * schedule / 1000) for timestep in DEFAULT_TIMESTEPS})
        default = [t for t in default if t <= backbone.max_timestep] or [backbone.max_timestep]
        timesteps = _candidates("timestep", self.timestep, default, Integral)
        for timestep in timesteps:
            backbone.check_timestep(timestep)
        poolings = _candidates("pooling", self.pooling, DEFAULT_POOLINGS, Integral)
        names = _candidates("layer", self.layer, (), str)
        layers = FeatureExtractor(backbone).layer_shapes(names or None)
        if min(poolings) < 1 or not any(min(poolings) <= min(shape[1:]) for shape in layers.values()):
            sides = {name: shape[1:] for name, shape in layers.items()}
            raise ValueError(
                f"pooling must be from 1 to the side of a layer's map, (height, width) {sides}; "
                f"got {shown(self.pooling)}"
            )
        return layers, timesteps, poolings

    def _check_init(self, n_samples: int, widths: Sequence[int]) -> None:
        """Raise ValueError for labels of other images, or centres of dimensions that the embedding cannot have."""
        if isinstance(self.init, str):
            return
        if np.ndim(self.init) == 1:
            if len(self.init) != n_samples:
                raise ValueError(f"init must have a label for each of the {n_samples} images; got {len(self.init)}")
            return
        possible = sorted({min(self.n_components, n_samples, width) for width in widths})
        if np.shape(self.init)[1] not in possible:
            raise ValueError(
                f"init must have {' or '.join(map(str, possible))} columns, the dimensions of the embedding; "
                f"got {np.shape(self.init)[1]}"
            )

    def _pretrain_folder(self, source: ImageSource, settings: Mapping[str, Any], memory: joblib.Memory) -> Path | None:
        if self.backbone_folder is not None:
            return Path(self.backbone_folder)
        if memory.location is None:
            return None
        return Path(memory.location) / "skdiec-backbones" / joblib.hash((source.fingerprint(), settings))

    def _search(
        self,
        extractor: FeatureExtractor,
        source: ImageSource,
        layers: Mapping[str, tuple[int, int, int]],
        timesteps: Sequence[int],
        poolings: Sequence[int],
        memory: joblib.Memory,
        seeds: _Seeds,
    ) -> SearchResult:
        size = min(len(source), self.max_search_samples)
        order = np.random.default_rng(seeds.subset).choice(len(source), size, replace=False)
        extractor = dataclasses.replace(extractor, n_draws=self.search_draws)
        key: tuple = ()
        if memory.location is not None:
            settings = (seeds, extractor.shift, extractor.precision, __version__)
            key = (source.fingerprint(), extractor.backbone.fingerprint(), *settings)
        if callable(self.criterion):  # joblib knows functions by their names alone, and some not at all
            memory = joblib.Memory(None)
        return memory.cache(_run_search, ignore=["extract", "n_jobs"])(
            key,
            lambda cells, draw, count: extractor.extract(source, cells, rows=order[:count], draw=draw),
            n_jobs=self.n_jobs,
            strategy=self.search,
            n_images=size,
            n_draws=self.search_draws,
            layers=layers,
            timesteps=timesteps,
            poolings=poolings,
            costs=extractor.layer_costs(layers),
            n_clusters=self.n_clusters,
            criterion=self.criterion,
            n_components=_SEARCH_COMPONENTS,
            n_neighbors=self.n_neighbors,
            n_init=min(self.n_init, _SEARCH_INIT),
            balance=self.gamma,
            seed=seeds.search,
        )

    def _train(
        self, extractor: FeatureExtractor, source: ImageSource, cell: Cell, start: _Start, seed: int
    ) -> list[FeatureExtractor]:
        """Train what `head` and `train_backbone` ask for; set the model and its history."""
        extractors = [extractor]
        # Untrained, a residual head is the identity, which is what head=None asks for.
        head = None if self.head == "direct" else ResidualHead(start.h.shape[1], self.hidden_size, seed=seed)
        device = extractor.backbone.device
        if self.train_backbone:
            extractors.append(dataclasses.replace(extractor, backbone=extractor.backbone.copy().to(device)))
            embedder: Embedder = BackboneEmbedder(
                CellFeatures(extractors[1], source, cell),
                start.projection,
                start.h,
                head,
                self.denoising_weight,
                device,
                seed,
            )
        else:
            embedder = FrozenEmbedder(start.h, head, device)
        batch_size = self.batch_size
        if batch_size is None:
            batch_size = 128 if self.train_backbone else min(max(128, len(source) // 16), 512)
        batch_size = min(batch_size, max(128, len(source)))
        config = TrainingConfig(
            alpha=self.alpha,
            beta=self.beta,
            gamma=self.gamma,
            nu=self.nu,
            max_epochs=0 if self.head is None else self.max_epochs,
            warmup_epochs=self.warmup_epochs,
            batch_size=batch_size,
            learning_rate=3e-3 * batch_size / 128 if self.learning_rate is None else self.learning_rate,
            backbone_learning_rate=self.backbone_learning_rate,
            tol=self.tol,
            update_interval=self.update_interval,
            seed=seed,
        )
        result = train(embedder, start.graph, start.labels, self.n_clusters, config)
        # As a loaded one is: kernels for weights that need gradients differ in the last bits.
        extractors[-1].backbone.network.requires_grad_(False)
        self._model = EmbeddingModel(start.projection, head, result.centers, self.nu)
        self.cluster_centers_ = self._model.centers
        self.history_ = result.history
        self.n_iter_ = result.n_epochs
        return extractors

    def _map(self, source: ImageSource, function: Callable[..., NDArray]) -> NDArray:
        device = default_device(self.device)
        backbones = [extractor.backbone.to(device) for extractor in self._extractors]
        batch_size = self.inference_batch_size or suited_batch_size(backbones[0])
        extractors = [
            dataclasses.replace(extractor, backbone=backbone, batch_size=batch_size)
            for extractor, backbone in zip(self._extractors, backbones, strict=True)
        ]
        return map_features(extractors, source, self._cell, function)


class _Clock:
    """Wall time of one stage after the other."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = time.perf_counter()

    def stop(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage], self._since = now - self._since, now


@dataclass(frozen=True)
class _Seeds:
    """One seed for each use of randomness."""

    pretrain: int
    noise: int
    subset: int
    search: int
    start: int
    head: int

    @classmethod
    def draw(cls, random_state: int | np.random.RandomState | None) -> _Seeds:
        return cls(*(int(seed) for seed in check_random_state(random_state).randint(2**31 - 1, size=6)))


@dataclass(frozen=True)
class _Start:
    """Where training starts: projected features, their graph and a partition."""

    projection: Projection
    h: NDArray[np.float64]
    graph: sparse.csr_array
    labels: NDArray[np.int32]
    stability: float


def _find_start(
    version: str,
    features: NDArray[np.float32],
    n_clusters: int,
    n_components: int,
    n_neighbors: int,
    neighbors_algorithm: str,
    init: str | ArrayLike,
    n_init: int,
    balance: float,
    seed: int,
    n_jobs: int | None,
) -> _Start:
    mean, components, variances = principal_components(features, n_components, n_jobs=n_jobs, seed=seed)
    spread = float(np.sqrt(variances.sum()))
    projection = Projection(mean, components, (spread or 1.0) / _SPREAD)
    h = projection.project(features)
    graph = knn_graph(h, n_neighbors, algorithm=neighbors_algorithm, n_jobs=n_jobs, seed=seed)
    stability = math.nan
    if not isinstance(init, str) and np.ndim(init) == 1:
        labels = np.asarray(init, dtype=np.int32)
    elif not isinstance(init, str):
        centers = np.asarray(init, dtype=np.float64)
        if centers.shape[1] != h.shape[1]:
            raise ValueError(
                f"init must have {h.shape[1]} columns, the dimensions of the embedding; got {centers.shape[1]}"
            )
        labels = pairwise_distances_argmin(h, centers).astype(np.int32)
    elif init == "k-means++":
        run = functools.partial(kmeans_labels, h, n_clusters, n_init=n_init, seed=seed)
        (labels,) = in_parallel([run], 1)
    else:
        cut = functools.partial(balanced_cut, n_clusters=n_clusters, balance=balance)
        side_by_side = functools.partial(in_parallel, n_jobs=n_jobs, threads=True)
        found = initial_partition(h, graph, n_clusters, cut, n_init=n_init, seed=seed, call_all=side_by_side)
        labels, stability = found.labels, found.stability
    return _Start(projection, h, graph, labels, stability)


def _run_search(key: tuple, extract: Callable, n_jobs: int | None, **arguments: Any) -> SearchResult:
    # A function of its own, so that joblib's key holds no closure: `key` stands for images, weights and seeds.
    return search_cells(extract, n_jobs=n_jobs, **arguments)


_NUMBERS: dict[str, Callable[[Any], float]] = {
    name: int if constraints[0].type is Integral else float
    for name, constraints in DiffusionEmbeddedClustering._parameter_constraints.items()
    if isinstance(constraints[0], Interval) and "array-like" not in constraints
}
"""Parameters that are one number, and its type."""


def _as_plain_number(name: str, value: Any, kind: type[int] | type[float]) -> Any:
    """Return a number of any library as Python's own; leave what is none for the check that follows."""
    if isinstance(value, (bool, np.bool_)):  # which Python counts among the integers
        raise ValueError(f"{name} must be a number; got {shown(value)}")
    if not isinstance(value, Integral if kind is int else Real):
        return value
    try:
        value = kind(value)
    except OverflowError:  # an integer past all floats
        return value
    # What takes any number of them takes these for all there are; longer ones cannot even be shown.
    return value if kind is float else max(-(2**63), min(value, 2**63 - 1))


_NOT_IN_PRETRAIN_PARAMS = {
    "X": "which is what fit is given",
    "folder": "for which there is backbone_folder",
    "image_shape": "which is a parameter of the estimator itself",
    "channel_axis": "which is a parameter of the estimator itself",
    "value_range": "which is a parameter of the estimator itself",
}


def _check_criterion(criterion: Callable[[NDArray, NDArray], float]) -> None:
    """Raise ValueError for a criterion that is not one, which else would show after the backbone was trained."""
    labels = np.repeat(np.arange(3), 10)
    features = np.random.default_rng(0).normal(size=(len(labels), 2)) + labels[:, None]
    expected = "criterion must return a finite number for features of shape (n, d) and labels of shape (n,)"
    try:
        value = float(criterion(features, labels))
    except Exception as error:
        raise ValueError(f"{expected}: {error!r}") from error
    if not math.isfinite(value):
        raise ValueError(f"{expected}; got {value} for three clusters of 30 random rows")


def _is_auto(backbone: object) -> bool:
    return isinstance(backbone, str) and backbone == "auto"


def _candidates(name: str, value: Any, default: Sequence[Any], kind: type) -> tuple[Any, ...]:
    """Return one value, several or the default ones as a tuple."""
    if value is None:
        return tuple(default)
    if isinstance(value, (np.ndarray, torch.Tensor)):
        value = value.tolist()  # a number where it has no axis
    values = tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else (value,)
    if not values or not all(isinstance(item, kind) and not isinstance(item, bool) for item in values):
        word = "strings" if kind is str else "integers"
        raise ValueError(f"{name} must be one or several {word}; got {shown(value)}")
    return tuple(item if kind is str else int(item) for item in dict.fromkeys(values))


@contextlib.contextmanager
def _logging(verbose: bool | int) -> Iterator[None]:
    """Show this package's log while a verbose fit runs."""
    if not verbose:
        yield
        return
    package = logging.getLogger("skdiec")
    handler, level = logging.StreamHandler(), package.level
    handler.setFormatter(logging.Formatter("[%(name)s] %(message)s"))
    package.addHandler(handler)
    package.setLevel(logging.INFO)
    try:
        yield
    finally:
        package.removeHandler(handler)
        package.setLevel(level)
