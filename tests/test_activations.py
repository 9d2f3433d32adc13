import re
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from skdiec.activations import block_names, capture, check_layers, evaluating, layer_shapes, pool

IMAGES = torch.arange(2 * 3 * 4 * 4, dtype=torch.float32).reshape(2, 3, 4, 4)


class Times(nn.Module):
    """Multiplies by a known factor, counts its calls, and returns what `wrap` makes of the product."""

    def __init__(self, factor, wrap=lambda x: x):
        super().__init__()
        self.factor, self.wrap, self.calls = factor, wrap, 0

    def forward(self, x):
        self.calls += 1
        return self.wrap(self.factor * x)


class Broken(nn.Module):
    def forward(self, x):
        raise RuntimeError("broken layer")


class Net(nn.Module):
    """Runs `blocks` one after the other (of several outputs, the first goes on), then `head`."""

    def __init__(self, *blocks, head=None):
        super().__init__()
        self.head = head or Times(10)
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
            x = x[0] if isinstance(x, (tuple, list)) else x
        return self.head(x)


def hook_count(network):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in network.modules())


def tokens(x):
    return x.flatten(2).transpose(1, 2)


def keep(name, activation):
    return activation.clone()


# Names


def test_blocks_are_the_items_of_lists_and_the_composite_children():
    network = nn.Module()
    network.stem = nn.Conv2d(1, 1, 1)
    network.down_blocks = nn.ModuleList([nn.Identity(), nn.Sequential(nn.ReLU())])
    network.mid_block = nn.Sequential(nn.ReLU())
    network.empty = nn.ModuleList()
    network.up_blocks = nn.ModuleList([nn.Identity()])
    assert block_names(network) == ["down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0"]


@pytest.mark.parametrize("name", ["blocks.2", "block", "", "blocks.0.factor"])
def test_unknown_layer_is_told_of_with_those_there_are(name):
    network = Net(Times(2), Times(3))
    message = re.escape(f"unknown layer {name!r}: choose one of blocks.0, blocks.1, or another module path")
    with pytest.raises(ValueError, match=message):
        check_layers(network, ["blocks.0", name])
    with pytest.raises(ValueError, match=message):
        layer_shapes(network, lambda: network(IMAGES), [name])
    check_layers(network, ["blocks", "blocks.1", "head"])


# Shapes


def test_layer_shapes_come_in_order_of_execution():
    network = Net(Times(2), nn.AvgPool2d(2), nn.Conv2d(3, 5, 1))
    found = layer_shapes(network, lambda: network(IMAGES), ["head", "blocks.2", "blocks.0"])
    assert list(found.items()) == [("blocks.0", (3, 4, 4)), ("blocks.2", (5, 2, 2)), ("head", (5, 2, 2))]


def test_layer_shapes_of_all_blocks_leave_out_those_without_a_map_and_those_that_do_not_run():
    network = Net(Times(2), Times(3, lambda x: (x, "skip")))
    network.others = nn.ModuleList([Times(1, str), Times(1, lambda x: x.flatten(1)), Times(1)])

    def forward():
        network.others[0](network.others[1](IMAGES))
        network(IMAGES)

    assert layer_shapes(network, forward) == {"blocks.0": (3, 4, 4), "blocks.1": (3, 4, 4)}


@pytest.mark.parametrize(
    "wrap", [str, lambda x: x.flatten(1), lambda x: tokens(x)[:, :3], lambda x: (), lambda x: None]
)
def test_layer_without_a_map_is_told_of(wrap):
    network = Net(Times(2), head=Times(1, wrap))
    with pytest.raises(ValueError, match=r"layer 'head' yields no map of activations; choose one of blocks\.0"):
        layer_shapes(network, lambda: network(IMAGES), ["blocks.0", "head"])
    assert hook_count(network) == 0


def test_layer_shapes_run_in_evaluation_mode_without_gradient():
    seen = []
    network = Net(Times(1, lambda x: seen.append((network.training, torch.is_inference_mode_enabled())) or x))
    layer_shapes(network, lambda: network(IMAGES))
    assert seen == [(False, True)]
    assert network.training


# Capture


def test_capture_gives_the_maps_of_the_layers():
    network = Net(Times(2), Times(3), Times(5))
    kept = capture(network, lambda: network(IMAGES), ["head", "blocks.1", "blocks.0"], keep)
    assert sorted(kept) == ["blocks.0", "blocks.1", "head"]
    for name, factor in [("blocks.0", 2), ("blocks.1", 6), ("head", 300)]:
        torch.testing.assert_close(kept[name], factor * IMAGES)


def test_pass_ends_at_the_last_wanted_layer_and_gives_what_a_full_pass_gives():
    network = Net(Times(2), Times(3), Times(5))
    full = capture(network, lambda: network(IMAGES), ["blocks.0", "blocks.1", "head"], keep)
    assert [block.calls for block in network.blocks] == [1, 1, 1]
    early = capture(network, lambda: network(IMAGES), ["blocks.1", "blocks.0"], keep)
    assert [block.calls for block in network.blocks] == [2, 2, 1]
    assert network.head.calls == 1
    for name in early:
        assert torch.equal(early[name], full[name])
    deeper = Net(Times(2), head=Broken())
    assert torch.equal(capture(deeper, lambda: deeper(IMAGES), ["blocks.0"], keep)["blocks.0"], 2 * IMAGES)


