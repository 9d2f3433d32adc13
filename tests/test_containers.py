import collections
import copy
import datetime
import pickle
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy import sparse
from sklearn.model_selection import GridSearchCV

from skdiec import DiffusionEmbeddedClustering
from skdiec.images import as_image_source, is_paths
from skdiec.images.containers import ItemArray, LazyArray, Pictures, StoredArray, unpack

EVERYTHING = slice(None)
A = np.random.default_rng(0).integers(0, 256, (6, 4, 5), dtype=np.uint8)
UNIT = A / 255
PICTURES = [Image.fromarray(image) for image in A]


class Dataset(torch.utils.data.Dataset):
    """A map-style dataset that counts how often each item is read."""

    def __init__(self, items):
        self.items = list(items)
        self.read = collections.Counter()

    def __len__(self):
        return len(self.items)

    def __getitem__(self, row):
        self.read[row] += 1
        return self.items[row]


class Stream(torch.utils.data.IterableDataset):
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __iter__(self):
        return iter(self.items)


class Stored:
    """An array that only slices read, which must increase, as in a data set of HDF5."""

    def __init__(self, array):
        self._array = array
        self.shape, self.dtype = array.shape, array.dtype
        self.rows_read = 0

    def __len__(self):
        return len(self._array)

    def __getitem__(self, rows):
        if not isinstance(rows, slice) or rows.step not in (None, 1):
            raise TypeError("only slices")
        self.rows_read += len(range(*rows.indices(len(self))))
        return self._array[rows]


class Table(Dataset):
    """A data set of Hugging Face, as far as is looked at: rows are mappings of columns."""

    def __init__(self, **columns):
        super().__init__([dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)])
        self.column_names = list(columns)
        kinds = {name: "Image" if isinstance(values[0], Image.Image) else "Value" for name, values in columns.items()}
        self.features = {name: type(kind, (), {})() for name, kind in kinds.items()}
        self.shape = (len(self.items), len(columns))

    def select_columns(self, names):
        return Table(**{name: [item[name] for item in self.items] for name in names})


class Column:
    """A column of polars or arrow: it can be listed, and is no list."""

    def __init__(self, values):
        self._values = list(values)

    def to_list(self):
        return list(self._values)


@pytest.fixture
def paths(tmp_path):
    names = [tmp_path / f"{5 - row}.png" for row in range(6)]
    for name, picture in zip(names, PICTURES, strict=True):
        picture.save(name)
    return names


def objects(items):
    array = np.empty(len(items), dtype=object)
    for row, item in enumerate(items):
        array[row] = item
    return array


SEQUENCES = {
    "list": list,
    "tuple": tuple,
    "generator": lambda items: (item for item in items),
    "map": lambda items: map(copy.copy, items),
    "iterator": iter,
    "values": lambda items: dict(enumerate(items)).values(),
    "deque": collections.deque,
    "objects": objects,
    "series": lambda items: pd.Series(list(items), index=range(7, 13), dtype=object),
    "column": Column,
    "dataset": Dataset,
    "subset": lambda items: torch.utils.data.Subset(Dataset(items), range(6)),
    "stream": Stream,
    "with labels": lambda items: Dataset([(item, label) for label, item in enumerate(items)]),
    "labels first": lambda items: [(torch.tensor(label), item) for label, item in enumerate(items)],
    "named": lambda items: Dataset([{"image": item, "label": 1, "one-hot": np.eye(3)[1]} for item in items]),
    "hugging face": lambda items: Table(image=items),
}
ITEMS = {
    "arrays": list(A),
    "lists": A.tolist(),
    "tensors": [torch.from_numpy(image) for image in A],
    "tensors with gradients": [torch.tensor(image, requires_grad=True) for image in UNIT],
    "PIL images": PICTURES,
    "paths": "paths",
}


