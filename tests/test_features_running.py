"""How the passes of an extraction run: their sizes, their number at once, reading ahead, precision."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from skdiec.features import batch_sizes, suited_batch_size
from skdiec.features.batch_sizes import n_passes
from skdiec.features.running import computing_in, read_ahead
from skdiec.images import as_image_source

SOURCE = as_image_source(np.random.default_rng(0).integers(0, 256, (5, 8, 8), dtype=np.uint8))


@pytest.fixture
def backbone(make_backbone):
    return make_backbone(sample_size=8, block_out_channels=(8, 8))


def test_a_gpu_computes_in_full_precision_unless_told_otherwise():
    device, before = torch.device("cuda"), torch.backends.cudnn.allow_tf32
    with computing_in("fp32", device):
        assert not torch.backends.cudnn.allow_tf32
        assert torch.backends.cudnn.deterministic
    assert torch.backends.cudnn.allow_tf32 == before


@pytest.mark.parametrize(
    ("free", "needed", "size"),
    [
        (2**30, 2**20, 512),  # half of the memory
        (2**30, 2**20 + 2**13, 480),  # whole groups of 32
        (2**40, 2**20, 1024),
        (2**20, 2**20, 1),
        (2**26, 2**20, 32),
        (2**26 - 2, 2**20, 16),
        (2**30, 0, 1024),
    ],
)
def test_a_gpu_gets_batches_that_half_of_its_free_memory_suffices_for(monkeypatch, free, needed, size):
    monkeypatch.setattr(batch_sizes, "_gpu_bytes", lambda backbone: (free, needed))
    assert suited_batch_size(SimpleNamespace(device=torch.device("cuda"))) == size


def test_a_cpu_gets_batches_of_64(backbone):
    assert suited_batch_size(backbone) == 64


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_memory_that_a_pass_takes_on_a_gpu(backbone):
    free, needed = batch_sizes._gpu_bytes(backbone.to("cuda"))
    assert 0 < free <= torch.cuda.get_device_properties(0).total_memory
    assert 8 * 8 * 4 < needed < 2**20


def test_batches_are_read_ahead_one_at_a_time():
    class Watched:
        def __init__(self):
            self.asked = []

        def read(self, rows):
            self.asked.append(list(rows))
            if 9 in rows:
                raise OSError("no such image")
            return SOURCE.read(rows)

    source = Watched()
    batches = read_ahead(source, [np.array(rows) for rows in ([4, 1], [2], [0, 3])], torch.device("cpu"))
    for count, rows in enumerate(([4, 1], [2], [0, 3]), start=1):
        batch = next(batches)
        np.testing.assert_array_equal(batch.rows, rows)
        np.testing.assert_array_equal(batch.images, SOURCE.read(np.array(rows)))
        assert len(source.asked) <= count + 1
    assert list(batches) == []
    assert source.asked == [[4, 1], [2], [0, 3]]
    assert list(read_ahead(source, [], torch.device("cpu"))) == []
    with pytest.raises(OSError, match="no such image"):
        list(read_ahead(source, [np.array([1]), np.array([9])], torch.device("cpu")))


@pytest.mark.parametrize(
    ("threads_of_torch", "shape", "size", "expected"),
    [
        (1, (1, 8, 8), 64, 1),
        (3, (1, 8, 8), 64, 3),
        (16, (1, 8, 8), 64, 8),
        (16, (3, 64, 64), 64, 4),  # 2**20 pixels, whatever their channels
        (16, (3, 64, 64), 32, 8),
        (16, (3, 256, 256), 64, 1),
    ],
)
def test_passes_side_by_side(threads_of_torch, shape, size, expected, monkeypatch):
    monkeypatch.setattr(batch_sizes, "torch_threads", lambda: threads_of_torch)
    backbone = SimpleNamespace(device=torch.device("cpu"), input_shape=shape)
    assert n_passes(backbone, size) == expected
    backbone.device = torch.device("cuda")
    assert n_passes(backbone, size) == 1