def test_maps_are_reduced_in_the_middle_of_the_pass():
    network = Net(Times(2), Times(3))
    calls = []

    def reduce(name, activation):
        calls.append((name, network.blocks[1].calls, network.head.calls))
        return activation.mean().item()

    kept = capture(network, lambda: network(IMAGES), ["blocks.0", "blocks.1"], reduce)
    assert calls == [("blocks.0", 0, 0), ("blocks.1", 1, 0)]
    assert kept == pytest.approx({"blocks.0": 2 * IMAGES.mean().item(), "blocks.1": 6 * IMAGES.mean().item()})


def test_first_of_several_outputs_is_the_map():
    network = Net(Times(2, lambda x: (x, -x)), Times(3, lambda x: [x, None]))
    kept = capture(network, lambda: network(IMAGES), ["blocks.0", "blocks.1"], keep)
    assert torch.equal(kept["blocks.0"], 2 * IMAGES)
    assert torch.equal(kept["blocks.1"], 6 * IMAGES)


def test_tokens_of_a_square_image_are_laid_out_as_its_map():
    network = Net(Times(2, tokens))
    assert layer_shapes(network, lambda: network(IMAGES), ["blocks.0"]) == {"blocks.0": (3, 4, 4)}
    kept = capture(network, lambda: network(IMAGES), ["blocks.0"], keep)
    assert torch.equal(kept["blocks.0"], 2 * IMAGES)


def test_first_map_of_a_module_that_runs_twice_counts_whatever_else_is_wanted():
    shared = Times(2)
    network = Net(shared, Times(3), shared)
    for layers in (["blocks.0"], ["blocks.0", "head"]):
        kept = capture(network, lambda: network(IMAGES), layers, keep)
        assert torch.equal(kept["blocks.0"], 2 * IMAGES)
    halved = nn.AvgPool2d(2)
    network = Net(halved, halved)
    assert layer_shapes(network, lambda: network(IMAGES), ["blocks.0"]) == {"blocks.0": (3, 2, 2)}


def test_capture_leaves_gradients_to_the_caller():
    x = IMAGES.clone().requires_grad_()
    network = Net(Times(2), Times(3))
    kept = capture(network, lambda: network(x), ["blocks.1"], lambda name, activation: activation.sum())
    kept["blocks.1"].backward()
    assert torch.equal(x.grad, torch.full_like(x, 6))


def test_hooks_are_removed_whatever_happens():
    network = Net(Times(2), head=Broken())
    capture(network, lambda: network(IMAGES), ["blocks.0"], keep)
    assert hook_count(network) == 0
    with pytest.raises(RuntimeError, match="broken layer"):
        capture(network, lambda: network(IMAGES), ["blocks.0", "head"], keep)
    assert hook_count(network) == 0
    with pytest.raises(RuntimeError, match="broken layer"):
        layer_shapes(network, lambda: network(IMAGES))
    assert hook_count(network) == 0
    assert network.training
    with pytest.raises(ZeroDivisionError):
        capture(network, lambda: network(IMAGES), ["blocks.0"], lambda name, activation: 1 / 0)
    assert hook_count(network) == 0
    with pytest.raises(AttributeError):
        capture(network, lambda: network(IMAGES), ["blocks.0", "unknown"], keep)
    assert hook_count(network) == 0


def test_hooks_of_the_caller_stay():
    network = Net(Times(2))
    network.blocks[0].register_forward_hook(lambda module, inputs, output: output + 1)
    kept = capture(network, lambda: network(IMAGES), ["blocks.0"], keep)
    assert torch.equal(kept["blocks.0"], 2 * IMAGES + 1)
    assert hook_count(network) == 1


# Modes


def test_each_module_gets_its_own_mode_back():
    network = Net(nn.Dropout(), nn.Dropout())
    network.train()
    network.blocks[1].eval()
    modes = [module.training for module in network.modules()]
    assert len(set(modes)) == 2
    with evaluating(network):
        assert not any(module.training for module in network.modules())
    assert [module.training for module in network.modules()] == modes
    with pytest.raises(RuntimeError, match="inside"), evaluating(network):
        raise RuntimeError("inside")
    assert [module.training for module in network.modules()] == modes


# Pooling


def test_pool_averages_cells_and_flattens_channels_first():
    pooled = pool(IMAGES, 2)
    expected = torch.empty(2, 3, 2, 2)
    for row in range(2):
        for column in range(2):
            cell = IMAGES[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            expected[:, :, row, column] = cell.sum((2, 3)) / 4
    torch.testing.assert_close(pooled, expected.reshape(2, 12))
    torch.testing.assert_close(pool(IMAGES, 1), IMAGES.mean((2, 3)))
    assert torch.equal(pool(IMAGES, 4), IMAGES.flatten(1))


def test_pool_repeats_pixels_of_maps_smaller_than_the_cells():
    small = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    expected = [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]]
    assert pool(small, 4).reshape(4, 4).tolist() == expected


def test_pool_sums_half_precision_in_float32():
    halves = torch.full((1, 1, 64, 64), 1000.0, dtype=torch.float16)
    assert pool(halves, 1).tolist() == [[1000.0]]
    assert pool(halves.bfloat16(), 1).dtype == torch.float32


def test_passes_of_other_threads_through_the_same_network_are_left_alone():
    meeting = threading.Barrier(2, timeout=30)

    class Meeting(nn.Module):
        def forward(self, x):
            meeting.wait()  # both threads are inside the network, with their hooks on it
            return x

    network = Net(Meeting(), Times(2), Times(5))

    def run(factor):
        return capture(network, lambda: network(factor * IMAGES), ["blocks.1"], keep)["blocks.1"]

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(run, [1, 3]))
    torch.testing.assert_close(found, [2 * IMAGES, 6 * IMAGES])
    assert network.blocks[2].calls == 0
    assert hook_count(network) == 0
