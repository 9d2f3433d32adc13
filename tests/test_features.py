import dataclasses
import errno
import itertools
import re
import tempfile
import threading
from types import SimpleNamespace

import joblib
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch.utils.flop_counter import FlopCounterMode

from skdiec import storage
from skdiec.activations import Cell
from skdiec.backbones import PixelBackbone
from skdiec.features import (
    CellFeatures,
    FeatureExtractor,
    Motion,
    batch_sizes,
    map_features,
    one_cell,
    small_motions,
)
from skdiec.features import extractor as extractor_module
from skdiec.features.draws import moved
from skdiec.images import as_image_source

IMAGES = np.random.default_rng(0).integers(0, 256, (21, 8, 8), dtype=np.uint8)
SOURCE = as_image_source(IMAGES)
CELLS = [
    Cell(layer, 300, pooling)
    for layer in ("conv_in", "down_blocks.0", "mid_block", "up_blocks.1")
    for pooling in (1, 2)
]


@pytest.fixture
def backbone(make_backbone):
    return make_backbone(sample_size=8, block_out_channels=(8, 8))


@pytest.fixture
def extractor(backbone):
    return FeatureExtractor(backbone, n_draws=3, seed=7)


def draws(n_draws, seed):
    return torch.randn((n_draws, 1, 8, 8), generator=torch.Generator().manual_seed(seed))


def naive_features(backbone, rows, cell, noise):
    """One image and one draw after the other, each through the whole network."""
    abar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[cell.timestep]
    matrix = []
    for row in rows:
        x0 = torch.from_numpy(IMAGES[row] / 127.5 - 1).float()[None, None]
        total = 0
        for draw in noise:
            kept = []
            module = backbone.network.get_submodule(cell.layer)
            handle = module.register_forward_hook(lambda module, inputs, output, kept=kept: kept.append(output))
            backbone.network((abar**0.5) * x0 + (1 - abar) ** 0.5 * draw, cell.timestep)
            handle.remove()
            activation = kept[0][0] if isinstance(kept[0], tuple) else kept[0]
            channels, side = activation.shape[1], activation.shape[2] // cell.pooling
            total = total + activation.reshape(channels, cell.pooling, side, cell.pooling, side).mean((2, 4)).flatten()
        matrix.append(total / len(noise))
    return torch.stack(matrix)


def hook_count(network):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in network.modules())


# Draws


def test_draws_depend_on_the_seed_alone(extractor, rng_untouched):
    with rng_untouched():
        noise = torch.stack([draw.noise for draw in extractor.draws()])
    assert torch.equal(noise, draws(3, seed=7))
    assert not torch.equal(noise[0], dataclasses.replace(extractor, seed=8).draws()[0].noise)
    assert noise.mean().item() == pytest.approx(0, abs=0.2)
    assert noise.std().item() == pytest.approx(1, abs=0.2)


# Extraction


def test_features_are_pooled_activations_averaged_over_draws_that_all_images_share(extractor, rng_untouched):
    with rng_untouched():
        found = extractor.extract(SOURCE, CELLS)
    assert list(found) == CELLS
    for cell, matrix in found.items():
        expected = naive_features(extractor.backbone, range(21), cell, draws(3, seed=7))
        assert_allclose(matrix, expected, rtol=1e-4, atol=1e-5)
        assert matrix.dtype == np.float32
        assert matrix.shape == (21, 8 * cell.pooling**2)
        assert matrix.std(axis=0).min() > 1e-4  # images differ in every feature, or the oracle would see little


def test_one_draw_alone(extractor):
    cell = CELLS[5]
    found = [extractor.extract(SOURCE, [cell], draw=draw)[cell] for draw in range(3)]
    for matrix, noise in zip(found, draws(3, seed=7), strict=True):
        expected = naive_features(extractor.backbone, range(21), cell, noise[None])
        assert_allclose(matrix, expected, rtol=1e-4, atol=1e-5)
    assert_allclose(np.mean(found, axis=0), extractor.extract(SOURCE, [cell])[cell], atol=1e-6)


