"""Many files of which some are broken."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

from skdiec.images import ImageFormat, as_image_source
from skdiec.images.decoding import ImageKind
from skdiec.images.headers import decode_files, of_other_depth, read_headers, suggested_size

UINT8, UINT16, FLOAT = (np.dtype(name) for name in ("uint8", "uint16", "float32"))


def kinds(*sizes, dtype=UINT8):
    return [ImageKind(3, size, dtype) for size in sizes]


@pytest.fixture
def folder(tmp_path):
    """Three images, the second of which has no pixels and the last of which ends too early."""
    rng = np.random.default_rng(0)
    for name in ("a.png", "c.png", "d.png"):
        Image.fromarray(rng.integers(0, 256, (9, 7, 3), dtype=np.uint8)).save(tmp_path / name)
    (tmp_path / "b.png").write_bytes(b"")
    whole = (tmp_path / "d.png").read_bytes()
    (tmp_path / "d.png").write_bytes(whole[:200])
    return tmp_path


def test_headers_tell_which_files_can_be_read(folder):
    told = []
    found, problems = read_headers(sorted(folder.iterdir()), lambda *numbers: told.append(numbers))
    assert {row: (kind.size, kind.channels) for row, kind in found.items()} == dict.fromkeys((0, 2, 3), ((9, 7), 3))
    assert problems == {1: "its content is no image of a known format"}
    assert told == [(4, 4)]


def test_decoded_pixels_are_those_of_the_source_and_problems_do_not_stop_them(folder):
    paths = [folder / name for name in ("a.png", "d.png", "c.png")]
    out = np.full((3, 3, 9, 7), 7, dtype=np.uint8)
    problems = decode_files(paths, ImageFormat((3, 9, 7), (0.0, 255.0)), out)
    assert list(problems) == [1]
    assert "truncated" in problems[1]
    assert str(folder) not in problems[1]
    assert_array_equal(out[1], np.full((3, 9, 7), 7))
    expected = as_image_source([paths[0], paths[2]]).read(slice(None))
    np.testing.assert_allclose(out[[0, 2]] / 127.5 - 1, expected, atol=1e-6)


def test_progress_is_told_of_in_parts(tmp_path):
    paths = [tmp_path / f"{number}.png" for number in range(130)]
    told = []
    assert len(read_headers(paths, lambda *numbers: told.append(numbers))[1]) == 130
    assert told == [(64, 130), (128, 130), (130, 130)]


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([(28, 28)] * 3, (28, 28)),
        ([(32, 17)] * 3, (32, 17)),  # as they are
        ([(33, 17)] * 3, (32, 16)),
        ([(4, 4)], (4, 4)),
        ([(480, 640)] * 3, (24, 32)),
        ([(640, 480)] * 3 + [(480, 640)], (32, 24)),
        ([(640, 480)] * 2 + [(480, 640)] * 2, (32, 32)),
        ([(480, 500)] * 3, (32, 32)),
        ([(17, 17), (19, 20), (30, 32)], (20, 20)),
        ([(17, 60), (19, 20), (22, 22)], (20, 20)),
        ([(20, 400)] * 4, (8, 32)),
        ([(1, 1), (2, 2)], (4, 4)),
        ([(1000, 1)] * 2, (32, 8)),
    ],
)
def test_suggested_size(sizes, expected):
    assert suggested_size(kinds(*sizes)) == expected


def test_images_of_another_depth_than_most_are_told_of():
    mixed = dict(enumerate(kinds((8, 8), (8, 8)) + kinds((8, 8), dtype=UINT16)))
    deep = "it has more than 8 bits (uint16), and the others have 8: convert it"
    assert of_other_depth(mixed) == {2: deep}
    mixed |= {5: kinds((8, 8), dtype=FLOAT)[0], 6: kinds((8, 8), dtype=UINT16)[0]}
    flat = "it has 8 bits, and the others have more: convert it"
    assert of_other_depth(mixed) == {0: flat, 1: flat}
    assert of_other_depth({}) == {}
    assert len(of_other_depth(dict(enumerate(kinds((8, 8)) + kinds((8, 8), dtype=FLOAT))))) == 1  # 8 bits win a tie
