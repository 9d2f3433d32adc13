"""``skdiec info``."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from skdiec.cli.console import Console, command, show, show_json, shown_path
from skdiec.cli.options import AsJson, Quiet
from skdiec.messages import shown


def info(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="Folder of images, of a saved model, of results or of a backbone.")
    ],
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Say what a folder is: images, a saved model or a backbone."""
    with command(quiet) as console:
        from skdiec.cli.models import is_backbone, model_folder

        model = model_folder(path)
        if model is not None:
            console.say("loading the model")
            found = _model(model)
        elif is_backbone(path):
            console.say("loading the backbone")
            found = _backbone(path)
        else:
            found = _images(path, console)
        if as_json:
            show_json(found)
        else:
            show("\n".join(_lines(found)))


def _model(path: Path) -> dict[str, Any]:
    import json

    import numpy as np

    from skdiec.cli.models import load_model

    model = load_model(path)
    values = json.loads((path / "model.json").read_text())
    best = model.search_result_.best
    return {
        "kind": "model",
        "folder": str(path),
        "saved by": f"skdiec {values['skdiec']}, format {values['format']}",
        "images": len(model.labels_),
        "image shape": model.image_shape_,
        "value range": model.value_range_,
        "clusters": len(model.cluster_centers_),
        "sizes": np.bincount(model.labels_, minlength=len(model.cluster_centers_)).tolist(),
        "representation": {"layer": best.layer, "timestep": best.timestep, "pooling": best.pooling},
        "cut over noise": model.cut_over_noise_,
        "stability": model.stability_,
        "seconds": model.fit_seconds_,
        "parameters": {name: shown(value) for name, value in _changed(model).items()},
        "backbone": _network(model.backbone_),
    }


def _changed(model: Any) -> dict[str, Any]:
    """Return the parameters that are not the defaults."""
    defaults = type(model)().get_params(deep=False)
    given = model.get_params(deep=False)
    return {name: value for name, value in given.items() if repr(value) != repr(defaults[name])}


def _backbone(path: Path) -> dict[str, Any]:
    from skdiec.backbones import load_backbone

    return {"kind": "backbone", "folder": str(path), **_network(load_backbone(os.fspath(path)))}


def _network(backbone: Any) -> dict[str, Any]:
    recipe = backbone.recipe
    found = {
        "image shape": backbone.image_shape,
        "parameters": sum(parameter.numel() for parameter in backbone.network.parameters()),
        "timesteps": backbone.num_train_timesteps,
        "last timestep trained on": backbone.max_timestep,
        "can draw new images": backbone.max_timestep == backbone.num_train_timesteps - 1,
    }
    if "steps" in recipe:
        found |= {"trained on": f"{recipe['images']} images", "steps": recipe["steps"], "seconds": recipe["seconds"]}
    return found


def _images(path: Path, console: Console) -> dict[str, Any]:
    from skdiec.cli.reading import find_files
    from skdiec.images.headers import of_other_depth, suggested_size

    files = find_files(path, console)
    kinds = files.kinds.values()
    problems = files.problems | of_other_depth(files.kinds)
    sizes = Counter(f"{kind.size[0]} x {kind.size[1]}" for kind in kinds)
    return {
        "kind": "images",
        "folder": str(path),
        "images": len(files.paths) - len(problems),
        "unreadable": {files.names[row]: problem for row, problem in sorted(problems.items())},
        "formats": dict(Counter(file.suffix.lower() or "none" for file in files.paths).most_common()),
        "colours": dict(Counter("grey" if kind.channels == 1 else "colour" for kind in kinds).most_common()),
        "types": dict(Counter(str(kind.dtype) for kind in kinds).most_common()),
        "sizes": len(sizes),
        "most common sizes (height x width)": dict(sizes.most_common(5)),
        "with several pages": sum(kind.pages > 1 for kind in kinds),
        "suggested --image-shape": ",".join(map(str, suggested_size(kinds))),
        "bytes": sum(_size(file) for file in files.paths),
    }


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _lines(values: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """Yield a line for each value, those of a mapping below its name."""
    for name, value in values.items():
        label = shown_path(name)
        if isinstance(value, Mapping):
            yield f"{indent}{label}:{'' if value else ' none'}"
            yield from _lines(value, indent + "  ")
        elif isinstance(value, bool):
            yield f"{indent}{label}: {'yes' if value else 'no'}"
        elif isinstance(value, float):
            yield f"{indent}{label}: {value:.4g}" if math.isfinite(value) else f"{indent}{label}: unknown"
        elif isinstance(value, (list, tuple)):
            yield f"{indent}{label}: {', '.join(map(str, value))}"
        else:
            yield f"{indent}{label}: {value if isinstance(value, int) else shown_path(str(value))}"
