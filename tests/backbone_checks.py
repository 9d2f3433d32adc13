"""What holds for backbones of every family."""

import numpy as np
import torch

from skdiec.activations import Cell, capture
from skdiec.features import FeatureExtractor
from skdiec.images import as_image_source


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def maps_of(backbone, layers, x_t, timestep):
    """The maps that are made of layers in one pass."""
    now = torch.tensor([timestep]).expand(len(x_t))
    with torch.no_grad():
        return capture(
            backbone.network, lambda: backbone.predict(x_t, now), list(layers), lambda _, x: x, backbone.to_map
        )


def assert_map_changes_most_where_the_image_does(backbone, timestep, *, tolerance):
    """The order of maps, whatever is packed how: a change of one patch shows in its cell, or `tolerance` beside it."""
    layer = next(iter(FeatureExtractor(backbone).layer_shapes()))
    x_t = noise(1, *backbone.input_shape)
    before = maps_of(backbone, [layer], x_t, timestep)[layer]
    height, width = before.shape[2:]
    step = x_t.shape[2] // height
    for row, column in [(0, 0), (1, width - 1), (height - 1, 1)]:
        changed = x_t.clone()
        changed[:, :, step * row : step * (row + 1), step * column : step * (column + 1)] += 3
        difference = (maps_of(backbone, [layer], changed, timestep)[layer] - before).square().sum(1)[0].numpy()
        found = np.unravel_index(difference.argmax(), difference.shape)
        assert np.abs(np.subtract(found, (row, column))).max() <= tolerance


def assert_features_of_a_row_are_the_same_in_any_batch(backbone, images, timestep, *, atol):
    layer = list(FeatureExtractor(backbone).layer_shapes())[-1]
    source, cell = as_image_source(np.concatenate([images] * 4)), Cell(layer, timestep, 2)
    expected = FeatureExtractor(backbone, n_draws=3, shift=1).extract(source, [cell])[cell]
    for size, rows in [(32, None), (64, np.array([7, 3, 70])), (96, np.arange(40, 80))]:
        extractor = FeatureExtractor(backbone, n_draws=3, shift=1, batch_size=size)
        found = extractor.extract(source, [cell], rows=rows)[cell]
        np.testing.assert_allclose(found, expected if rows is None else expected[rows], atol=atol, rtol=0)