@pytest.mark.parametrize("shift", [1, 3])
def test_draws_after_the_first_see_moved_images(shift, backbone):
    extractor = FeatureExtractor(backbone, n_draws=6, shift=shift, seed=7)
    cell = CELLS[5]
    padded = np.pad(IMAGES, ((0, 0), (shift, shift), (shift, shift)), mode="edge")
    rights, downs = [0, 1, -1, 0, 0, 1], [0, 0, 0, 1, -1, 0]
    total = 0
    for draw, (right, down) in enumerate(zip(rights, downs, strict=True)):
        top, left = shift - shift * down, shift - shift * right
        moved = as_image_source(np.ascontiguousarray(padded[:, top : top + 8, left : left + 8]))
        expected = dataclasses.replace(extractor, shift=0).extract(moved, [cell], draw=draw)[cell]
        assert_allclose(extractor.extract(SOURCE, [cell], draw=draw)[cell], expected, rtol=1e-5, atol=1e-6)
        total = total + expected
    assert_allclose(extractor.extract(SOURCE, [cell])[cell], total / 6, rtol=1e-4, atol=1e-5)
    unmoved = dataclasses.replace(extractor, shift=0).extract(SOURCE, [cell])[cell]
    assert np.abs(unmoved - total / 6).max() > 1e-3


@pytest.mark.parametrize(("right", "down"), [(0, 0), (2, 0), (-1, 0), (0, 1), (3, -2)])
def test_images_are_seen_as_they_are_moved(right, down, extractor):
    cell = CELLS[5]
    padded = np.pad(IMAGES, ((0, 0), (3, 3), (3, 3)), mode="edge")
    expected_images = np.ascontiguousarray(padded[:, 3 - down : 11 - down, 3 - right : 11 - right])
    expected = dataclasses.replace(extractor, shift=0).extract(as_image_source(expected_images), [cell])[cell]
    found = dataclasses.replace(extractor, shift=2).extract(SOURCE, [cell], motion=Motion(right, down))[cell]
    assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("quarters", [1, 2, -1])
def test_images_are_seen_as_they_are_turned(quarters, extractor):
    cell = CELLS[5]
    turned = np.ascontiguousarray(np.rot90(IMAGES, quarters, axes=(1, 2)))  # counterclockwise
    expected = extractor.extract(as_image_source(turned), [cell], draw=1)[cell]
    found = extractor.extract(SOURCE, [cell], draw=1, motion=Motion(degrees=90 * quarters))[cell]
    assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    assert np.abs(expected - extractor.extract(SOURCE, [cell], draw=1)[cell]).max() > 1e-2


def test_images_that_are_turned_a_little_and_back_are_nearly_the_same():
    smooth = torch.nn.functional.avg_pool2d(torch.rand(3, 2, 24, 20, generator=torch.manual_seed(0)), 5)
    images = torch.nn.functional.interpolate(smooth, size=(48, 40), mode="bicubic")
    for degrees in (8.0, -16.0):
        there = moved(images, Motion(degrees=degrees))
        back = moved(there, Motion(degrees=-degrees))
        inner = (slice(None), slice(None), slice(12, 36), slice(10, 30))
        error = (back - images)[inner].square().mean().sqrt()
        assert error < 0.1 * (there - images)[inner].square().mean().sqrt()


@pytest.mark.parametrize(
    ("height", "width", "step"), [(16, 16, 1), (28, 28, 2), (8, 40, 1), (64, 48, 3), (256, 512, 16)]
)
def test_small_motions_go_each_way(height, width, step):
    motions = small_motions(height, width)
    assert motions[0] == Motion(0, 0, 0.0)
    assert len(set(motions)) == len(motions) == 13
    assert {(motion.right, motion.down) for motion in motions} == set(itertools.product((-step, 0, step), repeat=2))
    assert {motion.degrees for motion in motions} == {0.0, 8.0, -8.0, 16.0, -16.0}
    assert all(
        motion._replace(right=-motion.right, down=-motion.down, degrees=-motion.degrees) in motions
        for motion in motions
    )


@pytest.mark.parametrize("timestep", [0, 999])
def test_timestep_is_that_of_the_cell(timestep, extractor):
    cell = Cell("mid_block", timestep, 2)
    expected = naive_features(extractor.backbone, range(21), cell, draws(3, seed=7))
    assert_allclose(extractor.extract(SOURCE, [cell])[cell], expected, rtol=1e-4, atol=1e-5)


