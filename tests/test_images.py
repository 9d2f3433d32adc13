import math
import re

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import sparse

from skdiec import images
from skdiec.images import ImageFormat, ImageSource, as_array, as_image_source

EVERYTHING = slice(None)
GREY_SHADES = np.arange(0, 240, 10, dtype=np.uint8).reshape(4, 6)


def scaled(values, low=0.0, high=255.0):
    """What a source must give for these input values, in float64."""
    return 2.0 * (np.asarray(values, dtype=np.float64) - low) / (high - low) - 1.0


def save(path, pixels):
    Image.fromarray(pixels).save(path)
    return path


# Arrays: layouts


@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.sampled_from([1, 3, 4]), st.integers(5, 9), st.integers(5, 9))
def test_all_layouts_of_the_same_images_read_the_same(seed, n, channels, height, width):
    first = np.random.default_rng(seed).integers(0, 256, (n, channels, height, width), dtype=np.uint8)
    last = np.ascontiguousarray(np.moveaxis(first, 1, -1))
    for X, options in [
        (first, {}),
        (first, {"channel_axis": 1}),
        (last, {}),
        (last, {"channel_axis": -1}),
        (first.reshape(n, -1), {"image_shape": (channels, height, width)}),
        (last.reshape(n, -1), {"image_shape": (height, width, channels)}),
        (last.reshape(n, -1), {"image_shape": (height, width, channels), "channel_axis": -1}),
    ]:
        source = as_image_source(X, **options)
        assert source.shape == (channels, height, width)
        np.testing.assert_allclose(source.read(EVERYTHING), scaled(first), atol=1e-7)


def test_three_dimensions_are_grey_images():
    X = np.arange(2 * 3 * 5, dtype=np.uint8).reshape(2, 3, 5)
    source = as_image_source(X)
    assert (len(source), source.shape) == (2, (1, 3, 5))
    np.testing.assert_allclose(source.read(EVERYTHING)[:, 0], scaled(X), atol=1e-7)


def test_image_shape_settles_what_an_array_leaves_open():
    X = np.arange(2 * 3 * 5 * 4, dtype=np.uint8).reshape(2, 3, 5, 4)
    np.testing.assert_allclose(as_image_source(X, image_shape=(3, 5, 4), channel_axis=1).read(EVERYTHING), scaled(X))
    last = as_image_source(X, image_shape=(3, 5, 4), channel_axis=-1)
    np.testing.assert_allclose(last.read(EVERYTHING), scaled(np.moveaxis(X, -1, 1)))


def test_rows_are_read_in_the_order_asked_for():
    X = np.arange(4 * 2 * 2, dtype=np.uint8).reshape(4, 2, 2)
    source = as_image_source(X)
    np.testing.assert_array_equal(source.read(np.array([3, 0, 3])), source.read(EVERYTHING)[[3, 0, 3]])
    np.testing.assert_array_equal(source.read(slice(1, 3)), source.read(EVERYTHING)[1:3])
    assert source.read(slice(0, 0)).shape == (0, 1, 2, 2)


# Arrays: values


@pytest.mark.parametrize(
    ("X", "value_range", "expected"),
    [
        (np.array([0, 51, 255], dtype=np.uint8), None, [-1, -0.6, 1]),
        (np.array([0, 51, 255], dtype=np.uint8), (0, 510), [-1, -0.8, 0]),
        (np.array([False, True, True]), None, [-1, 1, 1]),
        (np.array([0, 5, 10]), (0, 10), [-1, 0, 1]),
        (np.array([0.0, 0.25, 1.0]), (0, 1), [-1, -0.5, 1]),
        (np.array([-1.0, 0.25, 1.0]), (-1, 1), [-1, 0.25, 1]),
        (np.array([0.0, 0.25, 1.0], dtype=np.float16), np.array([0, 1]), [-1, -0.5, 1]),
        # In float32, numbers this large are 64 apart.
        (np.array([1e9, 1e9 + 51, 1e9 + 255]), (1e9, 1e9 + 255), [-1, -0.6, 1]),
    ],
)
def test_value_range_maps_black_to_minus_one_and_white_to_one(X, value_range, expected):
    images_in = X.reshape(3, 1, 1)
    before = images_in.copy()
    out = as_image_source(images_in, value_range=value_range).read(EVERYTHING)
    np.testing.assert_allclose(out.ravel(), expected, atol=1e-7)
    assert out.dtype == np.float32
    np.testing.assert_array_equal(images_in, before)


