"""The README of a saved model, which the Hugging Face Hub shows as a model card."""

from __future__ import annotations

from typing import Any

import numpy as np


def model_card(model: Any, name: str, reference: str | None = None) -> str:
    """Return the text of the README.

    Parameters
    ----------
    model : DiffusionEmbeddedClustering
        Fitted.
    name : str
        What the model is loaded by.
    reference : str, default=None
        Path or Hub id of a backbone that is not in the folder.

    Returns
    -------
    str
    """
    sizes = np.bincount(model.labels_, minlength=len(model.cluster_centers_))
    rows = "\n".join(f"| {label} | {size:,} |" for label, size in enumerate(sizes))
    channels, height, width = model.image_shape_
    backbone = "trained on images by `skdiec.pretrain`" if model.backbone_.recipe else "a pretrained diffusion model"
    if len(model._extractors) > 1:
        backbone += ", trained further in the fit"
    if reference is not None:
        backbone += f"; not in this folder but in `{reference}`"
    return f"""---
library_name: skdiec
tags:
- clustering
- image-clustering
- deep-clustering
- diffusion
- skdiec
---

# Image clusters by skdiec

A fitted `DiffusionEmbeddedClustering`: it puts an image into one of {len(sizes)} clusters, by what a diffusion model
knows of it ([DiEC](https://arxiv.org/abs/2512.20905)). The clusters were found without labels.

```python
import skdiec

model = skdiec.load({name!r})
labels = model.predict(images)
```

| | |
|---|---|
| clusters | {len(sizes)} |
| images of the fit | {len(model.labels_):,} |
| their size | {height} x {width}, {channels} channel{"s" if channels > 1 else ""} |
| representation | layer `{model.layer_}`, timestep {model.timestep_}, pooling {model.pooling_} |
| dimensions of the embedding | {model.n_components_} |
| backbone | {backbone} |
| cut over that of noise | {model.cut_over_noise_:.2f} (0: clusters lie apart, 1: as noise would) |

| cluster | images of the fit |
|---|---|
{rows}

Loading runs no code: the files are JSON and safetensors.
"""