def test_images_are_adapted_to_the_backbone(make_backbone):
    backbone = make_backbone(in_channels=4, sample_size=4, patch_size=2, image_shape=(1, 7, 8))
    cell = Cell("mid_block", 10, 4)
    images = torch.from_numpy(SOURCE.read(slice(None)))
    folded = as_image_source(backbone.prepare(images).numpy(), value_range=(-1, 1), channel_axis=1)
    plain = make_backbone(in_channels=4, sample_size=4)
    found = FeatureExtractor(backbone, 2).extract(SOURCE, [cell])[cell]
    assert_allclose(found, FeatureExtractor(plain, 2).extract(folded, [cell])[cell], atol=1e-5)


# Batches and rows


def test_features_of_a_row_are_the_same_bits_in_any_batch(extractor):
    images = np.random.default_rng(5).integers(0, 256, (150, *SOURCE.shape), dtype=np.uint8)
    source = as_image_source(images)
    expected = extractor.extract(source, CELLS)
    for batch_size, rows in ((32, range(150)), (100, range(150)), (200, range(150)), (32, [149]), (64, range(60, 103))):
        found = dataclasses.replace(extractor, batch_size=batch_size).extract(source, CELLS, rows=np.array(rows))
        for cell in CELLS:
            np.testing.assert_array_equal(found[cell], expected[cell][list(rows)])


@pytest.fixture
def small_groups(monkeypatch):
    """Make groups of 8 rows, so that few images fill several passes."""
    for module in (batch_sizes, extractor_module, one_cell):
        monkeypatch.setattr(module, "ROW_MULTIPLE", 8)


@pytest.mark.parametrize("batch_size", [1, 5, 8, 13, 64])
@pytest.mark.usefixtures("small_groups")
def test_features_do_not_depend_on_batches_or_on_the_order_of_rows(batch_size, extractor):
    expected = extractor.extract(SOURCE, CELLS)
    extractor = dataclasses.replace(extractor, batch_size=batch_size)
    found = extractor.extract(SOURCE, CELLS)
    order = np.random.default_rng(1).permutation(21)
    permuted = extractor.extract(SOURCE, CELLS, rows=order)
    again = extractor.extract(SOURCE, CELLS)
    for cell in CELLS:
        assert_allclose(found[cell], expected[cell], rtol=0, atol=1e-6)
        assert_allclose(permuted[cell], expected[cell][order], rtol=0, atol=1e-6)
        np.testing.assert_array_equal(again[cell], found[cell])


@pytest.mark.parametrize("rows", [[20], [3, 3, 0], list(range(7)), list(range(9, 17)), list(range(12, 21))])
def test_rows_are_what_they_are_among_all(rows, extractor):
    expected = extractor.extract(SOURCE, CELLS)
    found = extractor.extract(SOURCE, CELLS, rows=np.array(rows))
    for cell in CELLS:
        assert_allclose(found[cell], expected[cell][rows], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("batch_size", "passes"), [(5, [8, 8, 8]), (8, [8, 8, 8]), (13, [16, 8]), (16, [16, 8]), (64, [24])]
)
@pytest.mark.usefixtures("small_groups")
def test_passes_have_whole_groups_of_rows_and_serve_all_cells(batch_size, passes, extractor):
    seen = []
    extractor.backbone.network.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    dataclasses.replace(extractor, batch_size=batch_size).extract(SOURCE, CELLS)
    # In any order: those of several batches run side by side.
    assert sorted(seen) == sorted(size for size in passes for _ in range(3))


def test_pass_ends_at_the_deepest_wanted_layer(extractor):
    ran = []
    for name in ("mid_block", "up_blocks.0", "up_blocks.1", "conv_out"):
        module = extractor.backbone.network.get_submodule(name)
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
    extractor.extract(SOURCE, [Cell("up_blocks.0", 5, 1), Cell("conv_in", 5, 1)])
    assert ran == ["mid_block", "up_blocks.0"] * 3