def test_rounding_just_beyond_the_value_range_is_accepted():
    assert as_image_source(np.full((1, 2, 2), 1 + 1e-7), value_range=(0, 1)).read(EVERYTHING).max() == pytest.approx(1)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float64, torch.float16, torch.bfloat16])
def test_torch_tensors_read_as_their_numpy_arrays(dtype):
    values = torch.arange(0, 64).reshape(1, 8, 8).to(dtype)
    out = as_image_source(values, value_range=(0, 64)).read(EVERYTHING)
    np.testing.assert_array_equal(out[0], scaled(np.arange(64).reshape(1, 8, 8), 0, 64))


def test_tensor_that_needs_a_gradient_is_read():
    X = torch.full((1, 2, 2), 0.5, requires_grad=True)
    assert as_image_source(X, value_range=(0, 1)).read(EVERYTHING).max() == 0.0


def test_memory_map_reads_as_its_array_and_stays_on_disk(tmp_path):
    X = np.random.default_rng(0).integers(0, 256, (5, 6, 7), dtype=np.uint8)
    np.save(tmp_path / "images.npy", X)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    source = as_image_source(mapped)
    assert np.shares_memory(source.array, mapped)
    np.testing.assert_array_equal(source.read(slice(1, 4)), as_image_source(X).read(slice(1, 4)))
    assert source.fingerprint() == as_image_source(X).fingerprint()


def test_every_block_of_a_large_array_is_looked_at(monkeypatch):
    X = np.linspace(0, 1, 5 * 4).reshape(5, 2, 2)
    whole = as_image_source(X, value_range=(0, 1)).fingerprint()
    for rows in (1, 2):
        monkeypatch.setattr(images.arrays, "BLOCK_BYTES", rows * X[0].nbytes)
        assert as_image_source(X, value_range=(0, 1)).fingerprint() == whole
        assert as_image_source(X.reshape(5, -1)).format.value_range == (0, 1)
        with pytest.raises(ValueError, match=r"has values from 0 to 1"):
            as_image_source(X, value_range=(0, 0.9))
        for bad in (np.nan, np.inf, -np.inf):
            spoiled = X.copy()
            spoiled[4, 1, 1] = bad
            with pytest.raises(ValueError, match="X must not contain NaN or infinity"):
                as_image_source(spoiled, value_range=(0, 1))


# Tables


def test_table_rows_are_laid_on_a_square_and_filled_with_the_lowest_value():
    source = as_image_source([[0.0, 1.0, 2.0, 3.0, 4.0], [4.0, 4.0, 4.0, 4.0, 4.0]])
    assert source.format == ImageFormat((1, 3, 3), (0.0, 4.0), is_table=True, kind=None)
    expected = [[[-1, -0.5, 0], [0.5, 1, -1], [-1, -1, -1]], [[1, 1, 1], [1, 1, -1], [-1, -1, -1]]]
    np.testing.assert_array_equal(source.read(EVERYTHING)[:, 0], expected)


@pytest.mark.parametrize("n_features", [1, 2, 4, 5, 9, 10])
def test_table_square_is_the_smallest_that_holds_a_row(n_features):
    side = math.ceil(n_features**0.5)
    assert as_image_source(np.ones((2, n_features))).shape == (1, side, side)


def test_table_value_range_is_learned_once_and_new_rows_may_lie_beyond_it():
    fitted = as_image_source([[0.0, 10.0]]).format
    new = as_image_source([[5.0, 20.0]], like=fitted)
    assert new.format == fitted
    np.testing.assert_array_equal(new.read(EVERYTHING).ravel(), [0, 3, -1, -1])


@pytest.mark.parametrize(
    "value", [0.0, -7.0, 1e16, 1e17, -1e17, 1e-320, 1.7e308, np.finfo(np.float64).max, np.finfo(np.float64).min]
)
def test_constant_table_of_any_magnitude_is_read_as_one_shade(value):
    found = as_image_source([[value, value], [value, value]]).read(EVERYTHING)
    assert np.isfinite(found).all()
    assert len(np.unique(found[:, :, 0])) == 1
    assert abs(found[0, 0, 0, 0]) == 1