@pytest.mark.parametrize("items", ITEMS)
@pytest.mark.parametrize("container", SEQUENCES)
def test_images_in_any_container_read_as_their_array(container, items, paths):
    value_range = {"lists": (0, 255), "tensors with gradients": (0, 1)}.get(items)
    X = SEQUENCES[container](paths if items == "paths" else ITEMS[items])
    if items == "lists" and container in ("labels first", "with labels"):
        X = Dataset(ITEMS[items])  # a tuple of numbers and lists is no record: nothing tells its image
    source = as_image_source(X, value_range=value_range)
    np.testing.assert_allclose(source.read(EVERYTHING)[:, 0], UNIT * 2 - 1, atol=1e-6)
    np.testing.assert_array_equal(source.read(np.array([4, 0, 4])), source.read(EVERYTHING)[[4, 0, 4]])
    assert source.read(slice(0, 0)).shape == (0, 1, 4, 5)
    if items == "paths":
        assert source.paths == paths
    elif value_range is None:
        assert source.fingerprint() == as_image_source(A).fingerprint()
        assert source.in_memory().fingerprint() == as_image_source(A).fingerprint()


def test_what_is_unpacked_stays_when_unpacked_again(paths):
    for X in (iter(A), iter(PICTURES), iter(paths), Dataset(A), Stored(A), Table(image=PICTURES), str(paths[0].parent)):
        once = unpack(X)
        twice = unpack(once)
        np.testing.assert_array_equal(as_image_source(twice).read(EVERYTHING)[:, 0].shape, A.shape)


# Containers that are read lazily


def test_datasets_are_read_when_needed():
    for items, source_type in ((A, ItemArray), (PICTURES, Pictures)):
        dataset = Dataset([(item, 1) for item in items])
        assert isinstance(unpack(dataset), source_type)
        assert set(dataset.read) == {0}
        source = as_image_source(dataset)
        assert set(dataset.read) == ({0} if items is A else set(range(6)))  # of PIL images, all modes and sizes count
        before = dataset.read.copy()
        np.testing.assert_allclose(source.read(slice(2, 4))[:, 0], UNIT[2:4] * 2 - 1, atol=1e-6)
        assert dataset.read - before == {2: 1, 3: 1}
        in_memory = source.in_memory()
        before = dataset.read.copy()
        np.testing.assert_array_equal(in_memory.read(EVERYTHING), source.read(EVERYTHING))
        assert dataset.read - before == dict.fromkeys(range(6), 1)  # by `source`, not by what is in memory
        assert source.in_memory(max_bytes=A.nbytes - 1) is source
        assert in_memory.in_memory() is in_memory


def test_stored_arrays_are_read_by_slices_of_what_is_asked_for():
    stored = Stored(A)
    lazy = unpack(stored)
    assert isinstance(lazy, StoredArray)
    assert (lazy.shape, lazy.dtype, lazy.ndim, lazy.nbytes, len(lazy)) == (A.shape, A.dtype, 3, A.nbytes, 6)
    stored.rows_read = 0
    for rows in (np.array([5, 1, 2, 5]), slice(1, 3), slice(None, None, -2), np.array([], dtype=int), slice(4, 99)):
        np.testing.assert_array_equal(lazy[rows], A[rows])
    assert stored.rows_read == 3 + 2 + 3 + 2
    for X, options in (
        (A, {}),
        (A.reshape(6, 20), {"image_shape": (4, 5)}),
        (np.stack([A] * 3, 1), {"channel_axis": 1}),
    ):
        source = as_image_source(Stored(X), **options)
        np.testing.assert_array_equal(source.read(np.array([3, 0])), as_image_source(X, **options).read([3, 0]))
        assert source.fingerprint() == as_image_source(X, **options).fingerprint()


def test_values_of_lazy_images_are_checked():
    for make in (Stored, Dataset):
        spoiled = UNIT.copy()
        spoiled[5, 3, 4] = np.nan
        with pytest.raises(ValueError, match="X must not contain NaN"):
            as_image_source(make(spoiled), value_range=(0, 1))
        with pytest.raises(ValueError, match=r"value_range is \(0, 0\.5\), but X \(dtype float64\) has values"):
            as_image_source(make(UNIT), value_range=(0, 0.5))
        with pytest.raises(
            ValueError, match=r"value_range is \(0, 1\), but X \(dtype uint8\) has values from 0 to 248"
        ):
            as_image_source(make(A), value_range=(0, 1))


