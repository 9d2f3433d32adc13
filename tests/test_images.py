import math
import os
import re

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from skdiec import images
from skdiec.images import FileImages, ImageFormat, ImageSource, as_array, as_image_source

EVERYTHING = slice(None)
GREY_SHADES = np.arange(0, 240, 10, dtype=np.uint8).reshape(4, 6)  # every multiple of 10 up to 230
COLORS = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)


def scaled(values, low=0.0, high=255.0):
    """What a source must give for these input values, in float64."""
    return 2.0 * (np.asarray(values, dtype=np.float64) - low) / (high - low) - 1.0


def save(path, pixels, **options):
    Image.fromarray(pixels).save(path, **options)
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


def test_later_files_are_read_at_the_earlier_shape(tmp_path):
    path = save(tmp_path / "a.png", COLORS)
    like = ImageFormat((1, 2, 3), (0.0, 1.0))
    assert as_image_source([path], like=like).shape == (1, 2, 3)
    assert as_image_source([path], like=like, image_shape=(5, 5), file_shape=lambda: (3, 7, 7)).shape == (1, 2, 3)


# Files


def test_folder_is_searched_in_sorted_order_with_its_subfolders(tmp_path):
    (tmp_path / "b" / "trap.png").mkdir(parents=True)
    (tmp_path / "notes.txt").write_text("no image")
    for value, name in enumerate(["a.png", "b/z.JPG", "b/c.bmp", "c.Tiff"]):
        save(tmp_path / name, np.full((2, 2), 50 * value, dtype=np.uint8))
    for folder in (tmp_path, str(tmp_path)):
        source = as_image_source(folder)
        assert [path.name for path in source.paths] == ["a.png", "c.bmp", "z.JPG", "c.Tiff"]
        np.testing.assert_allclose(source.read(EVERYTHING)[:, 0, 0, 0], scaled([0, 100, 50, 150]), atol=1e-7)


@pytest.mark.parametrize(
    "container",
    [
        list,
        tuple,
        np.array,
        pd.Series,
        lambda names: np.array(names, dtype=object),
        lambda names: pd.Series(names, dtype=object),
        lambda names: pd.Index(names),
    ],
)
def test_paths_may_come_in_any_sequence_and_keep_their_order(tmp_path, container):
    names = [str(save(tmp_path / name, GREY_SHADES)) for name in ("b.png", "a.png")]
    assert [str(path) for path in as_image_source(container(names)).paths] == names


GREY_MODES = {
    "L": Image.fromarray(GREY_SHADES),
    "LA": Image.merge("LA", [Image.fromarray(GREY_SHADES), Image.fromarray(255 - GREY_SHADES)]),
    "1": Image.fromarray(GREY_SHADES > 100),
    "I;16": Image.fromarray(GREY_SHADES.astype(np.uint16) * 257 + 100),
    "I": Image.fromarray(GREY_SHADES.astype(np.int32) * 257 + 100),
}


@pytest.mark.parametrize("mode", GREY_MODES)
def test_grey_files_of_every_mode_read_as_their_shades(tmp_path, mode):
    assert GREY_MODES[mode].mode == mode
    GREY_MODES[mode].save(tmp_path / ("a.tif" if mode == "I" else "a.png"))
    source = as_image_source(tmp_path)
    expected = scaled(np.where(GREY_SHADES > 100, 255, 0) if mode == "1" else GREY_SHADES)
    assert source.shape == (1, 4, 6)
    np.testing.assert_allclose(source.read(EVERYTHING)[0, 0], expected, atol=1e-7)
    color = as_image_source(tmp_path, image_shape=(3, 4, 6)).read(EVERYTHING)[0]
    np.testing.assert_allclose(color, np.broadcast_to(expected, (3, 4, 6)), atol=1e-7)


def test_grey_beyond_16_bits_is_clipped(tmp_path):
    Image.fromarray(np.array([[-5, 65535, 10**6]], dtype=np.int32)).save(tmp_path / "a.tif")
    assert as_image_source(tmp_path).read(EVERYTHING).ravel().tolist() == [-1, 1, 1]


