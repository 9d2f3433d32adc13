import pickle

import joblib
import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from sklearn import config_context
from sklearn.base import clone, is_clusterer
from sklearn.decomposition import PCA
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.metrics import adjusted_rand_score, get_scorer
from sklearn.model_selection import GridSearchCV, HalvingGridSearchCV, KFold, cross_val_score
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from skdiec import DiffusionEmbeddedClustering, Pretraining
from skdiec.metrics import accuracy_scorer

FOLDS = KFold(2, shuffle=True, random_state=0)


CHEAP = Pretraining(epochs=2, channels=(8,))
"""A network as small as can be: the checks make about a hundred fits."""


# The checks sort a few random rows into eight clusters: some may well be emptied.
@pytest.mark.filterwarnings("ignore:training collapsed:UserWarning")
@pytest.mark.filterwarnings("ignore:only . of n_clusters:sklearn.exceptions.ConvergenceWarning")
@parametrize_with_checks(
    [DiffusionEmbeddedClustering(timestep=50, pooling=1, n_init=2, max_epochs=5, backbone=CHEAP)], legacy=True
)
def test_checks_of_scikit_learn(estimator, check):
    check(estimator)


@pytest.fixture
def rows(planted):
    """Flat images as a table with names of rows and columns, and their labels."""
    X, labels = planted()
    table = pd.DataFrame(X.reshape(48, 64).astype(float), index=[f"image {row}" for row in range(48)])
    return table.add_prefix("pixel "), labels


def same_partition(one, two):
    return adjusted_rand_score(one, two) == 1


# Copies


def test_clone_has_the_parameters_and_fits_the_same(make_model, planted):
    X, _ = planted()
    model = make_model(n_init=4, init="k-means++").fit(X)
    copied = clone(model)
    assert not hasattr(copied, "labels_")
    same = {name for name, value in model.get_params().items() if copied.get_params()[name] is value}
    assert same == set(model.get_params()) - {"backbone"}  # a model is copied
    assert_array_equal(copied.fit(X).embedding_, model.embedding_)


def test_parameters_can_be_set_anew(make_model, planted):
    X, _ = planted()
    model = make_model(2).fit(X)
    assert model.set_params(n_clusters=3, hidden_size=9) is model
    assert_array_equal(model.fit(X).embedding_, make_model(3, hidden_size=9).fit(X).embedding_)


def test_parameters_of_what_has_none_are_told_of():
    model = DiffusionEmbeddedClustering()
    with pytest.raises(ValueError, match=r"backbone__epochs needs .* such as backbone=Pretraining\(\); got backbone='"):
        model.set_params(backbone__epochs=3)
    with pytest.raises(ValueError, match=r"Invalid parameter 'nonsense'"):
        model.set_params(nonsense__epochs=3)
    assert model.set_params(backbone=Pretraining(), backbone__epochs=3).backbone.epochs == 3
    assert model.set_params(backbone__epochs=4).backbone.epochs == 4


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"backbone": Pretraining(epochs=1, channels=(8,))},
        {"train_backbone": True, "max_epochs": 1},
        {"train_backbone": True, "max_epochs": 1, "head": "direct"},
        {"head": None},
    ],
    ids=str,
)
def test_fitted_model_can_be_pickled_and_dumped(parameters, make_model, planted, tmp_path, rng_untouched):
    X, _ = planted()
    model = make_model(**parameters).fit(X[:40])
    with rng_untouched():
        data = pickle.dumps(model)
        joblib.dump(model, tmp_path / "model.joblib")
        copies = pickle.loads(data), joblib.load(tmp_path / "model.joblib")
    for copied in copies:
        assert_array_equal(copied.predict(X), model.predict(X))
        assert_array_equal(copied.transform(X), model.transform(X))
        assert_array_equal(copied.predict_proba(X), model.predict_proba(X))
        assert copied.score(X) == model.score(X)
        assert copied.search_result_.best == model.search_result_.best
        assert copied.backbone_.fingerprint() == model.backbone_.fingerprint()
        assert_array_equal(copied.fit(X[:40]).embedding_, model.embedding_)


# Composition


def test_model_is_a_clusterer():
    assert is_clusterer(DiffusionEmbeddedClustering())


def test_pipeline_scales_rows_and_clusters_them_as_images(make_model, rows):
    table, labels = rows
    pipeline = make_pipeline(MinMaxScaler(clip=True), make_model(image_shape=(8, 8), value_range=(0, 1)))
    assert same_partition(pipeline.fit_predict(table), labels)
    assert_array_equal(pipeline.predict(table), pipeline[-1].labels_)
    assert_array_equal(pipeline.transform(table), pipeline[-1].embedding_)
    assert pipeline[-1].image_shape_ == (1, 8, 8)
    assert pipeline.score(table) == pytest.approx(2 / 3)
    direct = make_model(value_range=(0, 1)).fit(MinMaxScaler().fit_transform(table).reshape(48, 8, 8))
    assert_array_equal(pipeline[-1].labels_, direct.labels_)


def test_embedding_feeds_what_comes_next(make_model, rows):
    table, _ = rows
    pipeline = make_pipeline(make_model(), PCA(2))
    expected = PCA(2).fit_transform(make_model().fit_transform(table))
    assert_allclose(pipeline.fit_transform(table), expected, atol=1e-5)


def test_feature_union_puts_the_embedding_beside_other_features(make_model, rows):
    table, _ = rows
    union = FeatureUnion([("pca", PCA(2)), ("diec", make_model(n_components=4))])
    found = union.fit_transform(table)
    assert_allclose(found[:, :2], PCA(2).fit_transform(table))
    assert_array_equal(found[:, 2:], make_model(n_components=4).fit(table).embedding_)
    names = ["pca__pca0", "pca__pca1", *(f"diec__diffusionembeddedclustering{column}" for column in range(4))]
    assert_array_equal(union.get_feature_names_out(), names)