def test_lazy_items_must_be_alike():
    source = as_image_source(Dataset([*A[:3], A[3][:2], *A[4:]]))
    with pytest.raises(ValueError, match=r"item 0 has \(4, 5\) and uint8, item 3 has \(2, 5\) and uint8"):
        source.read(EVERYTHING)
    with pytest.raises(ValueError, match=r"item 3 has .* and float64"):
        as_image_source(Dataset([*A[:3], UNIT[3]])).read(EVERYTHING)
    with pytest.raises(ValueError, match="item 1 of X is of type NoneType, but item 0 is an array"):
        as_image_source(Dataset([A[0], None])).read(EVERYTHING)
    for read in (
        lambda: as_image_source(Dataset([PICTURES[0], None])),
        lambda: unpack(Dataset([PICTURES[0], A[0]]))[1],
    ):
        with pytest.raises(ValueError, match=r"item 1 of X is of type (NoneType|ndarray), but item 0 is a PIL image"):
            read()


def test_lazy_array_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        LazyArray((1, 2, 2), np.uint8)


# Records


def test_labels_are_never_taken_for_images(paths):
    for record in (
        lambda row: (A[row], np.eye(3)[1]),
        lambda row: (np.eye(3)[1], A[row]),
        lambda row: (row, A[row], "cat", {"box": [1, 2]}),
        lambda row: {"name": "cat", "image": PICTURES[row]},
        lambda row: {"image": A[row].tolist(), "label": [0, 1]},
        lambda row: (str(paths[row]), row),
    ):
        options = {"value_range": (0, 255)}
        source = as_image_source([record(row) for row in range(6)], **options)
        np.testing.assert_allclose(source.read(EVERYTHING)[:, 0], UNIT * 2 - 1, atol=1e-6)
    rows = as_image_source(torch.utils.data.TensorDataset(torch.from_numpy(A).flatten(1), torch.arange(6)))
    assert rows.format.is_table
    np.testing.assert_array_equal(rows.read(EVERYTHING), as_image_source(A.reshape(6, 20)).read(EVERYTHING))


def test_column_of_images_is_found():
    table = Table(label=list(range(6)), image=PICTURES)
    np.testing.assert_array_equal(as_image_source(table).read(EVERYTHING), as_image_source(A).read(EVERYTHING))
    assert table.read == {}  # only the column of images is selected and read
    with pytest.raises(ValueError, match="X is a Table with several columns that may be the images: pass one of a, b"):
        unpack(Table(a=PICTURES, b=PICTURES))


