import glob
import logging
import os
import re
import threading
import warnings
from itertools import count
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from skdiec.images import ArrayImages, FileImages, ImageFormat, as_image_source, files

EVERYTHING = slice(None)
GREY_SHADES = np.arange(0, 240, 10, dtype=np.uint8).reshape(4, 6)  # every multiple of 10 up to 230
COLORS = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)


SUFFIXES = "apng bmp dib gif ico icb j2k jfif jp2 jpe jpeg jpg JPG pbm pgm pnm png ppm tga tif tiff webp"


def scaled(values, low=0.0, high=255.0):
    """What a source must give for these input values, in float64."""
    return 2.0 * (np.asarray(values, dtype=np.float64) - low) / (high - low) - 1.0


def save(path, pixels=GREY_SHADES, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def names_of(source, folder):
    return [str(path.relative_to(folder)) for path in source.paths]


# Which files, in which order


def test_order_is_that_of_sorted_glob(tmp_path):
    names = ["a.png", "b/z.JPG", "b/c.bmp", "b.png", "c.Tiff", "b-1/x.png", "B/y.png", "10.png", "9.png", "é.png"]
    for value, name in enumerate(names):
        save(tmp_path / name, np.full((2, 2), 20 * value, dtype=np.uint8))
    (tmp_path / "d.png" / "trap.png").mkdir(parents=True)
    (tmp_path / "notes.txt").write_text("no image")
    expected = [path for path in sorted(glob.glob(f"{tmp_path}/**/*", recursive=True)) if os.path.isfile(path)]
    expected.remove(str(tmp_path / "notes.txt"))
    for folder in (tmp_path, str(tmp_path), f"{tmp_path}/"):
        source = as_image_source(folder)
        assert [str(path) for path in source.paths] == expected
        values = [20 * names.index(str(path.relative_to(tmp_path))) for path in source.paths]
        np.testing.assert_allclose(source.read(EVERYTHING)[:, 0, 0, 0], scaled(values), atol=0.02)  # JPEG


def test_folder_may_be_relative(tmp_path, monkeypatch):
    save(tmp_path / "images" / "a.png")
    monkeypatch.chdir(tmp_path)
    assert as_image_source("images").paths == [Path("images/a.png")]
    assert as_image_source("./images/").paths == [Path("images/a.png")]
    assert as_image_source(".").paths == [Path("images/a.png")]


@pytest.mark.parametrize(
    "suffix",
    SUFFIXES.split(),
)
def test_every_suffix_of_pillow_is_read(tmp_path, suffix):
    image = Image.fromarray(np.full((16, 16), 255, dtype=np.uint8)).convert("1" if suffix == "pbm" else "L")
    options = {"jfif": {"format": "JPEG"}, "jpe": {"format": "JPEG"}, "apng": {"format": "PNG"}}
    image.save(tmp_path / f"a.{suffix}", **options.get(suffix, {}))
    source = as_image_source(tmp_path)
    assert names_of(source, tmp_path) == [f"a.{suffix}"]
    np.testing.assert_allclose(source.read(EVERYTHING), 1, atol=0.02)


def test_hidden_files_and_folders_are_left_out_with_a_warning(tmp_path):
    for name in (".b.png", "._c.png", ".ipynb_checkpoints/c.png", "__MACOSX/c.png", "d/@eaDir/c.png", "d/.e/f/g.png"):
        save(tmp_path / name)
    save(tmp_path / "d" / "c.png")
    save(tmp_path / "_kept.png")
    with pytest.warns(UserWarning, match=r"2 images are read\. Left out: hidden images: 5$"):
        assert names_of(as_image_source(tmp_path), tmp_path) == ["_kept.png", "d/c.png"]


def test_what_is_no_image_makes_no_noise(tmp_path):
    save(tmp_path / "a.png")
    for name in (".DS_Store", "notes.txt", "labels.csv", "README", "Thumbs.db", ".git/config", "empty/.keep"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("no image")
    assert names_of(as_image_source(tmp_path), tmp_path) == ["a.png"]


def test_hidden_names_in_front_of_the_folder_do_not_matter(tmp_path):
    save(tmp_path / ".cache" / "images" / "a.png")
    assert names_of(as_image_source(tmp_path / ".cache" / "images"), tmp_path) == [".cache/images/a.png"]


def test_links_are_followed(tmp_path):
    folder, elsewhere = tmp_path / "images", tmp_path / "elsewhere"
    save(folder / "b.png")
    save(elsewhere / "deep" / "c.png")
    content = save(tmp_path / "content.dat", format="PNG")
    os.symlink(elsewhere, folder / "a")
    os.symlink(content, folder / "c.png")
    os.symlink(folder, tmp_path / "alias")
    assert names_of(as_image_source(folder), folder) == ["a/deep/c.png", "b.png", "c.png"]
    assert names_of(as_image_source(tmp_path / "alias"), tmp_path / "alias") == ["a/deep/c.png", "b.png", "c.png"]


def test_every_folder_is_read_once_so_that_loops_end(tmp_path):
    save(tmp_path / "b" / "a.png")
    save(tmp_path / "c" / "a.png")
    os.symlink(tmp_path, tmp_path / "b" / "up")
    os.symlink(tmp_path / "b", tmp_path / "a")  # sorts in front of the folder's own name
    os.symlink(tmp_path / "c", tmp_path / "b" / "across")
    os.symlink(tmp_path / "b", tmp_path / "c" / "back")
    with pytest.warns(UserWarning, match="Left out: linked subfolders that are read already: 4"):
        assert names_of(as_image_source(tmp_path), tmp_path) == ["b/a.png", "c/a.png"]


def test_one_warning_counts_all_that_is_left_out(tmp_path, monkeypatch):
    save(tmp_path / "a.png")
    for name in (".a.png", "a.heic", "b.HEIC", "c.svg", "locked/a.png"):
        save(tmp_path / name, format="PNG")
    os.symlink(tmp_path / "gone.png", tmp_path / "b.png")
    os.symlink(tmp_path / "gone", tmp_path / "gone-too")
    os.symlink("c.png", tmp_path / "c.png")
    os.mkfifo(tmp_path / "d.png")
    scan = os.scandir

    def refuse(path):
        if str(path).endswith("locked"):
            raise PermissionError(path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.warns(UserWarning, match="Left out") as caught:
        assert names_of(as_image_source(tmp_path), tmp_path) == ["a.png"]
    assert [str(warning.message) for warning in caught] == [
        f"X: of the folder {tmp_path}, 1 images are read. Left out: .heic files, which are not read: 2; "
        ".svg files, which are not read: 1; broken links: 3; hidden images: 1; images that are no regular files: 1; "
        "subfolders that cannot be read: 1"
    ]


@pytest.fixture
def nested(tmp_path, monkeypatch):
    """Makes folders inside each other, with an image in the last, and removes them, at which pytest would fail."""
    made = []

    def make(name, depth):
        monkeypatch.chdir(tmp_path)
        for _ in range(depth):
            os.mkdir(name)
            made.append(name)
            os.chdir(name)
        Image.fromarray(GREY_SHADES).save("a.png")
        os.chdir(tmp_path)

    yield make
    os.chdir(tmp_path)
    for name in made:
        os.chdir(name)
    os.unlink("a.png")
    for name in reversed(made):
        os.chdir("..")
        os.rmdir(name)


def test_folders_may_be_nested_deeper_than_python_recurses(tmp_path, nested):
    nested("d", 1200)
    source = as_image_source(tmp_path)
    assert len(source.paths[0].parts) > 1200
    np.testing.assert_allclose(source.read(EVERYTHING)[0, 0], scaled(GREY_SHADES), atol=1e-7)
    assert len(source.fingerprint()) == 64


def test_folders_beyond_the_longest_path_are_counted(tmp_path, nested):
    nested("d" * 250, 20)
    save(tmp_path / "a.png")
    with pytest.warns(UserWarning, match="Left out: subfolders that cannot be read: 1"):
        assert names_of(as_image_source(tmp_path), tmp_path) == ["a.png"]


@pytest.mark.parametrize("name", [b"\xff\xfe.png", b"line\nbreak.png", b"a|1|2.png", "é".encode(), b" .png"])
def test_names_may_hold_anything(tmp_path, name):
    path = os.path.join(os.fsencode(tmp_path), name)
    with open(path, "wb") as file:
        Image.fromarray(GREY_SHADES).save(file, "PNG")
    source = as_image_source([os.fsdecode(path)])
    assert os.fsencode(source.paths[0]) == path
    np.testing.assert_allclose(source.read(EVERYTHING)[0, 0], scaled(GREY_SHADES), atol=1e-7)
    assert len(source.fingerprint()) == 64
    if name.endswith(b".png"):
        assert as_image_source(tmp_path).fingerprint() == source.fingerprint()
    os.truncate(path, 10)
    with pytest.raises(ValueError, match="cannot read the image file"):
        source.read(EVERYTHING)


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
    names = [str(save(tmp_path / name)) for name in ("b.png", "a.png", ".hidden.png")]
    assert [str(path) for path in as_image_source(container(names)).paths] == names


# Shape


def test_channels_are_those_of_the_files(tmp_path):
    grey, color = save(tmp_path / "a.png"), save(tmp_path / "b.png", COLORS)
    larger = save(tmp_path / "c.png", np.dstack([np.full((8, 12), value, dtype=np.uint8) for value in (200, 100, 0)]))
    assert as_image_source([grey]).shape == (1, 4, 6)
    assert as_image_source([grey, color]).shape == (3, 4, 6)
    # Two numbers are the size, and nothing else.
    assert as_image_source([grey], image_shape=(2, 3)).shape == (1, 2, 3)
    source = as_image_source([grey, color, larger], image_shape=(4, 6))
    assert source.shape == (3, 4, 6)
    out = source.read(EVERYTHING)
    np.testing.assert_allclose(out[0], scaled([GREY_SHADES] * 3), atol=1e-7)
    np.testing.assert_allclose(out[1], scaled(np.moveaxis(COLORS, -1, 0)), atol=1e-7)
    np.testing.assert_allclose(out[2, :, 0, 0], scaled([200, 100, 0]), atol=1e-7)
    # Three numbers state the channels.
    for image_shape, channels in [((1, 4, 6), 1), ((8, 6, 1), 1), ((8, 6, 3), 3)]:
        source = as_image_source([grey, color], image_shape=image_shape)
        assert source.shape == (channels, image_shape[image_shape[0] == 1], 6)
    # Later files get the channels of the fit.
    for like in (ImageFormat((1, 2, 3), (0.0, 255.0)), ImageFormat((3, 2, 3), (0.0, 255.0))):
        for path in (grey, color):
            assert as_image_source([path], image_shape=(2, 3), like=like).format == like


def test_file_shape_is_asked_only_where_no_image_shape_is_given(tmp_path):
    path = save(tmp_path / "a.png", COLORS)
    assert as_image_source([path], file_shape=lambda: (1, 8, 9)).shape == (1, 8, 9)
    asked = []
    assert as_image_source([path], image_shape=(2, 3), file_shape=lambda: asked.append(1)).shape == (3, 2, 3)
    assert asked == []
    like = ImageFormat((1, 2, 3), (0.0, 255.0))
    assert as_image_source([path], like=like, image_shape=(5, 5), file_shape=lambda: (3, 7, 7)).shape == (1, 2, 3)


@pytest.mark.parametrize("image_shape", [(2, 4, 6), (4, 6, 4)])
def test_files_have_one_or_three_channels(tmp_path, image_shape):
    channels = image_shape[0] if image_shape[0] < 4 else 4
    with pytest.raises(ValueError, match=f"with 1 or 3 channels, for image files; got {channels} channels"):
        as_image_source([save(tmp_path / "a.png")], image_shape=image_shape, channel_axis=1 if channels == 2 else -1)


# Values

DEEP = {
    "uint16": (GREY_SHADES.astype(np.uint16) * 17, (0, 4095)),
    "int32": (GREY_SHADES.astype(np.int32) * 10_000 - 5, (-5, 3_000_000)),
    "float32": (GREY_SHADES.astype(np.float32) / 100, (-1, 3)),
}


@pytest.mark.parametrize("dtype", DEEP)
@pytest.mark.parametrize("suffix", ["tif", "png"])
def test_deep_files_give_the_bits_of_the_same_array(tmp_path, dtype, suffix):
    pixels, value_range = DEEP[dtype]
    if suffix == "png" and dtype != "uint16":  # PNG has no others
        return
    paths = [save(tmp_path / f"a.{suffix}", pixels), save(tmp_path / f"b.{suffix}", pixels[::-1])]
    source = as_image_source(paths, value_range=value_range)
    array = as_image_source(np.stack([pixels, pixels[::-1]]), value_range=value_range)
    assert source.format == array.format
    np.testing.assert_array_equal(source.read(EVERYTHING), array.read(EVERYTHING))
    in_memory = source.in_memory()
    assert in_memory.array.dtype == dtype
    np.testing.assert_array_equal(in_memory.read(EVERYTHING), array.read(EVERYTHING))
    size = in_memory.array.nbytes
    assert source.in_memory(size - 1) is source
    assert isinstance(source.in_memory(size), ArrayImages)


@pytest.mark.parametrize("value_range", [None, (0, 255), (-255, 255), (0, 256)])
def test_files_of_8_bits_give_the_bits_of_the_same_array(tmp_path, value_range):
    paths = [save(tmp_path / "a.png", COLORS), save(tmp_path / "b.bmp", COLORS[::-1])]
    source = as_image_source(paths, value_range=value_range)
    array = as_image_source(np.stack([COLORS, COLORS[::-1]]), value_range=value_range, channel_axis=-1)
    assert source.format == array.format
    np.testing.assert_array_equal(source.read(EVERYTHING), array.read(EVERYTHING))
    np.testing.assert_array_equal(source.in_memory().read(EVERYTHING), array.read(EVERYTHING))


def test_several_depths_share_the_type_that_holds_them(tmp_path):
    paths = [save(tmp_path / f"{dtype}.tif", pixels) for dtype, (pixels, _) in DEEP.items()]
    source = as_image_source(paths, value_range=(-5, 3_000_000))
    assert source.in_memory().array.dtype == np.float64
    expected = scaled([pixels for pixels, _ in DEEP.values()], -5, 3_000_000)
    np.testing.assert_allclose(source.read(EVERYTHING)[:, 0], expected, atol=1e-6)


def test_deep_files_need_a_value_range(tmp_path):
    shallow, deep = save(tmp_path / "a.png"), save(tmp_path / "b.tif", DEEP["uint16"][0])
    for options in ({}, {"image_shape": (2, 2)}, {"like": ImageFormat((1, 4, 6), (0.0, 255.0))}):
        with pytest.raises(
            ValueError, match=r"value_range must be stated .* such as \(0, 4095\) for 12 bits or"
        ) as told:
            as_image_source([deep], **options)
        assert str(told.value).endswith(f"(0, 65535) for 16: {deep} (uint16) has values from 0 to 3910")
    for value_range in (None, (0, 4095)):
        with pytest.raises(ValueError, match=f"X must not mix images of 8 bits, such as {shallow}, .* {deep}"):
            as_image_source(tmp_path, value_range=value_range)
    with pytest.raises(
        ValueError, match=r"cannot read the image file .*b\.tif: value_range is \(0, 3000\), but it has"
    ):
        as_image_source([deep], value_range=(0, 3000)).read(EVERYTHING)
    with pytest.raises(ValueError, match=r"value_range is \(0, 4095\), but images such as .*a\.png have 8 bits"):
        as_image_source([shallow], value_range=(0, 4095))
    with pytest.raises(ValueError, match=r"cannot read the image file .*a\.png: value_range is \(0, 1\), but it has"):
        as_image_source([shallow], value_range=(0, 1)).read(EVERYTHING)


def test_16_bits_a_channel_are_told_of_before_they_are_read(tmp_path):
    from test_decoding import cut_files

    paths, _ = cut_files(tmp_path)
    for path in paths:
        with pytest.raises(ValueError, match=f"cannot read {path}: .* Pillow reads the upper 8"):
            as_image_source([path], value_range=(0, 4095))
        as_image_source([path], value_range=(0, 65535))


def test_files_must_be_of_the_kind_of_the_fit(tmp_path):
    path = save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"value_range must be stated for this X .* \(float\), with black at 0"):
        as_image_source([path], like=ImageFormat((1, 4, 6), (0.0, 1.0), kind="float"))
    with pytest.raises(ValueError, match="X must be a table, as what the estimator was fitted on; got images"):
        as_image_source([path], like=ImageFormat((1, 4, 6), (0.0, 255.0), is_table=True))


# Pages


def test_one_warning_counts_pages(tmp_path):
    pages = [Image.fromarray(np.full((4, 6), value, dtype=np.uint8)) for value in (50, 100, 150)]
    pages[0].save(tmp_path / "b.tif", save_all=True, append_images=pages[1:])
    pages[1].save(tmp_path / "c.gif", save_all=True, append_images=pages[2:])
    save(tmp_path / "a.png")
    with pytest.warns(UserWarning, match="first page") as caught:
        source = as_image_source(tmp_path)
    assert [str(warning.message) for warning in caught] == [
        "X: only the first page or frame is read of 2 files with 5 pages or frames in all, such as "
        f"{tmp_path / 'b.tif'} with 3"
    ]
    np.testing.assert_allclose(source.read(EVERYTHING)[1:, 0, 0, 0], scaled([50, 100]), atol=1e-7)


# Reading


def test_rows_are_read_in_the_order_asked_for_whatever_threads_do(tmp_path, monkeypatch):
    paths = [save(tmp_path / f"{value:03}.png", np.full((2, 2), value, dtype=np.uint8)) for value in range(40)]
    threads, waits, read = set(), count(), files.read_image

    def slowly(*arguments):
        threads.add(threading.get_ident())
        threading.Event().wait(0.002 * (next(waits) % 3))
        return read(*arguments)

    monkeypatch.setattr(files, "read_image", slowly)
    source = as_image_source(paths)
    for rows in (EVERYTHING, slice(30, 3, -2), np.array([3, 3, 39, 0]), slice(0, 0)):
        expected = scaled(np.arange(40)[rows])[:, None, None, None] * np.ones((1, 1, 2, 2))
        np.testing.assert_allclose(source.read(rows), expected, atol=1e-7)
    assert len(threads) > 1
    assert threading.get_ident() not in threads


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


def test_every_header_is_read_once(tmp_path, monkeypatch):
    paths = [save(tmp_path / f"{index}.png") for index in range(5)]
    opened, open_image = [], Image.open
    monkeypatch.setattr(Image, "open", lambda file, **more: opened.append(file.name) or open_image(file, **more))
    as_image_source(tmp_path)
    assert sorted(map(str, opened)) == [str(path) for path in paths]


def test_progress_of_headers_is_logged_where_it_takes_long(tmp_path, monkeypatch, caplog):
    for index in range(10):
        save(tmp_path / f"{index}.png")
    monkeypatch.setattr(files, "_FILES_AT_ONCE", 2)
    clock = iter([0.0, 1.0, 2.5, 3.0, 7.4, 7.6])  # the start, then the end of each two files
    monkeypatch.setattr(files.time, "monotonic", lambda: next(clock))
    with caplog.at_level(logging.INFO, "skdiec.images.files"):
        as_image_source(tmp_path)
    assert caplog.messages == ["read the headers of 4 of 10 files", "read the headers of 10 of 10 files"]


def test_filters_of_warnings_stay_as_they_are_while_files_are_read(tmp_path, monkeypatch):
    """They belong to the process: another thread's changes would get mixed up with ours."""
    source_of, read = save(tmp_path / "a.png"), files.read_image
    before, seen = list(warnings.filters), []
    monkeypatch.setattr(files, "read_image", lambda *more: seen.append(list(warnings.filters)) or read(*more))
    as_image_source([source_of]).read(EVERYTHING)
    assert seen == [before]


# Fingerprints


def test_fingerprint_of_files_changes_with_path_order_shape_size_and_time(tmp_path):
    one, two = save(tmp_path / "a.png"), save(tmp_path / "b.png")
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


def test_wrong_paths_are_told_of(tmp_path, tmp_path_factory):
    empty, odd = tmp_path_factory.mktemp("empty"), tmp_path_factory.mktemp("odd")
    (odd / "a.heic").write_text("")
    path = save(tmp_path / "a.png")
    other = save(tmp_path / "b.png", GREY_SHADES.T.copy())
    for X, message in [
        (path, f"X must be a folder or a list of image files; {path} is one file: pass [path] if it is an image"),
        (tmp_path / "none", f"X must be a folder of images: there is no folder {tmp_path / 'none'}"),
        ("a" * 5000, "X must be a folder of images: there is no folder aaa"),
        ("a\0b", "X must be a folder of images: there is no folder a"),
        (empty, f"X must be a folder with images, but {empty} has no file with a suffix such as .jpg, .png or .tif"),
        (odd, "or .tif (left out: .heic files, which are not read: 1)"),
        ([path, tmp_path / "c.png"], f"X must name image files: there is no file {tmp_path / 'c.png'}"),
        ([path, tmp_path], f"X must name image files: {tmp_path} is no regular file"),
        ([path, "a" * 5000], "X must name image files: there is no file aaa"),
        ([path, "a\0b"], "X must name image files: there is no file a"),
        (
            tmp_path,
            f"image_shape must be stated for images of several sizes (height, width): {path} has (4, 6), "
            f"{other} has (6, 4)",
        ),
    ]:
        with pytest.raises(ValueError, match=re.escape(message)):
            as_image_source(X)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no pipes")
def test_pipes_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(ValueError, match=f"X must name image files: {tmp_path / 'a.png'} is no regular file"):
        as_image_source([tmp_path / "a.png"])
    with pytest.raises(ValueError, match=r"left out: images that are no regular files: 1"):
        as_image_source(tmp_path)


def test_unreadable_files_are_named(tmp_path):
    text, header, nothing = tmp_path / "a.png", tmp_path / "b.ppm", tmp_path / "c.jpg"
    text.write_text("no image")
    header.write_bytes(b"P6 1x 2 255\n")  # Pillow's error is a ValueError of int(), without the name
    nothing.write_bytes(b"")
    sound = save(tmp_path / "0.png")
    for path in (text, header, nothing):
        with pytest.raises(ValueError, match=re.escape(f"cannot read the image file {path}: ")):
            as_image_source([sound, path], image_shape=(2, 2))


def test_the_first_file_that_cannot_be_read_is_named(tmp_path):
    paths = [save(tmp_path / f"{index}.png") for index in range(20)]
    source = FileImages(paths, ImageFormat((1, 4, 6), (0.0, 255.0)))
    for index in (17, 5, 11):
        paths[index].unlink()
    for read in (lambda: source.read(EVERYTHING), source.in_memory, source.fingerprint):
        with pytest.raises(ValueError, match=r"cannot read the image file .*/5\.png: .*No such file"):
            read()


def test_folders_of_the_system_and_those_that_hold_this_one_are_not_followed(tmp_path):
    inner = tmp_path / "inner"
    inner.mkdir()
    Image.new("L", (4, 4)).save(inner / "a.png")
    Image.new("L", (4, 4)).save(tmp_path / "outer.png")
    (inner / "up").symlink_to(tmp_path)
    (inner / "root").symlink_to("/")
    if Path("/proc/self").exists():
        (inner / "process").symlink_to("/proc/self")
    with pytest.warns(UserWarning, match=r"linked folders that hold this one, or are the system's: [23]"):
        assert as_image_source(inner).paths == [inner / "a.png"]


def test_an_empty_name_is_no_folder():
    with pytest.raises(ValueError, match="X must be a folder of images; got an empty name"):
        as_image_source("")