@pytest.mark.parametrize("low", [0.0, 1e-310, 1e17, -1.7e308])
def test_table_of_two_neighbouring_numbers_is_finite(low):
    X = [[low, np.nextafter(low, np.inf)]]
    found = as_image_source(X).read(EVERYTHING).ravel()
    assert np.isfinite(found).all()
    assert found[0] == -1


def test_table_whose_range_overflows_is_told_of():
    with pytest.raises(ValueError, match=r"value_range must be stated, or X scaled: from -1e\+308 to 1e\+308"):
        as_image_source([[-1e308, 1e308]])
    with pytest.raises(ValueError, match=r"value_range is \(-1e\+308, 0\), but X .* to 1.7e\+308"):
        as_image_source([[-1e308, 1.7e308]], value_range=(-1e308, 0))


def test_later_rows_far_beyond_a_table_are_told_of():
    fitted = as_image_source([[0.0, 10.0]]).format
    assert as_image_source([[-1e5, 1e5]], like=fitted).read(EVERYTHING).max() == pytest.approx(2e4, rel=1e-3)
    for far in (1.1e5, -1.1e5, 1e300):
        with pytest.raises(ValueError, match=r"value_range is \(0, 10\), but X \(dtype float64\) has values from"):
            as_image_source([[0.0, far]], like=fitted)


def test_table_takes_a_stated_value_range_and_survives_a_constant():
    stated = as_image_source([[0.0, 10.0]], value_range=(0, 5))
    np.testing.assert_array_equal(stated.read(EVERYTHING).ravel(), [-1, 3, -1, -1])
    constant = as_image_source([[7.0, 7.0]])
    assert constant.format.value_range == (7.0, 8.0)
    np.testing.assert_array_equal(constant.read(EVERYTHING).ravel(), [-1, -1, -1, -1])


@pytest.mark.parametrize("dtype", ["float64", "int64", "Int64", "object"])
def test_data_frames_read_as_their_values(dtype):
    X = np.array([[0, 1, 2, 3], [3, 2, 1, 0]])
    frame = pd.DataFrame(X, columns=list("abcd")).astype(dtype)
    np.testing.assert_array_equal(as_image_source(frame).read(EVERYTHING), as_image_source(X).read(EVERYTHING))
    np.testing.assert_array_equal(as_array(frame), X)


# Later input


KINDS = {
    "uint8": np.uint8([[[0, 1], [1, 0]]]),
    "bool": np.array([[[False, True], [True, False]]]),
    "integers": np.array([[[0, 1], [1, 0]]]),
    "lists": [[[0, 1], [1, 0]]],
    "uint16": np.array([[[0, 1], [1, 0]]], dtype=np.uint16),
    "floats": np.array([[[0.0, 1.0], [1.0, 0.0]]]),
    "tensor": torch.tensor([[[0.0, 1.0], [1.0, 0.0]]]),
}


@pytest.mark.parametrize("later", KINDS)
@pytest.mark.parametrize("fitted", ["uint8", "bool"])
def test_later_images_of_another_type_need_a_stated_value_range(fitted, later):
    like = as_image_source(KINDS[fitted]).format
    assert like.kind == fitted
    if later == fitted:
        assert as_image_source(KINDS[later], like=like).format == like
    else:
        with pytest.raises(ValueError, match=rf"value_range must be stated for this X \(dtype .* fitted on .*{fitted}"):
            as_image_source(KINDS[later], like=like)
    stated = as_image_source(KINDS[later], like=like, value_range=(0, 1))
    np.testing.assert_array_equal(stated.read(EVERYTHING), [[[[-1, 1], [1, -1]]]])


def test_a_stated_value_range_holds_for_all_later_types():
    fitted = as_image_source(KINDS["floats"], value_range=(0, 1)).format
    for X in KINDS.values():
        found = as_image_source(X, value_range=(0, 1), like=fitted)
        np.testing.assert_array_equal(found.read(EVERYTHING), [[[[-1, 1], [1, -1]]]])
    with pytest.raises(ValueError, match=r"value_range is \(0, 1\), but X \(dtype uint8\) has values from 0 to 2"):
        as_image_source(KINDS["uint8"] * 2, value_range=(0, 1), like=fitted)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ">f8", np.longdouble])
