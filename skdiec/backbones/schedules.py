"""Noise schedules: the forward process that a scheduler's configuration stands for."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from skdiec.backbones.config_files import Fields
from skdiec.backbones.importing import ONE_AT_A_TIME
from skdiec.backbones.networks import MAX_TIMESTEPS
from skdiec.messages import shown

if TYPE_CHECKING:
    from diffusers import DDPMScheduler, SchedulerMixin

_LINEAR = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}
_LATENT = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "linear"}
_SCALED = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}

SCHEDULERS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        [
            "DDIMInverseScheduler",
            "DDIMParallelScheduler",
            "DDIMScheduler",
            "DDPMParallelScheduler",
            "DDPMScheduler",
            "DEISMultistepScheduler",
            "DPMSolverMultistepInverseScheduler",
            "DPMSolverMultistepScheduler",
            "DPMSolverSinglestepScheduler",
            "EulerAncestralDiscreteScheduler",
            "EulerDiscreteScheduler",
            "LMSDiscreteScheduler",
            "PNDMScheduler",
            "RePaintScheduler",
            "SASolverScheduler",
            "UniPCMultistepScheduler",
        ],
        _LINEAR,
    ),
    **dict.fromkeys(
        [
            "DPMSolverSDEScheduler",
            "HeunDiscreteScheduler",
            "KDPM2AncestralDiscreteScheduler",
            "KDPM2DiscreteScheduler",
        ],
        _LATENT,
    ),
    **dict.fromkeys(["LCMScheduler", "TCDScheduler"], _SCALED),
    "UnCLIPScheduler": {**_LINEAR, "beta_schedule": "squaredcos_cap_v2"},
}
"""Schedulers whose forward process is that of a DDPM, with the betas that they have where a configuration has none."""

_OTHERS = {
    "ScoreSdeVeScheduler": "ScoreSdeVeScheduler",
    "EDMEulerScheduler": "EDMEulerScheduler",
    "EDMDPMSolverMultistepScheduler": "EDMEulerScheduler",
    "CMStochasticIterativeScheduler": "CMStochasticIterativeScheduler",
    "FlowMatchEulerDiscreteScheduler": "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler": "FlowMatchEulerDiscreteScheduler",
    "FlowMatchLCMScheduler": "FlowMatchEulerDiscreteScheduler",
}
"""Schedulers of other Gaussian noise, and the one that stands for all of its kind."""

_FLOW_SAMPLERS = (
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "SASolverScheduler",
    "UniPCMultistepScheduler",
)
"""Schedulers with betas that can also be set to flow matching."""

_BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace", "exp")
_PREDICTIONS = ("epsilon", "sample", "v_prediction")


def training_scheduler(config: Mapping[str, Any], where: str, kind: str | None = None) -> SchedulerMixin:
    """Return the forward process of any scheduler: samplers share their noise with the network they were made for.

    Parameters
    ----------
    config : mapping
        As in ``scheduler_config.json``.
    where : str
        What errors name.
    kind : str, default=None
        Class of the scheduler; None is the one that `config` names, or a DDPM's.

    Returns
    -------
    DDPMScheduler, ScoreSdeVeScheduler, EDMEulerScheduler, CMStochasticIterativeScheduler or \