# Refusals


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (PICTURES[0], "X is one PIL image (Image): pass [image]"),
        (None, "or of paths of image files; got NoneType"),
        (object(), "X must be an array or table of numbers, a folder, or a sequence or iterable of images (arrays,"),
        (Dataset, "got type"),
        (b"folder", "got bytes"),
        (len, "got builtin_function_or_method"),
        ({"images": A}, "X is a mapping (dict): pass the entry with the images, as X['images']"),
        ({"a.png", "b.png"}, "X is a set, which has no order that labels could follow: pass sorted(X)"),
        (torch.utils.data.DataLoader(Dataset(A)), "X is a DataLoader, which gives batches, maybe shuffled ones: pass"),
        (np.ma.masked_array(A, mask=A > 9), "X must not be a masked array"),
        ([A[0], np.ma.masked_array(A[0], mask=A[0] > 9)], "item 1 of X must not be a masked array"),
        (Stored(np.ma.masked_array(A, mask=A > 9)), "X must not have masked values"),
        (torch.empty((2, 4, 5), device="meta"), "X is a tensor on the device meta, which holds no values"),
        ([torch.empty((4, 5), device="meta")], "item 0 of X is a tensor on the device meta"),
        (torch.ones(2, 4).to_sparse(), "X must be a dense tensor; got one of layout torch.sparse_coo"),
        (torch.ones(2, 4) * 1j, "X must hold real numbers or be paths of image files; got dtype complex64"),
        ([b"a.png", b"b.png"], "item 0 of X is of type bytes"),
        ([{"label": 1}], "item 0 of X is of type dict"),
        ([datetime.date.today()], "item 0 of X is of type date"),
        (["0.png", None, "2.png"], "items of X must be of one kind: most are paths, but item 1 is of type NoneType"),
        (pd.Series(["0.png", None, "2.png"]), "most are paths, but item 1 is of type"),
        (["0.png", float("nan")], "most are paths, but item 1 is of type float (nan)"),
        ([PICTURES[0], PICTURES[1], "0.png"], "most are PIL images, but item 2 is of type str"),
        ([None, A[0], A[1]], "most are arrays of numbers, but item 0 is of type NoneType"),
        ([A[0], A[1][:2]], "images of X must have one shape: item 0 has (4, 5), item 1 has (2, 5). Images of several"),
        ([[1, 2], [3]], "images of X must have one shape: item 0 has (2,), item 1 has (1,)"),
        ([[[1, 2], [3]]], "item 0 of X is no array of numbers"),
        ([A[0], UNIT[1]], "images of X must have one type: item 0 has uint8, item 1 has float64"),
        ((A, np.arange(6)), "images of X must have one shape: item 0 has (6, 4, 5), item 1 has (6,)"),
        ([(A[0], A[1])], "item 0 of X is a tuple with 2 entries that may be its image: pass the images alone"),
        ([], "X must hold at least one image; it is empty"),
        (iter(()), "X must hold at least one image; it is empty"),
        (Stored(A[:0]), "X must hold at least one image; got shape (0, 4, 5)"),
        (pd.DataFrame({"path": ["0.png"]}), "Where they are the images, pass that column alone, X['path']"),
        (pd.DataFrame({"n": [1], "image": [A[0]]}), "column 'image' of this DataFrame has cells of type ndarray"),
        (5, "X must have 2, 3 or 4 dimensions"),
        (np.array(5), "X must have 2, 3 or 4 dimensions"),
        (
            A[0, 0],
            "X must have 2, 3 or 4 dimensions. Expected 2D array, got 1D array instead. Reshape your data: X[None]",
        ),
        (list("/data"), "Cross-validation and searches over parameters take no folder"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_holds_no_images_is_told_of(X, message):
    with pytest.raises(ValueError, match=re.escape(message)) as told:
        as_image_source(X)
    assert len(str(told.value)) < 300  # no object is printed whole


def test_open_files_are_told_of(paths):
    with paths[0].open("rb") as file:
        for X, message in (
            (file, "X is an open file (BufferedReader): pass its path in a list"),
            ([file], "item 0 of X"),
        ):
            with pytest.raises(ValueError, match=re.escape(message)):
                as_image_source(X)


def test_sparse_matrices_are_told_of():
    with pytest.raises(TypeError, match="Sparse data was passed for X, but dense data is required"):
        as_image_source(sparse.csr_array(A[0]))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_tensors_are_told_of(layout):
    nested = torch.nested.nested_tensor([torch.ones(4, 5), torch.ones(3, 5)], layout=layout)
    with pytest.raises(ValueError, match=r"X must not be a nested tensor: pass a list of its tensors"):
        as_image_source(nested)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_quantized_tensors_are_told_of():
    with pytest.raises(ValueError, match="X must not be a quantized tensor"):
        as_image_source(torch.quantize_per_tensor(torch.ones(2, 4, 5), 1.0, 0, torch.quint8))


def test_arrays_that_numpy_cannot_read_are_told_of():
    class OnDevice:
        shape, dtype = (2, 4, 5), np.dtype(np.float32)

        def __getitem__(self, rows):
            return self

        def __array__(self, dtype=None, copy=None):
            raise TypeError("Implicit conversion to a NumPy array is not allowed")

    with pytest.raises(ValueError, match="one that numpy cannot read: Implicit conversion"):
        as_image_source(OnDevice())


def test_the_users_own_errors_are_not_hidden():
    def broken():
        yield A[0]
        raise RuntimeError("disk on fire")

    with pytest.raises(RuntimeError, match="disk on fire"):
        as_image_source(broken())


def test_paths_are_told_from_other_lists(paths):
    assert is_paths(unpack(pd.Series([str(path) for path in paths])))
    assert is_paths(unpack("folder"))
    assert is_paths(unpack(Path("folder")))
    for X in (A, PICTURES, A.tolist(), Dataset(A), SimpleNamespace):
        assert not is_paths(X if X is SimpleNamespace else unpack(X))


# PIL images


def test_pictures_are_read_as_files_are(tmp_path):
    shades = np.arange(0, 240, 10, dtype=np.uint8).reshape(4, 6)
    colors = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    color = Image.fromarray(colors)
    palette = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6), "L").convert("P")
    palette.putpalette(colors.reshape(-1).tolist())
    stroke = Image.new("RGBA", (6, 4), (0, 0, 0, 0))
    stroke.putpixel((1, 2), (0, 0, 0, 255))
    on_white = np.full((4, 6, 3), 255, dtype=np.uint8)
    on_white[2, 1] = 0
    turned = Image.fromarray(shades)
    turned.getexif()[0x0112] = 6
    for picture, expected in (
        (Image.fromarray(shades), shades),
        (Image.merge("LA", [Image.fromarray(shades), Image.new("L", (6, 4), 255)]), shades),
        (Image.fromarray(shades > 100), np.where(shades > 100, 255, 0)),
        (color, colors),
        (palette, colors),
        (stroke, on_white),
        (turned, np.rot90(shades, -1)),
        (color.convert("CMYK"), colors),
    ):
        before = picture.tobytes()
        source = as_image_source([picture])
        found = source.read(EVERYTHING)[0]
        assert found.shape == (expected.shape[2] if expected.ndim == 3 else 1, *expected.shape[:2])
        found = found[0] if expected.ndim == 2 else np.moveaxis(found, 0, -1)
        np.testing.assert_allclose(found, 2 * (expected / 255) - 1, atol=1e-6)
        assert picture.tobytes() == before
        path = tmp_path / ("a.tif" if picture.mode == "CMYK" else "a.png")
        picture.save(path, exif=picture.getexif())
        file = as_image_source([path])
        if picture.mode not in ("RGBA", "LA"):
            np.testing.assert_array_equal(file.read(EVERYTHING), source.read(EVERYTHING))
            assert file.format == source.format


