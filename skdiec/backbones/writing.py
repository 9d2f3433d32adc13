"""How a backbone is written: as a folder of a diffusers pipeline."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from skdiec.backbones.folders import replacing
from skdiec.backbones.importing import ONE_AT_A_TIME
from skdiec.backbones.repository import INDEX_FILE
from skdiec.messages import shown

if TYPE_CHECKING:
    from skdiec.backbones.base import Backbone

RECIPE_FILE = "skdiec.json"
"""File beside a saved pipeline that says how images enter it and how it was trained."""

CONDITION_FILE = "condition.safetensors"
"""File beside a saved pipeline with what its network is told in place of a prompt."""


def write(backbone: Backbone, folder: Path, models: Mapping[str, Any]) -> None:
    """Write a backbone as a folder: all of it, or none.

    Parameters
    ----------
    backbone : Backbone
    folder : Path
    models : mapping of str to nn.Module
        Its parts as they are to be saved.
    """
    with ONE_AT_A_TIME:
        import diffusers
    from safetensors.torch import save_file

    parts = {**models, "scheduler": backbone.scheduler}
    index: dict[str, Any] = {"_class_name": backbone.pipelines[0], "_diffusers_version": diffusers.__version__}
    for name, part in parts.items():
        index[name] = [type(part).__module__.partition(".")[0], type(part).__name__]
    index |= {name: [None, None] for name in (*backbone.text_parts, *backbone.absent_parts)}
    # The index last: without it, nobody takes half of a pipeline, or one without its record, for a whole one.
    with replacing(folder, last=INDEX_FILE) as partial:
        for name, part in parts.items():
            part.save_pretrained(partial / name)
        if backbone.condition:
            save_file(
                {name: value.cpu().contiguous() for name, value in backbone.condition.items()}, partial / CONDITION_FILE
            )
        (partial / RECIPE_FILE).write_text(json.dumps(backbone.record(), indent=2) + "\n")
        (partial / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n")


def rounded(network: nn.Module, dtype: str) -> nn.Module:
    """Return a network whose weights are of the type that they are to be saved as.

    Parameters
    ----------
    network : nn.Module
        Of float32.
    dtype : {"float32", "bfloat16"}

    Returns
    -------
    nn.Module
        A copy, unless it is of that type already.

    Raises
    ------
    ValueError
        For another `dtype`.
    """
    if not isinstance(dtype, str) or dtype not in ("float32", "bfloat16"):
        raise ValueError(f"dtype must be 'float32' or 'bfloat16'; got {shown(dtype)}")
    if dtype == "float32":
        return network
    network = copy.deepcopy(network)
    for parameter in network.parameters():
        parameter.data = parameter.data.to(getattr(torch, dtype))
    return network