FlowMatchEulerDiscreteScheduler

    Raises
    ------
    ValueError
        For another kind of noise, or a value of the wrong type or out of range.
    """
    named = config.get("_class_name")
    for name in (kind, named):
        if name is not None and (not isinstance(name, str) or name not in {*SCHEDULERS, *_OTHERS}):
            raise ValueError(
                f"{where} is of a {shown(name)}, whose noise is not known; only schedulers of the noise of a DDPM, of "
                f"{', '.join(sorted(set(_OTHERS)))} can be used"
            )
    if kind is not None and named is not None and _OTHERS.get(kind) != _OTHERS.get(named):
        raise ValueError(f"{where} is of a {named}, but its pipeline's index has a {kind}, of other noise")
    kind = kind or named
    given = {key: value for key, value in config.items() if value is not None}
    if kind in _FLOW_SAMPLERS and given.get("use_flow_sigmas") is True:
        # Samplers of flow matching whose configuration says another target are not to be trusted.
        Fields(given, f"{where}: with use_flow_sigmas").choice("prediction_type", ("flow_prediction",))
        kind = "FlowMatchEulerDiscreteScheduler"
    if kind in _OTHERS:
        return _other_scheduler(given, where, _OTHERS[kind])
    return _ddpm_scheduler(given, where, kind)


def _other_scheduler(given: Mapping[str, Any], where: str, kind: str) -> SchedulerMixin:
    """Build a scheduler without betas."""
    with ONE_AT_A_TIME:
        import diffusers

    fields = Fields({"num_train_timesteps": 1000, **_OTHER_DEFAULTS[kind], **given}, where)
    values: dict[str, Any] = {"num_train_timesteps": fields.integer("num_train_timesteps", 2, MAX_TIMESTEPS)}
    if kind != "FlowMatchEulerDiscreteScheduler":
        low = values["sigma_min"] = fields.number("sigma_min", 1e-12, 1e12)
        values["sigma_max"] = fields.number("sigma_max", 2 * low, 1e12)
    if kind in ("EDMEulerScheduler", "CMStochasticIterativeScheduler"):
        values["sigma_data"] = fields.number("sigma_data", 1e-6, 1e6)
        values["rho"] = fields.number("rho", 1e-3, 1e3)
    if kind == "EDMEulerScheduler":
        values["prediction_type"] = fields.choice("prediction_type", ("epsilon", "v_prediction"))
        values["sigma_schedule"] = fields.choice("sigma_schedule", ("karras", "exponential"))
    return getattr(diffusers, kind)(**values)


_OTHER_DEFAULTS: dict[str, dict[str, Any]] = {
    "ScoreSdeVeScheduler": {"num_train_timesteps": 2000, "sigma_min": 0.01, "sigma_max": 1348.0},
    "EDMEulerScheduler": {
        "sigma_min": 0.002,
        "sigma_max": 80.0,
        "sigma_data": 0.5,
        "sigma_schedule": "karras",
        "prediction_type": "epsilon",
        "rho": 7.0,
    },
    "CMStochasticIterativeScheduler": {
        "num_train_timesteps": 40,
        "sigma_min": 0.002,
        "sigma_max": 80.0,
        "sigma_data": 0.5,
        "rho": 7.0,
    },
    "FlowMatchEulerDiscreteScheduler": {},
}
"""Values that matter to the noise, where a configuration has none."""


def _ddpm_scheduler(given: Mapping[str, Any], where: str, kind: str | None) -> DDPMScheduler:
    """Build the scheduler of a DDPM with the betas of another."""
    with ONE_AT_A_TIME:
        from diffusers import DDPMScheduler
    with ONE_AT_A_TIME:
        from diffusers.schedulers.scheduling_ddpm import betas_for_alpha_bar

    if kind is None and not {"beta_schedule", "trained_betas"} & given.keys():
        raise ValueError(f"{where} has neither _class_name nor beta_schedule: its noise is not known to be a DDPM's")
    _check_noise(given, where)
    parameters = list(inspect.signature(DDPMScheduler.__init__).parameters.values())[1:]
    values = {parameter.name: parameter.default for parameter in parameters} | SCHEDULERS[kind or "DDPMScheduler"]
    values |= {key: value for key, value in given.items() if key in values}
    if given.get("predict_epsilon") is False and "prediction_type" not in given:  # as early diffusers wrote it
        values["prediction_type"] = "sample"
    fields = Fields(values, where)
    count = fields.integer("num_train_timesteps", 1, MAX_TIMESTEPS)
    fields.choice("prediction_type", _PREDICTIONS)
    fields.choice("beta_schedule", _BETA_SCHEDULES)
    fields.number("beta_start", 0, 0.9999)
    fields.number("beta_end", 0, 0.9999)
    if values["trained_betas"] is not None:
        values["trained_betas"] = fields.numbers("trained_betas", 0, 1, count)
    elif values["beta_schedule"] == "exp":  # of HeunDiscreteScheduler alone
        values["trained_betas"] = betas_for_alpha_bar(count, alpha_transform_type="exp").tolist()
        values["beta_schedule"] = "linear"
    fields.choice("rescale_betas_zero_snr", (True, False))
    # What follows matters to samplers alone.
    fields.choice("clip_sample", (True, False))
    fields.number("clip_sample_range", 0, 1e6)
    fields.choice("thresholding", (True, False))
    fields.number("dynamic_thresholding_ratio", 0, 1)
    fields.number("sample_max_value", 0, 1e6)
    fields.integer("steps_offset", 0, MAX_TIMESTEPS)
    fields.choice("timestep_spacing", ("leading", "linspace", "trailing"))
    kinds = ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned", "learned_range")
    fields.choice("variance_type", kinds)
    scheduler = DDPMScheduler(**values)
    abar = scheduler.alphas_cumprod
    if not bool(abar.isfinite().all()) or float(abar[-1]) >= 1:
        raise ValueError(f"{where}: beta_start, beta_end and beta_schedule make no noise")
    return scheduler


def scheduler_of(scheduler: Any, where: str) -> SchedulerMixin:
    """Return the forward process of a loaded scheduler.

    Parameters
    ----------
    scheduler : diffusers.SchedulerMixin
    where : str
        What errors name.

    Returns
    -------
    SchedulerMixin
        As `training_scheduler` does.

    Raises
    ------
    ValueError
        For another kind of noise, and for a scheduler whose noise levels are not those of its configuration.
    """
    config = getattr(scheduler, "config", None)
    if not isinstance(config, Mapping):
        raise ValueError(f"{where} must be a scheduler of diffusers; got a {type(scheduler).__name__}")
    kinds = [kind.__name__ for kind in type(scheduler).__mro__]
    known = next((kind for kind in kinds if kind in SCHEDULERS or kind in _OTHERS), kinds[0])
    found = training_scheduler({key: value for key, value in config.items() if key != "_class_name"}, where, known)
    own, expected = getattr(scheduler, "alphas_cumprod", None), getattr(found, "alphas_cumprod", None)
    if isinstance(own, Tensor) and expected is not None and not _equal(own.detach().cpu().float(), expected):
        raise ValueError(f"{where} has other alphas_cumprod than its configuration makes")
    return found


def _check_noise(config: Mapping[str, Any], where: str) -> None:
    """Raise ValueError where a sampler with betas was set to another kind of noise."""
    if config.get("use_flow_sigmas", False) is not False:
        raise ValueError(
            f"{where}: use_flow_sigmas must be false or true, and true only for {', '.join(_FLOW_SAMPLERS)}; got "
            f"{shown(config['use_flow_sigmas'])}"
        )
    # Euler's time is then the logarithm of the noise level, as in EDM.
    if config.get("timestep_type", "discrete") != "discrete":
        raise ValueError(f"{where}: timestep_type must be 'discrete'; got {shown(config['timestep_type'])}")
    for key in ("sigma_data", "snr_shift_scale"):
        if key in config:
            raise ValueError(f"{where}: {key} is not of a DDPM's noise; only schedulers without it can be used")


def _equal(one: Tensor, two: Tensor) -> bool:
    # A sampler may keep the last level just above zero, where it divides by it.
    return one.shape == two.shape and torch.allclose(one, two, rtol=1e-4, atol=1e-6)