def test_pictures_of_several_sizes_need_a_size_and_are_scaled_to_it():
    wide = Image.fromarray(np.repeat(np.array([[0, 255, 0]], dtype=np.uint8), 4, axis=0).repeat(4, axis=1))
    small = Image.new("L", (2, 2), 255)
    with pytest.raises(ValueError, match=re.escape("(height, width): item 0 of X has (4, 12), item 1")):
        as_image_source([wide, small])
    assert as_image_source([wide, small], image_shape=(4, 4)).read(EVERYTHING).min() == 1.0


def test_deep_pictures_keep_their_values_and_need_a_range():
    deep = (np.arange(20, dtype=np.uint16) * 200).reshape(4, 5)
    with pytest.raises(ValueError, match=r"value_range must be stated .* item 0 of X \(uint16\) has values from 0"):
        as_image_source([Image.fromarray(deep)])
    source = as_image_source([Image.fromarray(deep)], value_range=(0, 4000))
    np.testing.assert_allclose(source.read(EVERYTHING)[0, 0], deep / 2000 - 1, atol=1e-6)
    assert source.format.kind == "integer"
    with pytest.raises(ValueError, match="X must not mix images of 8 bits, such as item 1 of X, and deeper ones"):
        as_image_source([Image.fromarray(deep), PICTURES[0]], value_range=(0, 4000))


