"""What a backbone is: a network, its levels of noise, and how images enter and leave it."""

from __future__ import annotations

import abc
import copy
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from skdiec.activations import as_map, block_names
from skdiec.backbones.adapting import CHANNEL_CHANGES, adapt_channels, as_range, cover, standardized
from skdiec.backbones.devices import computes_in_dtype
from skdiec.backbones.folders import as_folder
from skdiec.backbones.hashing import fingerprint
from skdiec.backbones.levels import NoiseLevels, noise_levels
from skdiec.backbones.models import config_of, new_model
from skdiec.backbones.parts import Parts
from skdiec.backbones.repository import Index
from skdiec.backbones.writing import write
from skdiec.messages import shown


class Backbone(abc.ABC):
    """A denoising network with its levels of noise. Each family of models is a subclass.

    A subclass says at least how its network is called (`forward`). What else there is suits a network of pixels with
    blocks that yield maps.

    Parameters
    ----------
    network : nn.Module
        The denoiser. It is used as it is.
    scheduler : diffusers.SchedulerMixin
        The noise schedule it was trained with.
    image_shape : tuple of int
        ``(channels, height, width)`` of the images that enter.
    input_shape : tuple of int, default=None
        Shape of what is noised. None is `image_shape`.
    levels : NoiseLevels, default=None
        The levels of noise. None is those of `scheduler`.

    Attributes
    ----------
    network, scheduler, image_shape, input_shape
        As above.
    recipe : dict
        How the network was trained, where `pretrain` did it.
    condition : dict of str to Tensor
        What the network is told in place of a prompt.

    Examples
    --------
    >>> from diffusers import DDPMScheduler, UNet2DModel
    >>> class MyBackbone(Backbone):
    ...     def forward(self, x, time):
    ...         return self.network(x, time).sample
    >>> blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    >>> network = UNet2DModel(8, 1, 1, block_out_channels=(8,), norm_num_groups=4, **blocks)
    >>> backbone = MyBackbone(network, DDPMScheduler(), image_shape=(1, 8, 8))
    >>> backbone.predict(torch.zeros(2, 1, 8, 8), torch.tensor([5, 50])).shape
    torch.Size([2, 1, 8, 8])
    """

    networks: ClassVar[tuple[str | type, ...]] = ()
    """Classes of the networks that the family is for: names in diffusers, or classes of other libraries."""

    network_part: ClassVar[str] = "unet"
    """What pipelines of the family call their network."""

    title: ClassVar[str] = ""
    """What the family is called in messages. None is the name of its class."""

    pipelines: ClassVar[tuple[str, ...]] = ("DiffusionPipeline",)
    """Classes of the family's pipelines in diffusers. What is saved is of the first."""

    text_parts: ClassVar[tuple[str, ...]] = ()
    """Parts of its pipelines that make that of a prompt."""

    absent_parts: ClassVar[tuple[str, ...]] = ()
    """Parts of its pipelines that it has no use for."""

    encodes: ClassVar[bool] = False
    """Whether `encode` costs anything, so that its results are worth keeping."""

    value_range: tuple[float, float] = (-1.0, 1.0)
    """``(black, white)`` in what `prepare` returns."""

    standardize: bool = False
    """Whether `prepare` gives each image the same brightness and contrast, as the network was trained."""

    def __init__(
        self,
        network: nn.Module,
        scheduler: Any,
        *,
        image_shape: tuple[int, int, int],
        input_shape: tuple[int, int, int] | None = None,
        levels: NoiseLevels | None = None,
    ) -> None:
        self.network: Any = network  # what else it has depends on the family
        self.scheduler = scheduler
        self.image_shape = image_shape
        self.input_shape = input_shape or image_shape
        self._levels = noise_levels(scheduler) if levels is None else levels
        self.recipe: dict[str, Any] = {}
        self.condition: dict[str, Tensor] = {}

    # What families differ in

    @classmethod
    def accepts(cls, index: Index, config: Mapping[str, Any]) -> bool:
        """Return whether a pipeline with a network of `networks` is of this family.

        Parameters
        ----------
        index : Index
            What the pipeline has.
        config : mapping
            The network's configuration.

        Returns
        -------
        bool
        """
        return True

    @classmethod
    def from_parts(cls, parts: Parts) -> Backbone:
        """Make a backbone of what was loaded.

        Parameters
        ----------
        parts : Parts

        Returns
        -------
        Backbone
        """
        make: Any = cls  # families that need more than these two make themselves otherwise
        return make(parts.network, parts.scheduler)

    @abc.abstractmethod
    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Call the network.

        Parameters
        ----------
        x : Tensor of shape ``(n, *input_shape)``
            Noisy images, scaled as the network wants them and in its type.
        time : Tensor of shape (n,)
            What tells the network how noisy they are.

        Returns
        -------
        Tensor of shape ``(n, c, *input_shape[1:])``
            The first channels are the estimate, and there may be more.
        """

    def prepare(self, images: Tensor) -> Tensor:
        """Adapt images to those that the network was trained on.

        Channels are repeated (1 to 3), weighted (3 to 1, ITU-R BT.601) or dropped (the fourth). Another size is scaled
        to cover the target, then cropped at the centre. Brightness and contrast are made the same where the network was
        trained so (`standardize`).

        Parameters
        ----------
        images : Tensor of shape (n, channels, height, width)
            Floating point, nominally in [-1, 1].

        Returns
        -------
        Tensor of shape ``(n, *image_shape)``
            On the same device, of the same type.
        """
        channels, height, width = self.image_shape
        images = cover(adapt_channels(images, channels), height, width)
        return as_range(standardized(images) if self.standardize else images, *self.value_range)

    def encode(self, pixels: Tensor) -> Tensor:
        """Turn prepared images into what is noised: themselves, or latents.

        Parameters
        ----------
        pixels : Tensor
            As `prepare` returns them.

        Returns
        -------
        Tensor of shape ``(n, *input_shape)``
        """
        return pixels

    def decode(self, x0: Tensor) -> Tensor:
        """Undo `encode` and the range of `prepare`.

        Parameters
        ----------
        x0 : Tensor of shape ``(n, *input_shape)``

        Returns
        -------
        Tensor of shape ``(n, *image_shape)``
            Images in [-1, 1], nominally.
        """
        low, high = self.value_range
        return (x0 - low) * (2 / (high - low)) - 1 if (low, high) != (-1, 1) else x0

    def layers(self) -> list[str]:
        """Name the layers that may hold representations of images, in order of definition."""
        return block_names(self.network)

    def to_map(self, layer: str, output: Any) -> Tensor | None:
        """Lay a layer's output out as a map of the image.

        Parameters
        ----------
        layer : str
            Module path in the network.
        output : object
            What the module returned.

        Returns
        -------
        Tensor of shape (n, c, h, w) or None
            None where the output is no map.
        """
        return as_map(layer, output)

    def parts(self) -> dict[str, nn.Module]:
        """Return all that has weights, by the names of the pipeline's parts."""
        return {self.network_part: self.network}

    def settings(self) -> list[Any]:
        """Return what else features depend on, as JSON can hold it."""
        return [self.image_shape, *(["standardize"] if self.standardize else [])]

    # What they have in common

    @property
    def levels(self) -> NoiseLevels:
        """The levels of noise, on the network's device."""
        self._levels = self._levels.to(self.device)
        return self._levels

    @property
    def num_train_timesteps(self) -> int:
        """Number of timesteps of the noise schedule; timesteps count from 0."""
        return len(self._levels)

    @property
    def max_timestep(self) -> int:
        """The highest timestep trained on: the schedule's last, unless `pretrain` stopped below."""
        return int(self.recipe.get("settings", {}).get("max_timestep", self.num_train_timesteps - 1))

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the network's weights."""
        return next(self.network.parameters()).dtype

    def nearest_timesteps(self, ratios: Iterable[float], last: int | None = None) -> tuple[int, ...]:
        """Return the timesteps whose noise to signal is nearest to some.

        Parameters
        ----------
        ratios : iterable of float
            Noise to signal, for images in [-1, 1].
        last : int, default=None
            The highest timestep to take. None is the highest trained on.

        Returns
        -------
        tuple of int
            Each once, in ascending order.
        """
        low, high = self.value_range
        last = self.max_timestep if last is None else last
        return self._levels.nearest(ratios, last, contrast=(high - low) / 2)

    def add_noise(self, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Draw x_t of the forward process, x_t = signal_t x0 + noise_t e.

        Parameters
        ----------
        x0, noise : Tensor of shape ``(n, *input_shape)``
            Encoded images, and standard normal noise e.
        timesteps : Tensor of shape (n,), integer
            From 0 to ``num_train_timesteps - 1``.

        Returns
        -------
        Tensor of shape ``(n, *input_shape)``
        """
        return self.levels.at(timesteps).noised(x0, noise)

    def predict(self, x_t: Tensor, timesteps: Tensor) -> Tensor:
        """Return what the network estimates of each noisy image: of noise, image or both, as `target` says.

        Parameters
        ----------
        x_t : Tensor of shape ``(n, *input_shape)``
        timesteps : Tensor of shape (n,), integer

        Returns
        -------
        Tensor of shape ``(n, *input_shape)``
        """
        level = self.levels.at(timesteps)
        # A network with learned variances has twice the channels; the estimate comes first.
        return self.forward((level.scale * x_t).to(self.dtype), level.time)[:, : self.input_shape[0]]

    def target(self, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return what the network was trained to predict.

        Parameters
        ----------
        x0, noise, timesteps
            As in `add_noise`.

        Returns
        -------
        Tensor of shape ``(n, *input_shape)``
        """
        return self.levels.at(timesteps).target(x0, noise)

    def denoising_loss(self, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Mean squared error of the network's prediction: the loss that models of its family are pretrained with.

        Parameters
        ----------
        x0, noise, timesteps
            As in `add_noise`.

        Returns
        -------
        Tensor of shape (), float32
        """
        prediction = self.predict(self.add_noise(x0, noise, timesteps), timesteps)
        target, weight = self.target(x0, noise, timesteps), self.levels.at(timesteps).weight
        return F.mse_loss(weight * prediction.float(), weight * target.float())

    def check_timestep(self, timestep: int, name: str = "timestep") -> None:
        """Raise ValueError for a timestep that the network was not trained on."""
        if not 0 <= timestep <= self.max_timestep:
            raise ValueError(
                f"{name} must be from 0 to {self.max_timestep}, the last that the backbone was trained on; "
                f"got {shown(timestep)}"
            )

    def check_channels(self, channels: int) -> None:
        """Raise ValueError for images whose channels cannot be made those of the backbone."""
        if channels != self.image_shape[0] and (channels, self.image_shape[0]) not in CHANNEL_CHANGES:
            raise ValueError(
                f"X has images of {channels} channels, which cannot be adapted "
                f"to the {self.image_shape[0]} of the backbone; channel_axis says where X has its channels"
            )

    def to(self, device: torch.device | str) -> Self:
        """Move all weights in place and return this backbone.

        Weights in half precision become float32 where the device does not compute with them.
        """
        device = torch.device(device)
        for name, module in self.parts().items():
            dtype = next(module.parameters()).dtype
            keeps = name == self.network_part and computes_in_dtype(dtype, device)
            module.to(device)
            if not keeps and dtype != torch.float32:
                module.to(torch.float32)
        self.condition = {name: value.to(device) for name, value in self.condition.items()}
        return self

    def outline(self) -> Backbone:
        """Return this backbone without values, which shows shapes and costs at none: on the device "meta"."""
        memo: dict[int, Any] = {}
        for module in self.parts().values():
            for tensor in (*module.parameters(), *module.buffers()):
                is_weight = isinstance(tensor, nn.Parameter)
                empty = tensor.detach().to("meta")
                memo[id(tensor)] = nn.Parameter(empty, requires_grad=False) if is_weight else empty
        outline = object.__new__(type(self))
        vars(outline).update(copy.deepcopy(vars(self), memo))
        outline.condition = {name: value.to("meta") for name, value in outline.condition.items()}
        return outline

    def copy(self, device: torch.device | str = "cpu") -> Self:
        """Return a backbone with weights of its own, on a device: `to` says in which number format.

        Parameters
        ----------
        device : torch.device or str, default="cpu"

        Returns
        -------
        Backbone
        """
        device = torch.device(device)
        if device.type == "cpu":
            return copy.deepcopy(self).to(device)
        # Moved, weights are copies already: large ones are not held twice on the way.
        twin = object.__new__(type(self))
        twin.__setstate__(self.__getstate__())
        return twin.to(device)

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors that features depend on, under names of their own."""
        others = {name: module for name, module in self.parts().items() if module is not self.network}
        named = {f"{part}:{name}": x for part, module in others.items() for name, x in module.state_dict().items()}
        return {**self.network.state_dict(), **named}

    def record(self) -> dict[str, Any]:
        """Return what `from_parts` needs besides the parts, as JSON can hold it."""
        return {**self.recipe, "image_shape": list(self.image_shape)}

    def save_pretrained(self, folder: str | Path) -> None:
        """Save as a folder of a diffusers pipeline, with safetensors weights, which `load_backbone` reads.

        Text encoders are not saved: what they make of the empty prompt is.

        Parameters
        ----------
        folder : path
            Made where it does not exist. A backbone in it is replaced once the new one is complete on the disk, and
            files of other names stay.

        Raises
        ------
        ValueError
            For a folder that is a file, or no path.
        OSError
            Where the folder cannot be written to, for instance for want of space.
        """
        write(self, as_folder(folder), self.parts())

    def __getstate__(self) -> dict[str, Any]:
        # By configuration and CPU weights: a pickle then loads without the device it was made on.
        state = {name: value for name, value in vars(self).items() if not isinstance(value, nn.Module)}
        state["_levels"] = self._levels.to(torch.device("cpu"))
        state["condition"] = {name: value.cpu() for name, value in self.condition.items()}
        state["parts"] = {
            name: (type(part), dict(config_of(part)), {key: x.detach().cpu() for key, x in part.state_dict().items()})
            for name, part in self.parts().items()
        }
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        parts = state.pop("parts")
        vars(self).update(state)
        self._set_parts(
            {name: new_model(kind, config, weights, "of the pickle") for name, (kind, config, weights) in parts.items()}
        )

    def _set_parts(self, parts: dict[str, nn.Module]) -> None:
        self.network = parts[self.network_part]

    def fingerprint(self) -> str:
        """Return a hash of weights, architecture, schedule and image shape, as a cache key."""
        return fingerprint(self)