@pytest.mark.parametrize("size", [24, 16, 8, 3, 1])
@pytest.mark.usefixtures("small_groups")
def test_passes_get_smaller_where_memory_does_not_suffice(size, extractor, caplog):
    expected = extractor.extract(SOURCE, CELLS)
    seen = []

    def run_out(module, inputs):
        seen.append(len(inputs[0]))
        if len(inputs[0]) > size:
            raise torch.OutOfMemoryError("out of memory")

    handle = extractor.backbone.network.register_forward_pre_hook(run_out)
    extractor = dataclasses.replace(extractor, batch_size=24)
    found = extractor.extract(SOURCE, CELLS)
    for cell in CELLS:
        assert_allclose(found[cell], expected[cell], rtol=0, atol=1e-6)
    tried = {24: [24], 16: [24, 16], 8: [24, 16, 8], 3: [24, 16, 8, 4, 2], 1: [24, 16, 8, 4, 2, 1]}[size]
    assert list(dict.fromkeys(seen)) == ([*tried, 8] if size == 16 else tried)  # 21 rows are 16 and 5
    assert caplog.messages == [f"out of memory: going on with {n} images per forward pass" for n in tried[1:]]
    handle.remove()
    extractor.backbone.network.register_forward_pre_hook(lambda *_: run_out(None, [range(size + 1)]))
    with pytest.raises(torch.OutOfMemoryError):
        extractor.extract(SOURCE, CELLS)


def test_small_batches_of_a_trained_backbone_are_filled_up_too(extractor):
    seen, features = [], CellFeatures(extractor, SOURCE, CELLS[0])
    extractor.backbone.network.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    with torch.no_grad():
        features(torch.arange(5))
    features(torch.arange(5))
    assert set(seen) == {32}


@pytest.mark.usefixtures("small_groups")
def test_features_of_a_trained_backbone_get_by_with_less_memory_where_no_gradient_is_kept(extractor):
    wanted = CellFeatures(extractor, SOURCE, CELLS[0])
    with torch.no_grad():
        expected = wanted(torch.arange(21))

    def run_out(module, inputs):
        if len(inputs[0]) > 8:
            raise torch.OutOfMemoryError("out of memory")

    extractor.backbone.network.register_forward_pre_hook(run_out)
    with torch.no_grad():
        assert_allclose(wanted(torch.arange(21)), expected, rtol=0, atol=1e-6)
    with pytest.raises(torch.OutOfMemoryError):
        wanted(torch.arange(21))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_features_are_those_of_the_cpu_on_a_gpu(extractor):
    expected = extractor.extract(SOURCE, CELLS)
    found = dataclasses.replace(extractor, backbone=extractor.backbone.copy().to("cuda")).extract(SOURCE, CELLS)
    for cell in CELLS:
        assert_allclose(found[cell], expected[cell], rtol=0, atol=1e-5)