def test_pictures_can_be_pickled():
    source = as_image_source(PICTURES)
    copied = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(copied.read(EVERYTHING), source.read(EVERYTHING))


def test_picture_that_cannot_be_read_is_named(paths):
    with Image.open(paths[0]) as closed:
        pass
    with pytest.raises(ValueError, match="item 1 of X"):
        as_image_source([PICTURES[0], closed]).read(EVERYTHING)


# In the estimator


def test_fit_and_predict_take_any_container(make_model, planted, tmp_path):
    X, _ = planted()
    paths = [tmp_path / f"{row:02}.png" for row in range(len(X))]
    for path, image in zip(paths, X, strict=True):
        Image.fromarray(image).save(path)
    expected = make_model(head=None, n_init=1).fit(X)
    assert not hasattr(expected, "files_")
    model = make_model(head=None, n_init=1)
    for container, names in (
        (lambda: (image for image in X), None),
        (lambda: [Image.fromarray(image) for image in X], None),
        (lambda: Dataset([(torch.from_numpy(image), 1) for image in X]), None),
        (lambda: Stored(X), None),
        (lambda: map(str, paths), paths),
        (lambda: tmp_path, paths),
        (lambda: pd.Series(paths[::-1])[::-1], paths),
        (lambda: X, None),
    ):
        np.testing.assert_array_equal(model.fit(container()).embedding_, expected.embedding_)
        assert getattr(model, "files_", None) == names
        np.testing.assert_array_equal(model.predict(container()), expected.labels_)
    assert {type(path) for path in make_model(head=None, n_init=1).fit(tmp_path).files_} == {type(tmp_path)}