def test_color_files_of_every_mode_read_as_their_colors(tmp_path):
    rgb = np.array([[[10, 20, 30], [200, 100, 50]]] * 2, dtype=np.uint8)
    palette = Image.fromarray(np.array([[0, 1], [0, 1]], dtype=np.uint8)).convert("P")
    palette.putpalette(rgb[0].ravel().tolist())
    ink = [Image.fromarray(255 - rgb[..., channel]) for channel in range(3)]
    Image.fromarray(rgb).save(tmp_path / "rgb.png")
    Image.fromarray(np.dstack([rgb, np.full((2, 2), 77, dtype=np.uint8)])).save(tmp_path / "rgba.png")
    Image.merge("CMYK", [*ink, Image.new("L", (2, 2))]).save(tmp_path / "cmyk.tif")
    palette.save(tmp_path / "palette.png")
    palette.save(tmp_path / "transparent.png", transparency=bytes([128, 60]))
    source = as_image_source(tmp_path)
    assert (len(source), source.shape) == (5, (3, 2, 2))
    np.testing.assert_allclose(source.read(EVERYTHING), scaled([np.moveaxis(rgb, -1, 0)] * 5), atol=1e-7)
    luma = (rgb.astype(int) @ [19595, 38470, 7471] + 2**15) >> 16  # ITU-R 601-2
    grey = as_image_source(tmp_path, image_shape=(2, 2)).read(EVERYTHING)
    np.testing.assert_allclose(grey, scaled([[luma]] * 5), atol=1e-7)


def test_grey_and_color_files_together_are_read_in_color(tmp_path):
    grey, color = save(tmp_path / "a.png", GREY_SHADES), save(tmp_path / "b.png", COLORS)
    out = as_image_source([grey, color]).read(EVERYTHING)
    np.testing.assert_allclose(out[0], scaled([GREY_SHADES] * 3), atol=1e-7)
    np.testing.assert_allclose(out[1], scaled(np.moveaxis(COLORS, -1, 0)), atol=1e-7)


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, GREY_SHADES),
        (2, GREY_SHADES[:, ::-1]),
        (3, GREY_SHADES[::-1, ::-1]),
        (4, GREY_SHADES[::-1]),
        (5, GREY_SHADES.T),
        (6, np.rot90(GREY_SHADES, -1)),
        (7, GREY_SHADES[::-1, ::-1].T),
        (8, np.rot90(GREY_SHADES)),
        (9, GREY_SHADES),
    ],
)
def test_orientation_tag_is_applied(tmp_path, orientation, upright):
    exif = Image.Exif()
    exif[0x0112] = orientation
    source = as_image_source([save(tmp_path / "a.png", GREY_SHADES, exif=exif)])
    assert source.shape == (1, *upright.shape)
    np.testing.assert_allclose(source.read(EVERYTHING)[0, 0], scaled(upright), atol=1e-7)


def test_files_are_scaled_to_cover_the_shape_then_cropped_at_the_centre(tmp_path):
    wide = np.zeros((4, 12), dtype=np.uint8)
    wide[:, 4:8] = 255
    assert as_image_source([save(tmp_path / "a.png", wide)], image_shape=(4, 4)).read(EVERYTHING).min() == 1.0
    tall_color = np.zeros((24, 8, 3), dtype=np.uint8)
    tall_color[8:16, :, 0] = 255
    path = save(tmp_path / "b.png", tall_color)
    for shape in ((4, 4, 3), (3, 4, 4)):
        out = as_image_source([path], image_shape=shape, channel_axis=-1 if shape[2] == 3 else 1).read(EVERYTHING)[0]
        np.testing.assert_array_equal(out[:, 1:3], np.broadcast_to([[[1]], [[-1]], [[-1]]], (3, 2, 4)))


def test_file_shape_is_asked_only_where_no_image_shape_is_given(tmp_path):
    path = save(tmp_path / "a.png", COLORS)
    assert as_image_source([path], file_shape=lambda: (1, 8, 9)).shape == (1, 8, 9)
    asked = []
    assert as_image_source([path], image_shape=(2, 3), file_shape=lambda: asked.append(1)).shape == (1, 2, 3)
    assert asked == []


def test_decoding_once_gives_the_same_bits_as_reading_lazily(tmp_path):
    every_byte = np.arange(256, dtype=np.uint8).reshape(16, 16)
    source = as_image_source([save(tmp_path / "a.png", every_byte), save(tmp_path / "b.png", every_byte.T.copy())])
    in_memory = source.in_memory()
    assert in_memory.format == source.format
    for rows in (EVERYTHING, slice(1, 2), np.array([1, 0, 1])):
        np.testing.assert_array_equal(in_memory.read(rows), source.read(rows))
    assert in_memory.array.dtype == np.uint8
    np.testing.assert_array_equal(in_memory.array[0, 0], every_byte)
    np.testing.assert_array_equal(source.in_memory(max_bytes=2 * 256).array, in_memory.array)
    assert source.in_memory(max_bytes=2 * 256 - 1) is source


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