@pytest.fixture
def threads():
    """Give torch as many threads as asked for."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.usefixtures("small_groups")
def test_passes_run_side_by_side_and_share_the_threads(extractor, threads):
    threads(4)
    extractor = dataclasses.replace(extractor, batch_size=8)
    used, meeting = [], threading.Barrier(2, timeout=30)

    def meet(module, inputs):
        used.append((threading.get_ident(), torch.get_num_threads()))
        meeting.wait()  # breaks, and says so, where one pass comes after the other

    images = np.random.default_rng(1).integers(0, 256, (16, *SOURCE.shape), dtype=np.uint8)
    handle = extractor.backbone.network.register_forward_pre_hook(meet)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch_sizes, "MAX_PASSES", 2)
        side_by_side = extractor.extract(as_image_source(images), CELLS)
    assert len({thread for thread, _ in used}) == 2
    assert threading.get_ident() not in {thread for thread, _ in used}
    assert {count for _, count in used} == {2}
    assert torch.get_num_threads() == 4
    handle.remove()
    threads(1)
    one_by_one = extractor.extract(as_image_source(images), CELLS)
    for cell in CELLS:
        assert_allclose(side_by_side[cell], one_by_one[cell], rtol=0, atol=1e-6)


@pytest.mark.usefixtures("small_groups")
def test_threads_are_given_back_where_a_pass_fails(extractor, threads):
    threads(2)
    extractor = dataclasses.replace(extractor, batch_size=8)

    def fail(module, inputs):
        raise RuntimeError("no such pass")

    extractor.backbone.network.train().register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="no such pass"):
        extractor.extract(SOURCE, CELLS)
    assert torch.get_num_threads() == 2
    assert all(module.training for module in extractor.backbone.network.modules())


# Precision and memory


def test_bfloat16_changes_features_a_little_and_the_same_in_any_batch(extractor):
    images = np.random.default_rng(5).integers(0, 256, (70, *SOURCE.shape), dtype=np.uint8)
    source, low = as_image_source(images), dataclasses.replace(extractor, precision="bf16")
    expected, found = extractor.extract(source, CELLS), low.extract(source, CELLS)
    again = dataclasses.replace(low, batch_size=32).extract(source, CELLS, rows=np.arange(5, 70))
    for cell in CELLS:
        assert found[cell].dtype == np.float32
        spread = np.linalg.norm(expected[cell] - expected[cell].mean(axis=0))
        assert 1e-4 < np.linalg.norm(found[cell] - expected[cell]) / spread < 0.05
        np.testing.assert_array_equal(again[cell], found[cell][5:])


def test_large_matrices_are_memory_maps_of_files_that_go_with_them(extractor, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    expected = extractor.extract(SOURCE, CELLS)
    mapped = map_features([extractor], SOURCE, CELLS[0], lambda matrix: matrix * 2)
    assert not any(isinstance(matrix, np.memmap) for matrix in (*expected.values(), mapped))
    monkeypatch.setattr(storage, "MEMORY_MAP_ABOVE", expected[CELLS[0]].nbytes - 1)
    found = extractor.extract(SOURCE, CELLS)
    for cell in CELLS:
        assert isinstance(found[cell], np.memmap)
        np.testing.assert_array_equal(found[cell], expected[cell])
    again = map_features([extractor], SOURCE, CELLS[0], lambda matrix: matrix * 2)
    assert isinstance(again, np.memmap)
    np.testing.assert_array_equal(again, mapped)
    assert list(tmp_path.iterdir()) == []


# The caller's network


def test_network_runs_in_evaluation_mode_and_is_left_as_it_was(make_backbone, monkeypatch):
    backbone = make_backbone(sample_size=8, block_out_channels=(8, 8), dropout=0.5)
    extractor = FeatureExtractor(backbone)
    expected = extractor.extract(SOURCE, CELLS)
    backbone.network.requires_grad_(True).train()
    backbone.network.mid_block.eval()
    modes = [module.training for module in backbone.network.modules()]
    found = extractor.extract(SOURCE, CELLS)
    for cell in CELLS:
        assert_allclose(found[cell], expected[cell], atol=1e-6)
    monkeypatch.setattr(backbone.network.up_blocks[1], "forward", None)
    with pytest.raises(TypeError):
        extractor.extract(SOURCE, CELLS)
    assert [module.training for module in backbone.network.modules()] == modes
    assert hook_count(backbone.network) == 0
    assert all(parameter.requires_grad for parameter in backbone.network.parameters())
    assert all(parameter.grad is None for parameter in backbone.network.parameters())


def test_layer_shapes_are_those_of_the_maps(extractor):
    assert list(extractor.layer_shapes().items()) == [
        ("down_blocks.0", (8, 4, 4)),
        ("down_blocks.1", (8, 4, 4)),
        ("mid_block", (8, 4, 4)),
        ("up_blocks.0", (8, 8, 8)),
        ("up_blocks.1", (8, 8, 8)),
    ]
    assert extractor.layer_shapes(["conv_out", "mid_block"]) == {"mid_block": (8, 4, 4), "conv_out": (1, 8, 8)}


# Cache


@pytest.fixture
def cached(extractor, tmp_path, monkeypatch):
    """An extractor that has cached the features of CELLS for some rows, and whose network then only raises."""
    extractor = dataclasses.replace(extractor, memory=joblib.Memory(tmp_path, verbose=0))
    rows = np.array([4, 0, 9])
    expected = dataclasses.replace(extractor, memory=joblib.Memory(None)).extract(SOURCE, CELLS, rows=rows)
    first = extractor.extract(SOURCE, CELLS, rows=rows)

    def raises(self, x_t, timesteps):
        raise RuntimeError("the network runs")

    monkeypatch.setattr(PixelBackbone, "predict", raises)
    return extractor, rows, expected, first


def test_cached_features_equal_computed_ones_and_run_no_network(cached):
    extractor, rows, expected, first = cached
    others = {"batch_size": 8, "backbone": extractor.backbone.copy()}
    again = dataclasses.replace(extractor, **others).extract(
        as_image_source(IMAGES.copy()), list(CELLS), rows=list(rows)
    )
    for found in (first, again):
        assert list(found) == CELLS
        for cell in CELLS:
            np.testing.assert_array_equal(found[cell], expected[cell])


@pytest.mark.parametrize("setting", [{"seed": 8}, {"n_draws": 2}, {"shift": 1}, {"precision": "bf16"}])
def test_cache_tells_settings_apart(setting, cached):
    extractor, rows, _, _ = cached
    with pytest.raises(RuntimeError, match="the network runs"):
        dataclasses.replace(extractor, **setting).extract(SOURCE, CELLS, rows=rows)


@pytest.mark.parametrize(
    "argument",
    [
        {"source": as_image_source(255 - IMAGES)},
        {"source": as_image_source(IMAGES, value_range=(0, 256))},
        {"cells": CELLS[:-1]},
        {"cells": [Cell(cell.layer, 301, cell.pooling) for cell in CELLS]},
        {"rows": np.array([0, 4, 9])},
        {"rows": None},
        {"draw": 0},
        {"motion": Motion(1, 0)},
    ],
)
def test_cache_tells_arguments_apart(argument, cached):
    extractor, rows, _, _ = cached
    with pytest.raises(RuntimeError, match="the network runs"):
        extractor.extract(**{"source": SOURCE, "cells": CELLS, "rows": rows, **argument})


def test_cache_tells_weights_apart(cached):
    extractor, rows, _, _ = cached
    with torch.no_grad():
        extractor.backbone.network.conv_in.bias[0] += 1e-6
    with pytest.raises(RuntimeError, match="the network runs"):
        extractor.extract(SOURCE, CELLS, rows=rows)


# Errors


@pytest.mark.parametrize("draw", [-1, 2])
def test_draws_that_there_are_not_are_told_of(draw, extractor):
    with pytest.raises(ValueError, match=f"draw must be from 0 to 1; got {draw}"):
        dataclasses.replace(extractor, n_draws=2).extract(None, [Cell("mid_block", 1, 1)], draw=draw)


@pytest.mark.parametrize(
    ("cells", "found"), [([CELLS[0], Cell("mid_block", 20, 1)], r"\[20, 300\]"), ([], r"\[\]")], ids=["two", "none"]
)
def test_cells_of_several_timesteps_are_told_of(cells, found, extractor):
    with pytest.raises(ValueError, match=f"cells must be of one timestep; got {found}"):
        extractor.extract(SOURCE, cells)


@pytest.mark.parametrize("values", [[np.nan], [np.inf], [-np.inf], [np.inf, -np.inf]])
def test_activations_that_are_not_finite_are_told_of(values, extractor):
    with torch.no_grad():
        extractor.backbone.network.conv_in.bias[: len(values)] = torch.tensor(values)
    with pytest.raises(ValueError, match=r"activations at Cell\(layer='conv_in', .*pooling=2\) are not finite"):
        extractor.extract(SOURCE, [Cell("conv_in", 300, 2)])


def test_layer_costs_are_shares_of_a_pass_up_to_each_layer(extractor):
    costs = extractor.layer_costs(["conv_in", "down_blocks.0", "mid_block", "up_blocks.0", "up_blocks.1", "conv_out"])
    values = list(costs.values())
    assert values == sorted(values)
    assert 0 < values[0] < 0.05
    assert values[-1] == 1.0
    assert len(set(values)) == len(values)
    with FlopCounterMode(display=False) as counter:  # attention counts on the device "meta" only
        extractor.backbone.outline().network(torch.zeros(1, 1, 8, 8, device="meta"), 5)
    # After the last block only the last convolution is left: 64 pixels, 3 x 3, from 8 channels to 1.
    assert (1 - values[-2]) * counter.get_total_flops() == pytest.approx(2 * 64 * 9 * 8, rel=1e-6)
    assert hook_count(extractor.backbone.network) == 0


# Features with a gradient


def test_cell_features_are_the_extracted_ones_with_their_gradient(extractor):
    cell = Cell("up_blocks.0", 300, 2)
    extractor = dataclasses.replace(extractor, batch_size=17)
    features = CellFeatures(extractor, SOURCE, cell)
    assert (len(features), features.batch_size) == (21, 17)
    assert features.network is extractor.backbone.network
    rows = torch.tensor([3, 0, 20])
    weight = torch.randn((3, 32), generator=torch.Generator().manual_seed(2))
    gradients = []
    for compute in (
        lambda: features(rows),
        lambda: naive_features(extractor.backbone, rows, cell, draws(3, seed=7)),
    ):
        features.network.requires_grad_(True).zero_grad(set_to_none=True)
        (weight * compute()).sum().backward()
        gradients.append({name: parameter.grad for name, parameter in features.network.named_parameters()})
    found, expected = gradients
    assert {name for name in found if found[name] is None} == {
        name for name in found if name.startswith(("up_blocks.1", "conv_norm_out", "conv_out"))
    }
    for name, gradient in expected.items():
        if gradient is None:
            assert found[name] is None
        else:
            torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5)
    assert hook_count(features.network) == 0
    assert_allclose(features(rows).detach(), extractor.extract(SOURCE, [cell], rows=rows.numpy())[cell], atol=1e-6)
    for draw in range(features.n_draws):
        expected = extractor.extract(SOURCE, [cell], rows=rows.numpy(), draw=draw)[cell]
        assert_allclose(features(rows, draw).detach(), expected, atol=1e-6)


def test_denoising_loss_draws_noise_and_timesteps_from_the_generator(extractor, rng_untouched):
    rows = torch.tensor([5, 2, 2, 11])
    features = CellFeatures(extractor, SOURCE, CELLS[0])
    with rng_untouched():
        losses = [features.denoising_loss(rows, torch.Generator().manual_seed(seed)).item() for seed in (1, 1, 2)]
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn((4, 1, 8, 8), generator=generator)
    timesteps = torch.randint(1000, (4,), generator=generator)
    abar = torch.from_numpy(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)))[timesteps].float()[:, None, None, None]
    x0 = torch.from_numpy(IMAGES[rows] / 127.5 - 1).float()[:, None]
    prediction = extractor.backbone.network(abar.sqrt() * x0 + (1 - abar).sqrt() * noise, timesteps).sample
    assert losses[0] == pytest.approx((prediction - noise).square().mean().item(), rel=1e-4)
    assert losses[0] == losses[1] != losses[2]


# Block by block


def test_features_are_mapped_block_by_block(extractor, make_backbone, monkeypatch):
    monkeypatch.setattr(one_cell, "BLOCK_ROWS", 5)
    cell = Cell("mid_block", 300, 2)
    other = FeatureExtractor(make_backbone(seed=1, sample_size=8, block_out_channels=(8, 8)))
    sizes = []

    def function(one, two):
        sizes.append((len(one), len(two)))
        return (one - 2 * two).astype(np.float64)

    found = map_features([extractor, other], SOURCE, cell, function)
    assert sizes == [(5, 5)] * 4 + [(1, 1)]
    expected = extractor.extract(SOURCE, [cell])[cell] - 2 * other.extract(SOURCE, [cell])[cell]
    assert_allclose(found, expected, atol=1e-5)
    assert found.dtype == np.float64
    largest = map_features([extractor], SOURCE, cell, lambda matrix: matrix.argmax(axis=1))
    np.testing.assert_array_equal(largest, extractor.extract(SOURCE, [cell])[cell].argmax(axis=1))


def test_source_without_images_is_told_of(extractor):
    with pytest.raises(ValueError, match="source holds no image"):
        map_features([extractor], [], CELLS[0], lambda matrix: matrix)


# Room for large matrices


@pytest.fixture
def full(monkeypatch, tmp_path):
    """A folder of temporary files with hardly any room left, where all matrices go."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(storage, "MEMORY_MAP_ABOVE", 0)
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda folder: SimpleNamespace(free=2**20))
    return re.escape(str(tmp_path))


def test_too_little_room_for_a_temporary_file_is_told_of_beforehand(full):
    storage.check_space(2**20)
    with pytest.raises(ValueError, match=rf"3\.0 GiB go to a temporary file, but {full} has 0\.0 GiB left: .*TMPDIR"):
        storage.check_space(3 * 2**30)


def test_small_matrices_need_no_room(full, monkeypatch):
    monkeypatch.setattr(storage, "MEMORY_MAP_ABOVE", 2**30)
    storage.check_space(2**30)


def test_a_disk_that_is_full_is_told_of_where_the_space_is_reserved(full, extractor, monkeypatch):
    def no_space(descriptor, start, length):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(storage.os, "posix_fallocate", no_space, raising=False)
    with pytest.raises(OSError, match=rf"go to a temporary file, but {full} .*TMPDIR") as caught:
        extractor.extract(SOURCE, CELLS)
    assert caught.value.errno == errno.ENOSPC


def test_space_of_a_temporary_file_is_taken_when_it_is_made(full):
    matrix = storage.empty_array((1000, 100), np.float64)
    assert isinstance(matrix, np.memmap)
    assert not matrix.any()
