"""The estimator: it orchestrates the rooms below and computes nothing itself."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import logging
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import joblib
import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, ClusterMixin, TransformerMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import Tags, check_array, check_random_state
from sklearn.utils.validation import check_is_fitted, check_memory, validate_data

from skdiec._callbacks import OF_SKLEARN, CallbackSupportMixin, Stages, Steps, with_callbacks
from skdiec._parameters import CONSTRAINTS, check_init, check_parameters, search_space
from skdiec._version import __version__
from skdiec.activations import Cell
from skdiec.backbones import (
    Backbone,
    Pretraining,
    check_share_explained,
    default_device,
    is_emulated,
    load_backbone,
    pretrain,
    untrained_backbone,
)
from skdiec.cluster_number import MAX_CLUSTERS, MAX_IMAGES
from skdiec.features import CellFeatures, FeatureExtractor, map_features, suited_batch_size
from skdiec.graph import knn_graph
from skdiec.images import (
    FileImages,
    ImageFormat,
    ImageSource,
    as_image_source,
    distinct_rows,
    is_rows,
    refuse_one_image,
    thumbnails,
    unpack,
)
from skdiec.initialization import Initialization, first_number, initialize
from skdiec.messages import MAX_LENGTH, keeping_warnings, shortened, shown, warn
from skdiec.parallel import in_parallel, library_defaults, one_blas_thread, useful_jobs
from skdiec.partition import cluster_tree, cut_over_noise, cut_tree
from skdiec.passes import Passes, search_passes
from skdiec.scores import modularity, normalized_cut
from skdiec.search import SearchResult, search_cells
from skdiec.state import push_model, save_model
from skdiec.storage import LatentCache, check_space
from skdiec.training import (
    BackboneEmbedder,
    Embedder,
    EmbeddingModel,
    FrozenEmbedder,
    ResidualHead,
    TrainingConfig,
    TrainingState,
    train,
)

logger = logging.getLogger(__name__)

_SHIFT_FROM_SIDE = 16
"""Sides from which images are moved by default: in smaller ones, a pixel is too much of what they show."""

_SEARCH_COMPONENTS = 32
_SEARCH_INIT = 2

_FIRST_IMAGES = 1000
"""Images of the first estimate of the number of clusters: the search needs no better one."""

_HARDLY_BETTER = 0.9  # of the cut of noise
_LEAST_TO_TELL = 100  # images: of fewer, noise may have clusters by chance

_PRETRAINING_STEPS = _EXTRACTION_STEPS = 100
"""Steps of a stage that callbacks see, whatever the number of batches."""


class DiffusionEmbeddedClustering(
    CallbackSupportMixin, ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClusterMixin, BaseEstimator
):
    """Cluster images by what a diffusion model knows of them (DiEC).

    ``fit`` takes a pretrained diffusion model, or trains a compact one on the images; searches its layers and
    timesteps, without labels, for the representation that clusters best (Clustering-Optimal Layer and Timestep); finds
    an initial partition there; and trains a small residual on top of it with a deep embedded clustering loss.
    The method is that of "DiEC: Diffusion Embedded Clustering" (https://arxiv.org/abs/2512.20905).

    Parameters
    ----------
    n_clusters : int or "auto", default=8
        Number of clusters. ``"auto"`` finds it, from 2 to 150, on up to 2,000 images; see `n_clusters_scores_`. The
        search works with a first, high estimate, from one of its representations. The chosen one gives the final
        number.

    backbone : Pretraining, str, path or model, default="auto"
        The diffusion model.

        - ``"auto"`` trains a compact one on X: it stands for ``Pretraining()``.
        - A `skdiec.Pretraining` says how to train it, and where to keep it.
        - Any other string or path is the folder of a diffusers pipeline or ``UNet2DModel``, or a Hub id; see
          `skdiec.load_backbone`.
        - A loaded model is copied, never changed.

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
        Timestep of the noise schedule, from 0. One is used, several are searched; None searches eight, whose noise
        is that of a DDPM's timesteps 10 to 400 of 1,000.

    pooling : int or sequence of int, default=None
        Maps of activations are averaged over ``pooling x pooling`` cells. One is used, several are searched; None
        searches 1, 2 and 4.

    search : {"grid", "halving"}, default="grid"
        How to search. `search_result_` says what was scored, and at what cost.

        - ``"grid"`` scores every combination of layer, timestep and pooling on the same images (Algorithm A1 of the
          paper).
        - ``"halving"`` compares the layers first and the timesteps then, on a third of the images, and only the best
          ones on all. It costs a third, and less than a tenth where timesteps and draws are many.

    criterion : {"consensus", "relative_cut", "normalized_cut", "scott"} or callable, default="consensus"
        What a representation (layer, timestep, pooling) is scored by. All but the Scott score look at the best
        partition that is found on its neighbourhood graph.

        - ``"consensus"``: the partition's modularity on the graphs of the tenth of the representations, at least
          four, with the highest Scott scores, taken together.
        - ``"normalized_cut"``: its normalised cut on its own graph.
        - ``"relative_cut"``: that cut, relative to what further clusters would cost (`skdiec.scores.relative_cut`).
        - ``"scott"``: the paper's score, which keeps rising with noise. `scott_scores_` is there whatever chooses.
        - A callable: ``criterion(features, labels)``, higher is better, such as `sklearn.metrics.silhouette_score`.
          Several threads call it at once where `n_jobs` is None.

    max_search_samples : int, default=2000
        Images, drawn at random, that representations are scored on.

    search_draws : int, default=1
        Noise samples that the scores of the search are averaged over.

    n_draws : int, default=5
        Noise samples that the features of the chosen representation are averaged over: as many forward passes for each
        image.

    shift : int, default=None
        Pixels by which the images are moved under noise samples after the first: to the right, left, bottom, top, and
        so on. None is 1 for images of at least 16 pixels a side, 0 for smaller ones and tables. The paper moves
        nothing, as 0 does.

    n_components : int, default=128
        Dimensions that PCA reduces features to; also those of the embedding.

    n_neighbors : int, default=10
        Neighbours of each image in the graphs that search, initial partition, training and score use.

    neighbors_algorithm : {"exact", "nndescent"}, default="exact"
        How neighbours are found. The search, on its subset, is exact.

        - ``"exact"``: its time grows with the square of the number of images.
        - ``"nndescent"``: approximate, for some hundred thousand images and more. It needs ``pynndescent`` (the extra
          ``nndescent``).

    init : {"graph", "k-means++"} or array-like of shape (n_samples,) or (n_clusters, n_components_), default="graph"
        The partition that training starts from.

        - ``"graph"`` is the one with the lowest balanced cut (`skdiec.scores.balanced_cut`) of the neighbourhood graph
          among many spectral and k-means partitions. Where that has split a large class, as it does where sizes differ
          by far, it is one of merged clusters (`skdiec.partition.initial_partition`).
        - ``"k-means++"`` is the paper's k-means on the features.
        - One dimension: labels, the cluster of each image from 0 to n_clusters - 1, each cluster with an image. So a
          partition that was corrected by hand can be trained on; `skdiec.report.read_labels` reads what a report has
          saved. -1 is for an image whose cluster is not known: it goes to the nearest mean of the others.
        - Two dimensions: centres in the space of the projected features, where the embedding starts. Rows go to the
          nearest one.

    n_init : int, default=10
        k-means runs in each space that `init` tries. Of those of ``"graph"``, half are in its second round.

    head : {"residual", "direct"} or None, default="residual"
        What is trained.

        - ``"residual"``: z = h0 + g(h), with h0 the frozen features and g an MLP that starts at zero.
        - ``"direct"``: z = h, the paper's ablation, which needs `train_backbone`.
        - None: nothing. Images go to the nearest mean of the initial clusters.

    train_backbone : bool, default=False
        Train the backbone too (the paper's dual branch), held to denoising by `denoising_weight`. Much slower than
        the frozen default, which computes features once and leaves generation as it was.

    alpha : float, default=1.0
        Weight, from 0 to 1e6, of the clustering loss L_KL in L = L_Re + alpha L_KL + beta L_graph + gamma L_ent. The
        paper does not give the weights.

    beta : float, default=3.0
        Weight, from 0 to 1e6, of the loss L_graph, which draws neighbours together.

    gamma : float, default=1.0
        Weight, from 0 to 1e6, of the loss L_ent, which keeps clusters from emptying. It is also what sizes count for
        when partitions are compared (`skdiec.scores.balanced_cut`): lower it where clusters are known to be of very
        different sizes.

    denoising_weight : float, default=1.0
        Weight, up to 1e6, of L_Re, which matters only with `train_backbone`.

    nu : float, default=1.0
        Degrees of freedom of the Student t kernel of soft assignments, from 1e-6 to 1e6.

    hidden_size : int, default=512
        Width of the head's hidden layer.

    max_epochs : int, default=20
        Epochs of training at most.

    warmup_epochs : int, default=5
        First epochs, in which the target distribution is the initial partition itself. Departs from the paper, whose
        k-means needs none: the graph's partition is not what lies nearest to its means. A safeguard: USPS and MNIST
        end at the same accuracy without.

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

    n_snapshots : int, default=0
        Epochs, evenly spaced from the start to the last one, whose embeddings of up to 2,000 images `fit` keeps in
        `snapshots_`, to draw how clusters form (`skdiec.plotting.EmbeddingDisplay.from_history`). 1 keeps the last.

    memory : str or joblib.Memory, default=None
        Cache of pretraining, search, features and initial partition, so that fits that share them, as in a search over
        the head's parameters, compute them once. Needs a `random_state` to be of use. A search by a callable
        `criterion` is not kept, since nothing tells whether two functions of one name are the same.

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
        Processes that score the representations, and threads that find neighbours and initial partitions, as in
        scikit-learn. But for representations and partitions None, outside of a `joblib.parallel_config`, is as many
        threads as numerical libraries use. More than the machine, or joblib's backend, has workers are not used.
        Results do not depend on it.

    random_state : int, RandomState or None, default=None
        Seeds pretraining, noise, subset, initial partition and training. Global random states are not touched, but None
        draws from numpy's, as in scikit-learn. Results repeat on machines of one kind; pretraining computes in bfloat16
        where the hardware does, unless ``backbone=Pretraining(precision="fp32")`` says otherwise.

    verbose : bool, default=False
        Log stages, and show the progress of pretraining. How many forward passes search and features will take is said
        before anything begins, and how long they will take after the first of them.

    Attributes
    ----------
    n_clusters_ : int
        Number of clusters: `n_clusters`, or what ``"auto"`` has found.

    n_clusters_scores_ : dict of str to ndarray of shape (n_candidates,)
        How ``"auto"`` has found it, and only there: the numbers that were looked at (``"n_clusters"``), and the mean
        silhouette (``"silhouette"``) and the modularity (``"modularity"``) of a partition into each. Both scores tend
        to be highest at too many clusters, for different reasons, so `n_clusters_` is the smaller one of the numbers
        where one of them is highest.

    labels_ : ndarray of shape (n_samples,), int32
        Cluster of each training image.

    probabilities_ : ndarray of shape (n_samples,), float64
        How surely each training image is in its cluster: its soft assignment to it, as of `predict_proba`.

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

    layer_ : str
        Layer of the chosen representation: the Clustering-Optimal Layer (COL).

    timestep_ : int
        Timestep of the chosen representation: the Clustering-Optimal Timestep (COT).

    pooling_ : int
        Pooling of the chosen representation.

    scott_scores_ : ndarray of shape (n_layers, n_timesteps), float64
        Scott scores at the chosen pooling; NaN where a layer's map is smaller than that, and where halving dropped the
        representation.

    layers_ : tuple of str
        First axis of `scott_scores_`, in order of execution.

    timesteps_ : tuple of int
        Second axis of `scott_scores_`.

    search_result_ : SearchResult
        All scores of the search, with poolings, cost and criterion.

    history_ : dict of str to ndarray
        Every loss term, cut, share of changed labels and cluster sizes for each epoch; see
        `skdiec.training.TrainingResult`.

    n_iter_ : int
        Epochs trained.

    snapshots_ : dict of int to ndarray of shape (n_kept, n_components_), float32
        Embeddings of some images after `n_snapshots` epochs, in the order of the epochs; 0 is before any training.
        Where training collapsed, `embedding_` is that of an earlier epoch than the last.

    snapshot_rows_ : ndarray of shape (n_kept,), int64
        Which images of X these are, drawn at random from more than 2,000.

    fit_seconds_ : dict of str to float
        Wall time of each stage of `fit`: ``"backbone"``, ``"search"``, ``"features"``, ``"partition"`` (the initial
        one) and ``"training"``.

    share_explained_ : dict of int to float
        Share of its task that the backbone solves on 256 of the images, at three timesteps: 1 minus its denoising loss
        over that of a straight line. 1 is perfect; below 0, with a warning, backbone and images do not fit.

    warnings_ : list of str
        The text of each warning that `fit` gave. Empty in models that earlier versions saved.

    backbone_ : Backbone
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
    >>> from skdiec import DiffusionEmbeddedClustering, Pretraining
    >>> X = load_digits().data[:60]
    >>> model = DiffusionEmbeddedClustering(
    ...     n_clusters=3, backbone=Pretraining(epochs=2), layer="mid_block", timestep=50, pooling=1, random_state=0
    ... )
    >>> model.fit(X).labels_.shape
    (60,)
    >>> model.transform(X).shape == (60, model.cluster_centers_.shape[1])
    True
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = CONSTRAINTS

    def __init__(
        self,
        n_clusters: int | Literal["auto"] = 8,
        *,
        backbone: Pretraining | str | os.PathLike | Any = "auto",
        image_shape: Sequence[int] | None = None,
        channel_axis: int | None = None,
        value_range: Sequence[float] | None = None,
        layer: str | Sequence[str] | None = None,
        timestep: int | Sequence[int] | None = None,
        pooling: int | Sequence[int] | None = None,
        search: Literal["grid", "halving"] = "grid",
        criterion: Literal["consensus", "relative_cut", "normalized_cut", "scott"]
        | Callable[[NDArray, NDArray], float] = "consensus",
        max_search_samples: int = 2000,
        search_draws: int = 1,
        n_draws: int = 5,
        shift: int | None = None,
        n_components: int = 128,
        n_neighbors: int = 10,
        neighbors_algorithm: Literal["exact", "nndescent"] = "exact",
        init: Literal["graph", "k-means++"] | ArrayLike = "graph",
        n_init: int = 10,
        head: Literal["residual", "direct"] | None = "residual",
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
        n_snapshots: int = 0,
        memory: str | joblib.Memory | None = None,
        inference_batch_size: int | None = None,
        precision: Literal["fp32", "bf16", "fp16"] = "fp32",
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
        self.n_snapshots = n_snapshots
        self.memory = memory
        self.inference_batch_size = inference_batch_size
        self.precision = precision
        self.device = device
        self.n_jobs = n_jobs
        self.random_state = random_state
        self.verbose = verbose

    @with_callbacks
    def fit(self, X: ArrayLike | str | os.PathLike | Iterable, y: Any = None) -> DiffusionEmbeddedClustering:
        """Search the representation, find an initial partition and train the embedding.

        scikit-learn's callbacks (`set_callbacks`, from 1.9 on) see five tasks: backbone, search, features, partition
        and training. Each has steps. One that returns True at a step of the backbone's pretraining or of the training,
        whose steps are epochs, ends that stage there: the backbone stays as it is then, and the best epoch so far is
        kept. At an epoch's end, callbacks can have the estimator that would be fitted if the training ended there.

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
            be the same each time. `memory` and a `Pretraining` with a folder read all of it once more.
        y : object, default=None
            Given to callbacks, such as scikit-learn's ``ScoringMonitor``. Clustering does not look at it.

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
        stages = Stages(self, X, y, n_stages=5)
        with keeping_warnings() as fitting.warnings_:
            with _logging(fitting.verbose), library_defaults():
                fitting._fit(X, stages)
            # In one step: a fit that fails, or is interrupted, leaves all that there was before.
            given = {name: vars(self)[name] for name in self.get_params(deep=False)}
            of_sklearn = {name: vars(self)[name] for name in OF_SKLEARN if name in vars(self)}
            self.__dict__ = {**vars(fitting), **given, **of_sklearn}
            self._warn_of_empty_clusters()
            self._warn_of_noise()
        stages.end(lambda: fitting._fitted_attributes())
        return self

    def _fit(self, X: Any, stages: Stages) -> None:
        setup = self._set_up(X)
        source, seeds, memory = setup.source, setup.seeds, setup.memory
        self._format, self.image_shape_, self.value_range_ = source.format, source.shape, source.format.value_range
        if setup.files is not None:
            self.files_ = setup.files
        if not source.format.is_table:
            self.n_features_in_ = math.prod(source.shape)

        passes = self._passes_ahead(setup)
        passes.announce()
        with stages.stage("backbone", _PRETRAINING_STEPS if setup.pretraining is not None else 0) as steps:
            extractor = self._get_backbone(setup, steps)
        n_passes = len(setup.timesteps) * self.search_draws if self.search == "grid" else None
        with stages.stage("search", n_passes) as steps:
            self.n_clusters_ = self._first_number(extractor, setup)
            search = self._search(extractor, setup, steps, passes)
        self.layer_, self.timestep_, self.pooling_ = search.best.layer, search.best.timestep, search.best.pooling
        self.search_result_, self.layers_, self.timesteps_ = search, search.layers, search.timesteps
        self.scott_scores_ = search.scores["scott"][:, :, search.poolings.index(search.best.pooling)]
        self._cell = search.best

        with stages.stage("features", _EXTRACTION_STEPS) as steps:
            cached = dataclasses.replace(extractor, memory=memory)
            timed = passes.timed(
                passes.n_features, at_once=extractor.at_once, per_image=self.n_draws, then=steps.report
            )
            features = cached.extract(source, [search.best], report=timed)[search.best]
        features = np.asarray(features)  # a memory map has another hash, in the cache, than the same numbers
        with stages.stage("partition"), one_blas_thread:
            start = memory.cache(initialize, ignore=["n_jobs"])(
                __version__,
                features,
                self.n_clusters if setup.distinct is None else setup.distinct,
                self.n_components,
                self.n_neighbors,
                self.neighbors_algorithm,
                self.init,
                self.n_init,
                self.gamma,
                seeds.start,
                self.n_jobs,
            )
        self.initial_labels_, self.stability_ = start.labels, start.stability
        taken, self.n_clusters_ = self.n_clusters_, start.n_clusters
        if start.number is not None:
            logger.info("%d clusters (the search took %d)", start.n_clusters, taken)
            self.n_clusters_scores_ = {
                "n_clusters": start.number.candidates,
                "silhouette": start.number.silhouettes,
                "modularity": start.number.modularities,
            }
        self.n_components_ = self._n_features_out = start.h.shape[1]
        with stages.stage("training", 0 if self.head is None else self.max_epochs) as steps:
            self._train(extractor, source, start, seeds.head, steps)
        self.fit_seconds_ = stages.seconds

        # A trained backbone has other features now.
        self.embedding_ = self._map(source, self._model.embed) if self.train_backbone else self._model.embed(features)
        assigned = self._model.assign(self.embedding_)
        self.labels_, self.probabilities_ = assigned.argmax(axis=1).astype(np.int32), assigned.max(axis=1)
        tree = functools.partial(cluster_tree, self.embedding_, start.graph, self.labels_, seed=seeds.start)
        compare = functools.partial(
            cut_over_noise, start.h, self.labels_, self.n_neighbors, normalized_cut, seed=seeds.start
        )
        found: list[Any] = in_parallel([tree, compare], 1)
        (self.fine_labels_, self.linkage_), self.cut_over_noise_ = found

    def _set_up(self, X: Any) -> _Setup:
        """Check the images and all that is to be done with them, before any expensive work."""
        device = default_device(self.device)
        if is_emulated(self.precision, device):
            warn(
                f"precision={self.precision!r} is many times slower than 'fp32' on this {device.type}, which has no "
                "instructions for it"
            )
        memory = check_memory(self.memory)
        seeds = _Seeds.draw(self.random_state)
        pretraining = _as_pretraining(self.backbone, self.random_state, seeds.pretrain)
        # Loaded when first needed: wrong input is told of before a download.
        load = functools.cache(lambda: load_backbone(self.backbone))
        file_shape = (lambda: load().image_shape) if pretraining is None else None
        source = self._image_source(self._check_input(X, reset=True), file_shape=file_shape)
        if self.n_clusters != "auto" and len(source) < self.n_clusters:
            raise ValueError(f"n_samples={len(source)} should be >= n_clusters={self.n_clusters}.")
        if len(source) < 2:
            raise ValueError("X must hold at least 2 images to tell what they vary in; got n_samples=1")
        backbone = load() if pretraining is None else untrained_backbone(source, pretraining, device)
        backbone.check_channels(source.shape[0])
        layers, timesteps, poolings = search_space(self, backbone)
        widths = [
            channels * pooling**2
            for channels, *sides in layers.values()
            for pooling in poolings
            if pooling <= min(sides)
        ]
        check_init(self.init, self.n_components, len(source), widths)
        check_space(4 * len(source) * max(widths))
        if self.shift is not None and self.shift >= min(source.shape[1:]):
            raise ValueError(
                f"shift must be less than the images' sides, {source.shape[1:]} (height, width); got {self.shift}"
            )
        files = source.paths if isinstance(source, FileImages) else None
        source, distinct = source.in_memory(), None
        if self.n_clusters == "auto":
            order = np.random.default_rng(seeds.subset).permutation(len(source))
            distinct = distinct_rows(source, order[:MAX_IMAGES])
        outlined = FeatureExtractor(backbone)
        return _Setup(
            source=source,
            files=files,
            backbone=backbone,
            pretraining=pretraining,
            layers=layers,
            costs=outlined.layer_costs(layers),
            multiplications=outlined.multiplications(),
            timesteps=timesteps,
            poolings=poolings,
            device=device,
            memory=memory,
            seeds=seeds,
            distinct=distinct,
        )

    def _get_backbone(self, setup: _Setup, steps: Steps) -> FeatureExtractor:
        """Train the backbone, or take the given one, and look whether it fits the images."""
        backbone, source = setup.backbone, setup.source
        if setup.pretraining is not None:
            arguments = setup.pretraining.get_params()
            if arguments["folder"] is None and setup.memory.location is not None:
                # One folder for each training: its settings are those that the untrained backbone was built by.
                key = joblib.hash((source.fingerprint(), backbone.recipe["settings"]))
                arguments["folder"] = Path(setup.memory.location) / "skdiec-backbones" / key
            backbone = pretrain(
                source,
                **arguments,
                device=setup.device,
                verbose=self.verbose,
                report=lambda done, total, loss: steps.report(done, total),
            )
        elif backbone is self.backbone:  # a Backbone of the caller's
            backbone = backbone.copy(setup.device)
        self.backbone_ = backbone.to(setup.device)
        self.share_explained_ = check_share_explained(
            backbone, source, is_trained_on_it=setup.pretraining is not None, seed=setup.seeds.noise
        )
        shift = self.shift
        if shift is None:
            shift = int(min(source.shape[1:]) >= _SHIFT_FROM_SIDE and not source.format.is_table)
        batch_size = self.inference_batch_size or suited_batch_size(backbone)
        return FeatureExtractor(backbone, self.n_draws, shift, setup.seeds.noise, batch_size, self.precision)

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

    def save(
        self, folder: str | os.PathLike, *, backbone: Literal["copy", "reference"] = "copy", overwrite: bool = False
    ) -> None:
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
        check_parameters(checked)
        checked.n_jobs = useful_jobs(checked.n_jobs)
        return checked

    def _fitted_attributes(self) -> dict[str, Any]:
        """Return all that a fit sets, for a copy of the user's estimator."""
        names = vars(self).keys() - self.get_params(deep=False).keys() - set(OF_SKLEARN)
        return {name: vars(self)[name] for name in names}

    def _warn_of_noise(self) -> None:
        if self.cut_over_noise_ > _HARDLY_BETTER and len(self.labels_) >= _LEAST_TO_TELL:
            warn(
                f"the clusters are hardly better than those of noise: {self.cut_over_noise_:.2f} of its cut "
                "(cut_over_noise_; 1 is no better). Either X has no clusters, or these features do not show them: try "
                "a backbone that was trained longer, or on more such images"
            )

    def _warn_of_empty_clusters(self) -> None:
        found = len(np.unique(self.labels_))
        if found < self.n_clusters_:
            distinct = len(np.unique(self.embedding_, axis=0))
            warn(
                f"only {found} of n_clusters={self.n_clusters_} clusters have images: the {len(self.labels_)} images "
                f"of X have {distinct} different embeddings",
                ConvergenceWarning,
            )

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
            file_shape=file_shape,
            like=like,
        )

    def _fitted_source(self, X: Any) -> ImageSource:
        return self._image_source(self._check_input(X, reset=False), like=self._format)

    def _first_number(self, extractor: FeatureExtractor, setup: _Setup) -> int:
        """Return the number of clusters, estimated where it is open before anything was searched.

        What estimates it is the layer with the smallest map.
        """
        if self.n_clusters != "auto":
            return self.n_clusters
        layer = min(setup.layers, key=lambda name: math.prod(setup.layers[name][1:]))
        fitting = [pooling for pooling in setup.poolings if pooling <= min(setup.layers[layer][1:])]
        timestep = setup.timesteps[(len(setup.timesteps) - 1) // 2]
        cell = Cell(layer, timestep, max(fitting, default=min(setup.poolings)))
        extractor = dataclasses.replace(extractor, n_draws=self.search_draws)
        distinct = cast("NDArray", setup.distinct)
        rows = distinct[:: math.ceil(len(distinct) / _FIRST_IMAGES)]
        features = extractor.extract(setup.source, [cell], rows=rows)[cell]
        with one_blas_thread:
            return first_number(features, _SEARCH_COMPONENTS, self.n_neighbors, setup.seeds.search, self.n_jobs)

    def _passes_ahead(self, setup: _Setup) -> Passes:
        searched = search_passes(
            self.search,
            n_images=min(len(setup.source), self.max_search_samples),
            n_draws=self.search_draws,
            n_timesteps=len(setup.timesteps),
            n_clusters=MAX_CLUSTERS if self.n_clusters == "auto" else self.n_clusters,
        )
        share = max(setup.costs.values())
        return Passes(searched, len(setup.source) * self.n_draws, share, setup.multiplications)

    def _search(self, extractor: FeatureExtractor, setup: _Setup, steps: Steps, passes: Passes) -> SearchResult:
        source, seeds, memory = setup.source, setup.seeds, setup.memory
        size = min(len(source), self.max_search_samples)
        order = np.random.default_rng(seeds.subset).choice(len(source), size, replace=False)
        extractor = dataclasses.replace(extractor, n_draws=self.search_draws, latents=LatentCache())
        key: tuple = ()
        if memory.location is not None:
            settings = (seeds, extractor.shift, extractor.precision, __version__)
            key = (source.fingerprint(), extractor.backbone.fingerprint(), *settings)
        if callable(self.criterion):  # joblib knows functions by their names alone, and some not at all
            memory = joblib.Memory(None)

        def extract(cells: Sequence[Cell], draw: int, count: int) -> Mapping[Cell, NDArray[np.float32]]:
            timed = passes.timed(passes.n_search + passes.n_features, at_once=extractor.at_once)
            return extractor.extract(source, cells, rows=order[:count], draw=draw, report=timed)

        return memory.cache(_run_search, ignore=["extract", "n_jobs", "report"])(
            key,
            extract,
            n_jobs=self.n_jobs,
            report=steps.report,
            strategy=self.search,
            n_images=size,
            n_draws=self.search_draws,
            layers=setup.layers,
            timesteps=setup.timesteps,
            poolings=setup.poolings,
            costs=setup.costs,
            n_clusters=self.n_clusters_,
            criterion=self.criterion,
            n_components=_SEARCH_COMPONENTS,
            n_neighbors=self.n_neighbors,
            n_init=min(self.n_init, _SEARCH_INIT),
            balance=self.gamma,
            seed=seeds.search,
        )

    def _train(
        self, extractor: FeatureExtractor, source: ImageSource, start: Initialization, seed: int, steps: Steps
    ) -> None:
        """Train what `head` and `train_backbone` ask for; set the model and its history."""
        self._extractors = [extractor]
        # Untrained, a residual head is the identity, which is what head=None asks for.
        head = None if self.head == "direct" else ResidualHead(start.h.shape[1], self.hidden_size, seed=seed)
        device = extractor.backbone.device
        if self.train_backbone:
            self.backbone_ = extractor.backbone.copy(device)
            self.backbone_.network.float()  # gradients are too small for half precision
            self._extractors.append(dataclasses.replace(extractor, backbone=self.backbone_))
            embedder: Embedder = BackboneEmbedder(
                CellFeatures(dataclasses.replace(self._extractors[1], latents=LatentCache()), source, self._cell),
                start.projection,
                start.h,
                head,
                self.denoising_weight,
                device,
                seed,
            )
        else:
            embedder = FrozenEmbedder(start.h, cast("ResidualHead", head), device)  # "direct" trains the backbone

        def report(state: TrainingState) -> bool:
            attributes = functools.partial(self._attributes_at, state, start, head)
            return steps.report(state.epoch, self.max_epochs, attributes, is_last=state.is_last)

        config = self._training_config(len(source), seed)
        result = train(embedder, start.graph, start.labels, start.n_clusters, config, report)
        # As a loaded one is: kernels for weights that need gradients differ in the last bits.
        self.backbone_.network.requires_grad_(False)
        self._model = EmbeddingModel(start.projection, head, result.centers, self.nu)
        self.cluster_centers_ = self._model.centers
        self.history_ = result.history
        self.n_iter_ = result.n_epochs
        self.snapshots_, self.snapshot_rows_ = dict(result.snapshots), result.snapshot_rows

    def _training_config(self, n_samples: int, seed: int) -> TrainingConfig:
        batch_size = self.batch_size
        if batch_size is None:
            batch_size = 128 if self.train_backbone else min(max(128, n_samples // 16), 512)
        batch_size = min(batch_size, max(128, n_samples))
        return TrainingConfig(
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
            n_snapshots=self.n_snapshots,
            seed=seed,
        )

    def _attributes_at(self, state: TrainingState, start: Initialization, head: ResidualHead | None) -> dict[str, Any]:
        """Return what a fit would have set that had ended with an epoch of the training."""
        model = EmbeddingModel(start.projection, copy.deepcopy(head), state.centers, self.nu)
        extractors = [
            dataclasses.replace(extractor, backbone=extractor.backbone.copy()) for extractor in self._extractors
        ]
        extractors[-1].backbone.network.requires_grad_(False)
        return {
            **self._fitted_attributes(),
            "_model": model,
            "_extractors": extractors,
            "backbone_": extractors[-1].backbone,
            "cluster_centers_": model.centers,
            "labels_": state.labels.astype(np.int32),
            "n_iter_": state.epoch,
        }

    def _map(self, source: ImageSource, function: Callable[..., NDArray]) -> NDArray:
        device = default_device(self.device)
        backbones = [extractor.backbone.to(device) for extractor in self._extractors]
        batch_size = self.inference_batch_size or suited_batch_size(backbones[0])
        extractors = [
            dataclasses.replace(extractor, backbone=backbone, batch_size=batch_size)
            for extractor, backbone in zip(self._extractors, backbones, strict=True)
        ]
        return map_features(extractors, source, self._cell, function)


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
class _Setup:
    """What `fit` is about to work with."""

    source: ImageSource
    files: Sequence[Path] | None
    backbone: Backbone
    """Untrained where `pretraining` is not None."""
    pretraining: Pretraining | None
    layers: Mapping[str, tuple[int, int, int]]
    costs: Mapping[str, float]
    """Share of a whole pass, up to each layer."""
    multiplications: int
    """Of a whole pass."""
    timesteps: Sequence[int]
    poolings: Sequence[int]
    device: torch.device
    memory: joblib.Memory
    seeds: _Seeds
    distinct: NDArray[np.integer] | None
    """Images to estimate the number of clusters on, where it is to be found."""


def _run_search(
    key: tuple, extract: Callable, n_jobs: int | None, report: Callable[[int, int], object], **arguments: Any
) -> SearchResult:
    # A function of its own, so that joblib's key holds no closure: `key` stands for images, weights and seeds.
    return search_cells(extract, n_jobs=n_jobs, report=report, **arguments)


def _as_pretraining(
    backbone: object, random_state: int | np.random.RandomState | None, seed: int
) -> Pretraining | None:
    """Return how to train the backbone, with the seed to take where it names none; None for one that exists."""
    if isinstance(backbone, str) and backbone == "auto":
        backbone = Pretraining()
    if not isinstance(backbone, Pretraining):
        return None
    pretraining = copy.copy(backbone)
    # Any backbone in the folder will do where no seed is asked for.
    any_seed = random_state is None and pretraining.folder is not None
    if pretraining.random_state is None and not any_seed:
        pretraining.random_state = seed
    return pretraining


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
