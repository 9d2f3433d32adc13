from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from skdiec.seeding import drawing_from_seed


def weights():
    network = nn.Sequential(nn.Linear(3, 5), nn.Conv2d(2, 3, 3), nn.Embedding(4, 2), nn.LSTM(2, 2))
    return list(network.state_dict().values())


def test_the_numbers_are_those_of_the_global_generator_with_that_seed():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        expected = weights()
    with drawing_from_seed(7):
        found = weights()
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize(
    "draw",
    [
        lambda: torch.randn(3),
        lambda: torch.rand(2, 2),
        lambda: torch.randint(9, (4,)),
        lambda: torch.randperm(5),
        lambda: torch.empty(3).normal_(),
        lambda: nn.init.orthogonal_(torch.empty(3, 3)),
        lambda: torch.bernoulli(torch.full((9,), 0.5)),
    ],
)
def test_no_random_function_touches_the_global_generator(draw, rng_untouched):
    with rng_untouched(), drawing_from_seed(0):
        first, second = draw(), draw()
    with drawing_from_seed(0):
        assert torch.equal(draw(), first)
        assert torch.equal(draw(), second)


def test_a_generator_that_is_given_is_used():
    given = torch.Generator().manual_seed(3)
    with drawing_from_seed(0):
        found = torch.randn(4, generator=given)
    assert torch.equal(found, torch.randn(4, generator=torch.Generator().manual_seed(3)))


def test_threads_draw_the_same_numbers_at_the_same_time(rng_untouched):
    def draw(seed):
        with drawing_from_seed(seed):
            return weights()

    with rng_untouched(), ThreadPoolExecutor(4) as pool:
        found = list(pool.map(draw, [0, 1] * 50))
    for seed in (0, 1):
        assert all(
            torch.equal(one, other) for run in found[seed::2] for one, other in zip(run, draw(seed), strict=True)
        )
    assert not torch.equal(found[0][0], found[1][0])