def test_later_floats_of_any_width_are_of_one_kind(dtype):
    fitted = as_image_source(KINDS["floats"], value_range=(0, 1)).format
    later = as_image_source(KINDS["floats"].astype(dtype), like=fitted)
    assert later.format == fitted
    np.testing.assert_array_equal(later.read(EVERYTHING), [[[[-1, 1], [1, -1]]]])


def test_later_files_and_arrays_of_8_bits_are_of_one_kind(tmp_path):
    path = save(tmp_path / "a.png", GREY_SHADES)
    files, array = as_image_source([path]), as_image_source(GREY_SHADES[None])
    pictures = [Image.fromarray(GREY_SHADES)]
    for X, like in (([path], array.format), (GREY_SHADES[None], files.format), (pictures, files.format)):
        np.testing.assert_array_equal(as_image_source(X, like=like).read(EVERYTHING), array.read(EVERYTHING))
    for X in ([path], pictures):
        with pytest.raises(ValueError, match="value_range must be stated"):
            as_image_source(X, like=ImageFormat((1, 4, 6), (0.0, 1.0), kind="float"))


def test_images_are_no_later_rows_of_a_table_and_the_reverse(tmp_path):
    table = as_image_source(np.zeros((2, 24))).format
    path = save(tmp_path / "a.png", np.zeros((5, 5), dtype=np.uint8))
    for X in (np.zeros((2, 5, 5), dtype=np.uint8), [path], [Image.new("L", (5, 5))]):
        with pytest.raises(ValueError, match="fitted on"):
            as_image_source(X, like=table)
    as_image_source(np.zeros((2, 24), dtype=np.int64), like=table)


@pytest.mark.parametrize(
    ("shape", "batch"),
    [
        ((1, 8, 8), (3, 8, 8)),
        ((1, 8, 9), (3, 8, 9, 1)),
        ((3, 8, 9), (3, 8, 9, 3)),
        ((3, 8, 9), (3, 3, 8, 9)),
        ((4, 8, 9), (5, 4, 8, 9)),
    ],
)
def test_one_image_of_a_later_batch_is_told_of(shape, batch):
    X, like = np.zeros(batch, dtype=np.uint8), ImageFormat(shape, (0.0, 255.0))
    as_image_source(X, like=like)
    as_image_source(X[:1], like=like)
    with pytest.raises(ValueError, match=r"X has the shape of one image, \(.*\): pass X\[None\]"):
        as_image_source(X[0], like=like)
    np.testing.assert_array_equal(as_image_source(X[0][None], like=like).shape, shape)
    with pytest.raises(ValueError, match=r"pass X\[None\]"):
        as_image_source(X[0], image_shape=shape, channel_axis=1)


def test_rows_and_batches_are_not_taken_for_one_image():
    assert len(as_image_source(np.zeros((1, 8), dtype=np.uint8), image_shape=(1, 8))) == 1
    assert len(as_image_source(np.zeros((1, 8, 8), dtype=np.uint8), image_shape=(8, 8))) == 1


# Fingerprints


def test_fingerprint_is_that_of_content_and_format():
    X = np.arange(3**4, dtype=np.uint8).reshape(3, 3, 3, 3)
    changed = X.copy()
    changed[2, 2, 2, 2] += 1
    different = [
        as_image_source(X, channel_axis=1),
        as_image_source(X, channel_axis=-1),
        as_image_source(X, channel_axis=1, value_range=(0, 100)),
        as_image_source(X.astype(np.int8), channel_axis=1, value_range=(0, 255)),
        as_image_source(changed, channel_axis=1),
        as_image_source(X[:2], channel_axis=1),
        as_image_source(X[::-1], channel_axis=1),
        as_image_source(X.reshape(3, -1), image_shape=(3, 9)),
        as_image_source(X.reshape(3, -1)),
        as_image_source(X.astype(float), channel_axis=1, value_range=(0, 255)),
    ]
    assert len({source.fingerprint() for source in different}) == len(different)
    last = np.moveaxis(X, 1, -1)
    for same, axis in ((np.asfortranarray(X), 1), (last, -1), (last.copy(), -1)):
        assert as_image_source(same, channel_axis=axis).fingerprint() == different[0].fingerprint()
    floats = X.astype("<f8"), X.astype(">f8")
    assert len({as_image_source(one, channel_axis=1, value_range=(0, 255)).fingerprint() for one in floats}) == 1