def test_fingerprint_of_files_changes_with_path_order_shape_size_and_time(tmp_path):
    one, two = save(tmp_path / "a.png", GREY_SHADES), save(tmp_path / "b.png", GREY_SHADES)
    fingerprint = as_image_source([one, two]).fingerprint()
    assert as_image_source(tmp_path).fingerprint() == fingerprint
    seen = {fingerprint, as_image_source([two, one]).fingerprint(), as_image_source([one]).fingerprint()}
    seen.add(as_image_source([one, two], image_shape=(3, 3)).fingerprint())
    os.utime(one, ns=(0, 0))
    seen.add(as_image_source([one, two]).fingerprint())
    save(one, np.random.default_rng(0).integers(0, 256, (4, 6), dtype=np.uint8))
    os.utime(one, ns=(0, 0))
    seen.add(as_image_source([one, two]).fingerprint())
    assert len(seen) == 6


# Errors

ZEROS = np.zeros
IMAGE_FORMAT = ImageFormat((1, 4, 4), (0.0, 1.0), kind="float")


@pytest.mark.parametrize(
    ("X", "options", "message"),
    [
        (ZEROS((1, 4, 4)), {"channel_axis": 3}, "channel_axis must be None, 1 or -1; got 3"),
        (ZEROS((1, 4, 4)), {}, "value_range must be stated for images of dtype float64, such as (0, 1) or (-1, 1)"),
        (ZEROS((1, 4, 4)), {"value_range": 1}, "value_range must be a pair of numbers (low, high); got 1"),
        (ZEROS((1, 4, 4)), {"value_range": (0, 1, 2)}, "value_range must be a pair of numbers"),
        (ZEROS((1, 4, 4)), {"value_range": "ab"}, "value_range must be a pair of numbers"),
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
            {"image_shape": (8, 8)},
            "image_shape (1, 8, 8) (channels, height, width) does not fit X with images of (3, 8, 8)",
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


def test_wrong_paths_are_told_of(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    path = save(tmp_path / "a.png", GREY_SHADES)
    other = save(tmp_path / "b.png", GREY_SHADES.T.copy())
    for X, message in [
        (path, f"X must be a folder or a list of image files; {path} is one file: pass [path]"),
        (tmp_path / "none", f"X must be a folder of images: there is no folder {tmp_path / 'none'}"),
        (empty, f"X must be a folder with images, but {empty} has no .bmp, .gif, "),
        ([path, tmp_path / "c.png"], f"X must name image files: there is no file {tmp_path / 'c.png'}"),
        ([path, tmp_path], f"X must name image files: there is no file {tmp_path}"),
        (
            tmp_path,
            f"image_shape must be stated for files of several sizes (height, width): {path} has (4, 6), "
            f"{other} has (6, 4)",
        ),
    ]:
        with pytest.raises(ValueError, match=re.escape(message)):
            as_image_source(X)


@pytest.mark.parametrize("suffix", ["bmp", "jpg", "png", "ppm"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.8])
def test_truncated_file_is_named(tmp_path, suffix, share):
    sound, cut = save(tmp_path / f"a.{suffix}", COLORS), tmp_path / f"b.{suffix}"
    content = sound.read_bytes()
    cut.write_bytes(content[: int(share * len(content))])
    for options in ({}, {"image_shape": (4, 6)}):
        with pytest.raises(ValueError, match=re.escape(f"cannot read the image file {cut}")):
            as_image_source([sound, cut], **options).read(EVERYTHING)


def test_unreadable_files_are_named(tmp_path):
    text, header, floats = tmp_path / "a.png", tmp_path / "b.ppm", tmp_path / "c.tif"
    text.write_text("no image")
    header.write_bytes(b"P6 1x 2 255\n")  # Pillow's error is a ValueError of int(), without the name
    Image.fromarray(np.zeros((2, 2), dtype=np.float32)).save(floats)
    for path in (text, header, floats):
        with pytest.raises(ValueError, match=re.escape(f"cannot read the image file {path}: ")):
            as_image_source([path], image_shape=(2, 2)).read(EVERYTHING)
    with pytest.raises(ValueError, match="floating-point pixels have no known range"):
        as_image_source([floats]).read(EVERYTHING)


def test_file_that_vanishes_after_the_start_is_named(tmp_path):
    source = as_image_source([save(tmp_path / "a.png", GREY_SHADES)])
    (tmp_path / "a.png").unlink()
    with pytest.raises(ValueError, match=r"cannot read the image file .*a\.png"):
        source.read(EVERYTHING)


def test_files_have_one_or_three_channels(tmp_path):
    source = FileImages([save(tmp_path / "a.png", GREY_SHADES)], (4, 4, 6))
    with pytest.raises(ValueError, match="image files are read with 1 or 3 channels, but 4 are wanted"):
        source.read(EVERYTHING)


def test_a_source_cannot_be_made_of_the_abstract_class():
    with pytest.raises(TypeError, match="abstract"):
        ImageSource(IMAGE_FORMAT)
