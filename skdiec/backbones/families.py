"""The families of models that can be loaded, and how to add one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from skdiec.backbones.base import Backbone
from skdiec.backbones.importing import ONE_AT_A_TIME
from skdiec.backbones.joint import AuraFlowBackbone, FluxBackbone, StableDiffusion3Backbone
from skdiec.backbones.latent import (
    KandinskyBackbone,
    LDMBackbone,
    StableDiffusionBackbone,
    StableDiffusionXLBackbone,
)
from skdiec.backbones.pixel import PixelBackbone
from skdiec.backbones.pixel_transformer import PixelTransformerBackbone
from skdiec.backbones.repository import Index
from skdiec.backbones.transformer import (
    DiTBackbone,
    HunyuanDiTBackbone,
    LuminaBackbone,
    PixArtBackbone,
    SanaBackbone,
)
from skdiec.messages import shown

_FAMILIES: list[type[Backbone]] = [
    PixelBackbone,
    StableDiffusionBackbone,
    StableDiffusionXLBackbone,
    LDMBackbone,
    KandinskyBackbone,
    PixelTransformerBackbone,
    DiTBackbone,
    PixArtBackbone,
    HunyuanDiTBackbone,
    SanaBackbone,
    LuminaBackbone,
    StableDiffusion3Backbone,
    FluxBackbone,
    AuraFlowBackbone,
]

_REFUSED = {
    "UVit2DModel": "aMUSEd, whose network fills in masked tokens: there is no Gaussian noise whose levels could be "
    "searched",
    **dict.fromkeys(
        ["StableCascadeUNet", "WuerstchenPrior", "WuerstchenDiffNeXt"],
        "Stable Cascade (Wuerstchen), whose networks work in stages that are told each other's results",
    ),
}
"""Networks that are told apart from those that are not known."""

_FORMER_CLASSES = {"ada_norm_zero": "DiTTransformer2DModel", "ada_norm_single": "PixArtTransformer2DModel"}
"""What ``Transformer2DModel`` is today, by its ``norm_type``."""


def register(family: type[Backbone]) -> type[Backbone]:
    """Make a family of models known to `load_backbone`. It goes before those that are known already.

    Parameters
    ----------
    family : type
        A subclass of `Backbone` with ``forward``, whose `networks` are a tuple: classes of the networks, with
        ``from_config`` and ``save_pretrained`` as models of diffusers have them, or names of classes of diffusers.

    Returns
    -------
    type
        The same, so that this is a decorator too.

    Raises
    ------
    TypeError
        For anything else.

    Examples
    --------
    >>> from diffusers import UNet2DModel
    >>> from skdiec.backbones import Backbone, register
    >>> class MyNetwork(UNet2DModel):
    ...     pass
    >>> @register
    ... class MyBackbone(Backbone):
    ...     networks = (MyNetwork,)
    ...
    ...     @classmethod
    ...     def from_parts(cls, parts):
    ...         return cls(parts.network, parts.scheduler, image_shape=(1, 8, 8))
    ...
    ...     def forward(self, x, time):
    ...         return self.network(x, time).sample
    """
    if not isinstance(family, type) or not issubclass(family, Backbone) or not family.networks:
        raise TypeError(f"family must be a subclass of Backbone that names its networks; got {shown(family)}")
    if not isinstance(family.networks, tuple) or not all(map(_is_network, family.networks)):
        raise TypeError(
            f"{family.__name__}.networks must be a tuple of classes with from_config and save_pretrained, or of names "
            f"of those of diffusers; got {shown(family.networks)}"
        )
    if missing := sorted(family.__abstractmethods__):
        raise TypeError(f"family must have {', '.join(missing)}; got {family.__name__} without")
    if family not in _FAMILIES:
        _FAMILIES.insert(0, family)
    return family


def _is_network(network: object) -> bool:
    has = isinstance(network, type) and hasattr(network, "from_config") and hasattr(network, "save_pretrained")
    return has or isinstance(network, str)


def network_parts() -> tuple[str, ...]:
    """Return what the pipelines of all families call their network, each once.

    Returns
    -------
    tuple of str
    """
    return tuple(dict.fromkeys(family.network_part for family in _FAMILIES))


def class_name(config: Mapping[str, Any], default: str | None = None) -> str:
    """Return the class of a network, as diffusers calls it today.

    Parameters
    ----------
    config : mapping
        As in ``config.json``.
    default : str, default=None
        Where there is none. None is that of early diffusers, ``UNet2DModel``.

    Returns
    -------
    str
    """
    name = str(config.get("_class_name") or default or "UNet2DModel")[:80]
    norm = config.get("norm_type")
    return _FORMER_CLASSES.get(norm, name) if name == "Transformer2DModel" and isinstance(norm, str) else name


def network_class(family: type[Backbone], name: str) -> type | None:
    """Return the class of a family's networks that has a name, None where it has none.

    Parameters
    ----------
    family : type
    name : str

    Returns
    -------
    type or None
    """
    with ONE_AT_A_TIME:
        import diffusers

    for network in family.networks:
        if (network if isinstance(network, str) else network.__name__) == name:
            return getattr(diffusers, network, None) if isinstance(network, str) else network
    return None


def find_family(index: Index, name: str, config: Mapping[str, Any]) -> type[Backbone]:
    """Return the family that a pipeline is of.

    Parameters
    ----------
    index : Index
    name : str
        Class of its network.
    config : mapping
        The network's configuration.

    Returns
    -------
    type

    Raises
    ------
    ValueError
        Where there is none.
    """
    for family in _FAMILIES:
        if network_class(family, name) is not None and family.accepts(index, config):
            return family
    for kind in (name, *(kind for _, kind in index.parts.values())):
        if kind in _REFUSED:
            raise ValueError(f"{index.where} is a {index.kind} with a {kind}: it is {_REFUSED[kind]}")
    others = ", ".join(part for part, (_, kind) in index.parts.items() if kind != name and part != "scheduler")
    beside = f", beside {others}" if others else ""
    titles = "; ".join(family.title or family.__name__ for family in _FAMILIES)
    raise ValueError(
        f"{index.where} is a {index.kind} of the network {name}{beside}: none of the families that can be "
        f"used, which are {titles}"
    )