# Search


def test_grid_search_with_labels(make_model, planted):
    X, labels = planted()
    names = {"ari": "adjusted_rand_score", "nmi": "normalized_mutual_info_score"}
    scorers = {"accuracy": accuracy_scorer, **{name: get_scorer(scorer) for name, scorer in names.items()}}
    search = GridSearchCV(make_model(), {"n_clusters": [2, 3]}, scoring=scorers, refit="nmi", cv=FOLDS).fit(X, labels)
    assert search.best_params_ == {"n_clusters": 3}
    for name, scorer in scorers.items():
        scores = search.cv_results_[f"mean_test_{name}"]
        assert scores[0] < 0.9
        assert scores[1] == pytest.approx(1)
        assert scorer(search.best_estimator_, X, labels) == pytest.approx(1)
    assert same_partition(search.predict(X), labels)
    assert search.score(X, labels) == pytest.approx(1)


def test_grid_search_without_labels(make_model, planted):
    X, labels = planted(size=24)
    search = GridSearchCV(make_model(), {"n_clusters": [2, 3, 4]}, cv=FOLDS).fit(X)
    assert search.best_params_ == {"n_clusters": 3}
    assert search.score(X) == search.best_estimator_.score(X)
    assert same_partition(search.best_estimator_.labels_, labels)
    assert_array_equal(search.transform(X), search.best_estimator_.embedding_)


def test_grid_search_over_rows_of_a_pipeline(make_model, rows):
    table, labels = rows
    pipeline = make_pipeline(MinMaxScaler(clip=True), make_model(image_shape=(8, 8), value_range=(0, 1)))
    grid = {"diffusionembeddedclustering__n_clusters": [2, 3]}
    search = GridSearchCV(pipeline, grid, scoring="adjusted_rand_score", cv=FOLDS).fit(table, labels)
    assert (search.best_params_, search.best_score_) == ({"diffusionembeddedclustering__n_clusters": 3}, 1.0)


def test_halving_search(make_model, planted):
    X, labels = planted(size=24)
    search = HalvingGridSearchCV(
        make_model(),
        {"n_clusters": [2, 3]},
        scoring="adjusted_rand_score",
        cv=FOLDS,
        min_resources=36,
        factor=2,
        random_state=0,
    )
    search.fit(X, labels)
    assert search.n_resources_ == [36, 72]
    assert search.best_params_ == {"n_clusters": 3}
    assert same_partition(search.predict(X), labels)


def test_cross_validation_scores_held_out_images(make_model, planted):
    X, _ = planted(size=24)
    scores = cross_val_score(make_model(), X, cv=FOLDS)
    expected = [make_model().fit(X[train]).score(X[test]) for train, test in FOLDS.split(X)]
    assert_array_equal(scores, expected)


def test_metadata_routing(make_model, planted):
    X, labels = planted()
    with config_context(enable_metadata_routing=True):
        model = make_model()
        assert model.get_metadata_routing().consumes("fit", ["sample_weight", "groups"]) == set()
        pipeline = make_pipeline(MinMaxScaler(clip=True), make_model(image_shape=(8, 8), value_range=(0, 1)))
        assert same_partition(pipeline.fit_predict(X.reshape(48, 64)), labels)
        with pytest.raises(TypeError, match="sample_weight"):
            pipeline.fit(X.reshape(48, 64), sample_weight=np.ones(48))
        search = GridSearchCV(model, {"n_clusters": [2, 3]}, scoring="adjusted_rand_score", cv=FOLDS).fit(X, labels)
        assert search.best_params_ == {"n_clusters": 3}


# Names


def test_output_can_be_data_frames(make_model, rows):
    table, _ = rows
    expected = make_model(n_components=3).fit(table)
    names = [f"diffusionembeddedclustering{column}" for column in range(3)]
    model = make_model(n_components=3).set_output(transform="pandas")
    for found in (model.fit_transform(table), model.transform(table)):
        assert list(found.columns) == names
        assert_array_equal(found.index, table.index)
        assert_array_equal(found.to_numpy(), expected.embedding_)
        assert set(found.dtypes) == {np.dtype(np.float32)}
    images = table.to_numpy().reshape(48, 8, 8).astype(np.uint8)
    assert_array_equal(model.fit(images).transform(images).index, np.arange(48))
    assert isinstance(model.embedding_, np.ndarray)


def test_names_out_count_the_dimensions_of_the_embedding(make_model, rows):
    model = make_model(n_components=5).fit(rows[0])
    assert_array_equal(model.get_feature_names_out(), [f"diffusionembeddedclustering{column}" for column in range(5)])
    assert model.fit(rows[0].iloc[:4]).get_feature_names_out().shape == (4,)


def test_names_in_are_those_of_the_last_data_frame(make_model, rows, tmp_path):
    table, _ = rows
    images = table.to_numpy().reshape(48, 8, 8).astype(np.uint8)
    for row, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{row:03}.png")
    model = make_model()
    for other in (table.to_numpy(), images, list(tmp_path.iterdir()), tmp_path):
        model.fit(table)
        assert_array_equal(model.feature_names_in_, table.columns)
        assert model.n_features_in_ == 64
        model.fit(other)
        assert not hasattr(model, "feature_names_in_")


def test_other_names_are_told_of(make_model, rows):
    table, _ = rows
    model = make_model().fit(table)
    with pytest.raises(ValueError, match="The feature names should match those that were passed during fit"):
        model.predict(table.iloc[:, ::-1])
    with pytest.warns(UserWarning, match="X does not have valid feature names"):
        assert_array_equal(model.predict(table.to_numpy()), model.labels_)