# Errors

ZEROS = np.zeros
IMAGE_FORMAT = ImageFormat((1, 4, 4), (0.0, 1.0), kind="float")


@pytest.mark.parametrize(
    ("X", "options", "message"),
    [
        (ZEROS((1, 4, 4)), {"channel_axis": 3}, "channel_axis must be None, 1 or -1; got 3"),
        *(
            (ZEROS((1, 4, 4)), {"channel_axis": value}, "channel_axis must be None, 1 or -1; got ")
            for value in (True, 1.0, ZEROS(2), torch.ones(2), pd.Series([1, 2]), sparse.eye(3))
        ),
        ([[10**400] * 4] * 4, {}, "X must hold numbers or paths of image files"),
        (ZEROS((1, 4, 4)), {}, "value_range must be stated for images of dtype float64, such as (0, 1) or (-1, 1)"),
        (ZEROS((1, 4, 4)), {"value_range": 1}, "value_range must be a pair of numbers (low, high); got 1"),
        (ZEROS((1, 4, 4)), {"value_range": (0, 1, 2)}, "value_range must be a pair of numbers"),
        (ZEROS((1, 4, 4)), {"value_range": "ab"}, "value_range must be a pair of numbers"),
        (ZEROS((1, 4, 4)), {"value_range": {-2, -1}}, "value_range must be a pair of numbers"),
        (ZEROS((1, 4, 4)), {"value_range": {0: "black", 1: "white"}}, "value_range must be a pair of numbers"),
        (ZEROS((1, 4, 4)), {"value_range": (1, 0)}, "value_range must be two finite numbers, the lower one first"),
        (ZEROS((1, 4, 4)), {"value_range": (1, 1)}, "value_range must be two finite numbers, the lower one first"),
        (ZEROS((1, 4, 4)), {"value_range": (0, np.inf)}, "value_range must be two finite numbers"),
        (ZEROS((1, 4, 4)), {"value_range": (0, 10**400)}, "value_range must be a pair of numbers"),
        (ZEROS((1, 4, 4)), {"value_range": np.zeros(10**6)}, "value_range must be a pair of numbers"),
        (ZEROS((1, 4, 4)), {"value_range": (-1.7e308, 1.7e308)}, "value_range must be neither wider nor finer than"),
        (ZEROS((1, 4, 4)), {"value_range": (0, 1e-310)}, "value_range must be neither wider nor finer than float64"),
        (ZEROS((1, 4, 4)), {"value_range": (1e17, 1e17 + 255)}, "value_range must be neither wider nor finer than"),
        (
            np.full((1, 4, 4), 200),
            {"value_range": (0, 1)},
            "value_range is (0, 1), but X (dtype int64) has values from 200 to 200",
        ),
        (np.full((1, 4, 4), -0.5), {"value_range": (0, 1)}, "has values from -0.5 to -0.5"),
        (np.full((1, 4, 4), 1.001), {"value_range": (0, 1)}, "has values from 1.001 to 1.001"),
        (ZEROS((1, 16)), {"image_shape": 4}, "image_shape must be (height, width) or three numbers"),
        (ZEROS((1, 16)), {"image_shape": (16,)}, "image_shape must be (height, width)"),
        (ZEROS((1, 16)), {"image_shape": (4.0, 4.0)}, "image_shape must be (height, width)"),
        (ZEROS((1, 16)), {"image_shape": (-4, -4)}, "image_shape must be (height, width)"),
        (ZEROS((1, 48)), {"image_shape": (4, 3, 4)}, "does not tell which number is the channels"),
        (ZEROS((1, 48)), {"image_shape": (8, 6, 8)}, "set channel_axis to 1 or -1"),
        (
            ZEROS((1, 17)),
            {"image_shape": (4, 4)},
            "image_shape (1, 4, 4) (channels, height, width) needs 16 features a row, but X has 17 features",
        ),
        (
            ZEROS((1, 3, 8, 8)),
            {"image_shape": (8, 9)},
            "image_shape (1, 8, 9) (channels, height, width) does not fit X with images of (3, 8, 8)",
        ),
        (ZEROS((1, 5, 5)), {"image_shape": (4, 4)}, "does not fit X with images of (1, 5, 5)"),
        (ZEROS((9, 8, 3)), {}, "one color image, or 9 images of 8 x 3 pixels? Pass X[None] for the one image"),
        (ZEROS(4), {}, "X must have 2, 3 or 4 dimensions"),
        (ZEROS((1, 1, 3, 8, 8)), {}, "got shape (1, 1, 3, 8, 8)"),
        (ZEROS((2, 3, 8, 4)), {}, "both axis 1 and axis -1 could be the channels (1 to 4). Set channel_axis to 1 or"),
        (ZEROS((2, 5, 8, 5)), {}, "neither axis 1 nor axis -1 could be the channels"),
        (ZEROS((2, 3, 3, 3)), {"image_shape": (3, 3)}, "both axis 1 and axis -1"),
        (ZEROS((0, 4, 4)), {}, "X must hold at least one image; got shape (0, 4, 4)"),
        ([], {}, "X must hold at least one image"),
        (np.array([[["a"]]]), {}, "X must hold real numbers or be paths of image files; got dtype <U"),
        ([[[{}]]], {}, "X must hold numbers or paths of image files: float() argument must be"),
        (pd.DataFrame([["x.png"]]), {}, "X must hold numbers or paths of image files"),
        (ZEROS((1, 4), dtype=complex), {}, "X must hold real numbers or be paths of image files; got dtype complex128"),
        ([[np.nan, 1.0]], {}, "X must not contain NaN or infinity"),
        ([[1.0, None]], {}, "X must not contain NaN or infinity"),
        (
            ZEROS((1, 5, 5)),
            {"like": IMAGE_FORMAT},
            "X has images of shape (1, 5, 5) (channels, height, width), but the estimator was fitted on (1, 4, 4)",
        ),
        (ZEROS((1, 16)), {"like": IMAGE_FORMAT}, "X has 2 dimensions, but the estimator was fitted on images"),
        (ZEROS((1, 4, 4)) + 2, {"like": IMAGE_FORMAT}, "value_range is (0, 1), but X"),
        (ZEROS((1, 4, 4), dtype=int), {"like": IMAGE_FORMAT}, "value_range must be stated for this X (dtype int64, "),
    ],
)
def test_wrong_arrays_are_told_of(X, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        as_image_source(X, **options)


def test_a_source_cannot_be_made_of_the_abstract_class():
    with pytest.raises(TypeError, match="abstract"):
        ImageSource(IMAGE_FORMAT)


@pytest.mark.parametrize(
    ("fitted", "later"), [(np.uint8, float), (float, np.uint8), (bool, np.uint8), (np.uint8, bool)]
)
def test_later_rows_of_a_table_of_pixels_are_of_its_type(fitted, later):
    rows = np.arange(12).reshape(3, 4)
    like = as_image_source(rows.astype(fitted)).format
    assert as_image_source(rows.astype(fitted), like=like).format == like
    with pytest.raises(ValueError, match=r"value_range must be stated for this X .*another type"):
        as_image_source(rows.astype(later), like=like)


def test_later_rows_of_other_tables_are_of_any_type():
    rows = np.arange(12).reshape(3, 4)
    like = as_image_source(rows.astype(np.float64)).format
    for later in (np.float32, np.int64, np.int16, np.uint16):
        np.testing.assert_array_equal(as_image_source(rows.astype(later), like=like).read(slice(None))[0, 0, 0, 0], -1)


@pytest.mark.parametrize("layout", ["first", "last"])
def test_two_numbers_are_the_size_of_images_with_channels_too(layout):
    X = np.arange(2 * 3 * 4 * 5, dtype=np.uint8).reshape(2, 3, 4, 5)
    given = X if layout == "first" else np.moveaxis(X, 1, -1)
    source = as_image_source(given, image_shape=(4, 5))
    assert source.shape == (3, 4, 5)
    np.testing.assert_array_equal(source.read(slice(None)), as_image_source(X).read(slice(None)))
    assert as_image_source(given, image_shape=(4, 5), like=source.format).shape == (3, 4, 5)
    with pytest.raises(ValueError, match=r"image_shape \(1, 5, 4\) .* does not fit X with images of \(3, 4, 5\)"):
        as_image_source(given, image_shape=(5, 4), channel_axis=1 if layout == "first" else -1)
