"""The estimator. It orchestrates the rooms below, and computes nothing itself."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from numbers import Integral
from typing import Any, ClassVar, Literal

import joblib
import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, ClusterMixin, TransformerMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import Tags, check_array
from sklearn.utils.validation import check_is_fitted, validate_data

from skdiec._callbacks import OF_SKLEARN, CallbackSupportMixin, Stages, with_callbacks
from skdiec._estimator.stages import fit_in_stages
from skdiec._parameters import CONSTRAINTS, check_parameters
from skdiec.backbones import Pretraining, default_device
from skdiec.features import map_features, suited_batch_size
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
from skdiec.images.files import base_name
from skdiec.messages import MAX_LENGTH, keeping_warnings, shortened, shown, warn
from skdiec.parallel import library_defaults, one_blas_thread, useful_jobs
from skdiec.partition import cut_tree
from skdiec.scores import modularity
from skdiec.state import push_model, save_model

_HARDLY_BETTER = 0.9  # of the cut of noise
_SCORE_NEIGHBORS = 10
_LEAST_TO_TELL = 100  # images: of fewer, noise may have clusters by chance


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
        Number of clusters. ``"auto"`` finds it, from 2 to 150, on up to 2,000 images; see `n_clusters_scores_`. Of
        fewer than four images that differ, it is 1. The search works with a first, high estimate, from one of its
        representations. The chosen one gives the final number.

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
          ones on all. It costs a quarter or less, and less than a tenth where timesteps and draws are many.

    criterion : {"consensus", "relative_cut", "normalized_cut", "scott"} or callable, default="consensus"
        What a representation (layer, timestep, pooling) is scored by. All but the Scott score look at the best
        partition that is found on its neighbourhood graph.

        - ``"consensus"``: the partition's modularity on the graphs of the tenth of the representations, at least
          four, whose clusters lie apart most beside those of noise of the same variances, taken together.
        - ``"normalized_cut"``: its normalised cut on its own graph.
        - ``"relative_cut"``: that cut, relative to what further clusters would cost (`skdiec.scores.relative_cut`).
        - ``"scott"``: the paper's score, which keeps rising with noise. `scott_scores_` is there whatever chooses.
        - A callable: ``criterion(features, labels)``, higher is better, such as `sklearn.metrics.silhouette_score`.
          Several threads call it at once where `n_jobs` is None.

    max_search_samples : int, default=2000
        Images, drawn at random, that representations are scored on. Where these are all of them, the next best
        representations may help to find the partition (`init`). Where there are at least twice as many,
        ``criterion="consensus"`` compares the best four at the best timestep again, on five times as many or on all.

    search_draws : int, default=1
        Noise samples that the scores of the search are averaged over.

    n_draws : int, default=5
        Noise samples that the features of the chosen representation are averaged over: as many forward passes for each
        image.

    shift : int, default=None
        Pixels by which the images are moved under noise samples after the first: to the right, left, bottom, top, and
        so on. None is 1 for images of at least 16 pixels a side, 0 for smaller ones and tables. The paper moves
        nothing, as 0 does. Otherwise ``init="graph"`` also compares up to 3,000 images as they are moved by a sixteenth
        of their side and turned by up to 16 degrees, in thirteen more passes of each.

    n_components : int, default=128
        Dimensions that PCA reduces features to; also those of the embedding.

    n_neighbors : int, default=10
        Neighbours of each image in the graphs that search, initial partition and training use.

    neighbors_algorithm : {"exact", "nndescent"}, default="exact"
        How neighbours are found. The search, on its subset, is exact.

        - ``"exact"``: its time grows with the square of the number of images.
        - ``"nndescent"``: approximate, for some hundred thousand images and more. It needs ``pynndescent`` (the extra
          ``nndescent``).

    init : {"graph", "k-means++"} or array-like of shape (n_samples,) or (n_clusters, n_components_), default="graph"
        The partition that training starts from.

        - ``"graph"`` is the one with the lowest balanced cut (`skdiec.scores.balanced_cut`) of the neighbourhood graph
          among many spectral and k-means partitions. Where k-means has split one class and left two together, that is
          mended (`skdiec.partition.split_and_merge`). Where the cut has split a large class, as it does where sizes
          differ by far, it is one of merged clusters (`skdiec.partition.initial_partition`). Where the search saw all
          images and chose by ``"consensus"``, a second partition is found on a sum of graphs: twice that of the best
          representation, and those of the three next best ones. The one with the higher `stability_` is taken.
        - ``"k-means++"`` is the paper's k-means on the features.
        - One dimension: labels, the cluster of each image from 0 to n_clusters - 1, each cluster with an image. So a
          partition that was corrected by hand can be trained on; `skdiec.report.read_labels` reads what a report has
          saved. -1 is for an image whose cluster is not known: it gets one from its neighbours
          (`sklearn.semi_supervised.LabelSpreading`). Labels are where training starts: it may move images to other
          clusters. `initial_labels_` has those that it started from.
        - Two dimensions: centres in the space of the projected features, where the embedding starts. Rows go to the
          nearest one.

    n_init : int, default=10
        k-means runs in each space that `init` tries. Of those of ``"graph"``, half are in its second round. Of up to
        3,000 images, ``"graph"`` tries all of it three times.

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
        Images per training step. None is as many as give 64 steps an epoch, from 32 to 512; with `train_backbone`,
        where memory grows with it, 128.

    learning_rate : float, default=None
        Step size of Adam for head and centres. None is 3e-3, and for a `batch_size` above 128 in proportion more.

    backbone_learning_rate : float, default=1e-4
        Step size of Adam for the backbone, with `train_backbone`.

    tol : float, default=1e-4
        Training ends when at most this share of the images changes cluster in an epoch after warm-up.

    update_interval : int, default=1
        Epochs between updates of the target distribution and the graph's weights.

    n_snapshots : int, default=0
        Epochs, evenly spaced from before the first to the last one, whose embeddings of up to 2,000 images `fit` keeps
        in `snapshots_`, to draw how clusters form (`skdiec.plotting.EmbeddingDisplay.from_history`). 1 keeps the last.

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
        How ``"auto"`` has found it, and only there: the numbers that were looked at (``"n_clusters"``), and of a
        partition into each the mean silhouette (``"silhouette"``), the modularity (``"modularity"``) and the score that
        decides (``"score"``): the silhouette times the fourth power of the modularity, less where two clusters are
        strongly linked. `n_clusters_` is where it is highest.

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
        which the images' neighbourhood graph supports about as well. Below 0.96, other seeds may find other
        clusters. NaN where `init` is not ``"graph"``: nothing was searched for then.

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

    def set_params(self, **params: Any) -> DiffusionEmbeddedClustering:
        """Set parameters, as all estimators of scikit-learn do.

        Parameters
        ----------
        **params : dict
            Parameters by their names; those of a `Pretraining` as ``backbone__epochs`` and so on.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            For a name that is none, and for parameters of a `backbone` that has none, such as ``"auto"``.
        """
        for name in params:
            owner, is_nested, _ = name.partition("__")
            value = params.get(owner, getattr(self, owner, None))
            if is_nested and owner in self._get_param_names() and not hasattr(value, "set_params"):
                raise ValueError(
                    f"{name} needs a {owner} that has parameters, such as backbone=Pretraining(); got {owner}="
                    f"{shown(value)}"
                )
        return super().set_params(**params)

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
                fit_in_stages(fitting, X, stages)
            # In one step: a fit that fails, or is interrupted, leaves all that there was before.
            given = {name: vars(self)[name] for name in self.get_params(deep=False)}
            of_sklearn = {name: vars(self)[name] for name in OF_SKLEARN if name in vars(self)}
            self.__dict__ = {**vars(fitting), **given, **of_sklearn}
            self._warn_of_empty_clusters()
            self._warn_of_noise()
        stages.end(lambda: fitting._fitted_attributes())
        return self

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
        the images: the sum of the graphs of ten nearest neighbours of their frozen features and of their pixels
        (averaged to at most 16 x 16). Modularity compares numbers of clusters; the pixels, which are the same for all
        candidates, keep a representation from winning for what it leaves out. There are always ten neighbours, whatever
        `n_neighbors` is, since modularity is higher on graphs of fewer.

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
            knn_graph(rows, _SCORE_NEIGHBORS, algorithm=self.neighbors_algorithm, n_jobs=self.n_jobs)
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

    def _source_of_fit(self, X: Any) -> ImageSource:
        """Return the images of fit, and refuse others as far as their number and the names of files tell.

        Folders may have moved.
        """
        source = self._fitted_source(X)
        if len(source) != len(self.labels_):
            raise ValueError(f"X must be the {len(self.labels_)} images of fit; got {len(source)}")
        if isinstance(source, FileImages) and hasattr(self, "files_"):
            for row, (found, fitted) in enumerate(zip(source.paths, self.files_, strict=True)):
                if base_name(found) != base_name(fitted):
                    raise ValueError(
                        f"X must be the files of fit, in their order; file {row} is {shown(base_name(found))}, that of "
                        f"fit was {shown(base_name(fitted))}"
                    )
        return source

    def _labels_kept(self) -> tuple[int, int] | None:
        """Return how many images are still in the cluster that `init` gave them, and how many it gave one."""
        if isinstance(self.init, str) or np.ndim(self.init) != 1:
            return None
        given = np.asarray(self.init)
        return int((given == self.labels_).sum()), int((given >= 0).sum())

    def _map(self, source: ImageSource, function: Callable[..., NDArray]) -> NDArray:
        device = default_device(self.device)
        backbones = [extractor.backbone.to(device) for extractor in self._extractors]
        batch_size = self.inference_batch_size or suited_batch_size(backbones[0])
        extractors = [
            dataclasses.replace(extractor, backbone=backbone, batch_size=batch_size)
            for extractor, backbone in zip(self._extractors, backbones, strict=True)
        ]
        return map_features(extractors, source, self._cell, function)


class _AboveBars(logging.StreamHandler):
    """Writes lines of their own where progress bars are shown."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        with tqdm.external_write_mode(file=self.stream):
            super().emit(record)


@contextlib.contextmanager
def _logging(verbose: bool | int) -> Iterator[None]:
    """Show this package's log while a verbose fit runs."""
    if not verbose:
        yield
        return
    package = logging.getLogger("skdiec")
    handler, level = _AboveBars(), package.level
    handler.setFormatter(logging.Formatter("[%(name)s] %(message)s"))
    package.addHandler(handler)
    package.setLevel(logging.INFO)
    try:
        yield
    finally:
        package.removeHandler(handler)
        package.setLevel(level)