@pytest.fixture
def nothing_is_trained(monkeypatch):
    def fail(*_, **__):
        raise AssertionError("training began")

    monkeypatch.setattr("skdiec._estimator.stages.pretrain", fail)
    monkeypatch.setattr("skdiec._estimator.stages.search_cells", fail)


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (PICTURES[0], r"X is one PIL image \(Image\): pass \[image\]"),
        ([PICTURES[0], None], "most are PIL images, but item 1 is of type NoneType"),
        (pd.Series(["0.png", None]), "most are paths, but item 1"),
        (np.ma.masked_array(A, mask=A > 9), "X must not be a masked array"),
        (torch.utils.data.DataLoader(Dataset(A)), r"pass X\.dataset"),
        (np.array(5), "X must have 2, 3 or 4 dimensions"),
        (A[0, 0], "Reshape your data"),
        (lambda: 1, "got function"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_fit_tells_of_what_holds_no_images_before_training(X, message, nothing_is_trained):
    with pytest.raises(ValueError, match=message):
        DiffusionEmbeddedClustering(2).fit(X)


def test_searches_over_a_folder_are_told_to_take_a_list(make_model, paths, nothing_is_trained):
    with pytest.raises(ValueError, match=r"take no folder, .*: pass a list, as sorted\(Path\(folder\)\.rglob"):
        GridSearchCV(make_model(), {"n_clusters": [2]}, cv=2).fit(str(paths[0].parent))
    search = GridSearchCV(make_model(), {"n_clusters": [2]}, cv=2)
    with pytest.raises(ValueError, match="training began"):  # with a list, there is nothing to tell of
        search.fit(paths)


def test_later_images_of_another_kind_are_told_of(make_model, planted, tmp_path):
    X, _ = planted()
    model = make_model().fit(X)
    for method in ("predict", "transform", "score"):
        for later in (X / 255, X / 1.0, X > 128, X.astype(int), X.tolist(), torch.from_numpy(X / 255)):
            with pytest.raises(ValueError, match="value_range must be stated for this X"):
                getattr(model, method)(later)
        with pytest.raises(ValueError, match=r"X has the shape of one image, \(8, 8\): pass X\[None\]"):
            getattr(model, method)(X[0])
    np.testing.assert_array_equal(model.predict(X[0][None]), model.labels_[:1])
    np.testing.assert_array_equal(model.set_params(value_range=(0, 1)).predict(X / 255), model.labels_)
    black = make_model().fit(X > 128)
    with pytest.raises(ValueError, match=r"value_range must be stated .* \(bool\), with black at 0 and white at 1"):
        black.predict((X > 128).astype(np.uint8))


# The libraries themselves, where they are installed


def test_hdf5(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["images"], file["rows"] = A, A.reshape(6, 20)
        source = as_image_source(file["images"])
        assert isinstance(source.array, StoredArray)
        np.testing.assert_array_equal(source.read(np.array([5, 0, 5])), as_image_source(A).read(np.array([5, 0, 5])))
        assert source.fingerprint() == as_image_source(A).fingerprint()
        rows = as_image_source(file["rows"], image_shape=(4, 5))
        assert rows.fingerprint() == source.fingerprint()
        with pytest.raises(ValueError, match=r"X is a mapping \(File\)"):
            as_image_source(file)


def test_zarr():
    zarr = pytest.importorskip("zarr")
    source = as_image_source(zarr.array(A, chunks=(4, 4, 5)))
    assert isinstance(source.array, StoredArray)
    assert source.fingerprint() == as_image_source(A).fingerprint()


def test_polars(paths):
    polars = pytest.importorskip("polars")
    names = [str(path) for path in paths]
    assert as_image_source(polars.Series(names)).paths == paths
    with pytest.raises(ValueError, match=r"pass that column alone, X\['path'\]"):
        as_image_source(polars.DataFrame({"path": names}))
    with pytest.raises(ValueError, match="item 1 is of type NoneType"):
        as_image_source(polars.Series([names[0], None, names[1]]))


def test_hugging_face():
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    dataset = datasets.Dataset.from_dict({"image": PICTURES, "label": list(range(6))}, features=features)
    expected = as_image_source(A).fingerprint()
    for X in (dataset, dataset["image"], dataset.with_format("numpy"), dataset.to_iterable_dataset()):
        assert as_image_source(X).fingerprint() == expected
    with pytest.raises(ValueError, match=r"X is a mapping \(DatasetDict\)"):
        as_image_source(datasets.DatasetDict(train=dataset))


class Mixed:
    """A dataset with one item of another kind of numbers."""

    def __init__(self, kind):
        self.kind = kind

    def __len__(self):
        return 12

    def __getitem__(self, row):
        image = np.full((4, 4), row, np.uint8)
        return image.astype(self.kind) if row == 9 else image


def test_items_of_another_kind_of_numbers_are_told_of():
    with pytest.raises(ValueError, match=r"item 0 has .* and uint8, item 9 has .* and bool"):
        as_image_source(Mixed(bool)).fingerprint()


class Lying:
    """An array of another library that gives other rows than its shape says."""

    shape, dtype, ndim = (24, 8, 8), np.dtype(np.uint8), 3

    def __init__(self, later):
        self.later = later

    def __len__(self):
        return 24

    def __getitem__(self, rows):
        return np.zeros((24, 8, 8), np.uint8)[rows] if rows.stop == 1 else self.later[rows]


@pytest.mark.parametrize("later", [np.zeros((24, 7, 8), np.uint8), np.zeros((24, 8, 8)), np.zeros((9, 8, 8), np.uint8)])
def test_arrays_that_give_other_rows_than_they_have_are_told_of(later):
    with pytest.raises(ValueError, match="X gives other rows than it has"):
        as_image_source(Lying(later)).read(slice(None))


@pytest.mark.parametrize("shape", [(10**6, 10**6), (10**30, 8), (2**15, 2**15)])
def test_images_far_too_large_are_told_of(shape):
    with pytest.raises(ValueError, match="image_shape must have sides of at most"):
        as_image_source(np.zeros((2, 64), np.uint8), image_shape=shape)
