"""Devices: which one computes, in which number formats, with how much memory."""

from __future__ import annotations

import os

import torch

from skdiec.messages import shown


def default_device(device: str | torch.device | None) -> torch.device:
    """Resolve a device.

    Parameters
    ----------
    device : str, torch.device or None
        None is CUDA where there is one, else the CPU.

    Returns
    -------
    torch.device

    Raises
    ------
    ValueError
        For what torch knows no device by, what this machine does not have, and what computes nothing ("meta").
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"device must be one that torch knows, such as 'cpu' or 'cuda'; got {shown(device)}"
        ) from error
    try:
        torch.ones(1, device=found).sum().item()
    except (AssertionError, ImportError, RuntimeError) as error:  # which of them depends on the device
        reason = str(error).partition("\n")[0]
        raise ValueError(f"device must be one that this machine computes on; got {str(found)!r} ({reason})") from error
    return torch.device("cpu") if found.type == "cpu" else found  # torch takes any number for its one CPU


def _computes_in(precision: str, device: torch.device) -> bool | None:
    """Return whether a device has instructions for a number format, None where nothing is known."""
    if device.type == "cuda":
        return precision != "bf16" or torch.cuda.get_device_capability(device)[0] >= 8
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)() if device.type == "cpu" else {}
    found = [capabilities[name] for name in (f"avx512_{precision}", f"amx_{precision}") if name in capabilities]
    return any(found) if found else None


def computes_in_dtype(dtype: torch.dtype, device: torch.device) -> bool:
    """Return whether weights of a number format can stay in it on a device.

    Parameters
    ----------
    dtype : torch.dtype
    device : torch.device

    Returns
    -------
    bool
        True for float32, and for half precision on GPUs that compute with it.
    """
    if dtype not in (torch.float16, torch.bfloat16):
        return True
    return device.type != "cpu" and _computes_in("bf16" if dtype == torch.bfloat16 else "fp16", device) is not False


def has_native_bf16(device: torch.device) -> bool:
    """Return whether a device is known to have instructions for bfloat16.

    Parameters
    ----------
    device : torch.device

    Returns
    -------
    bool
    """
    return _computes_in("bf16", device) is True


def is_emulated(precision: str, device: torch.device) -> bool:
    """Return whether a device is known to have no instructions for a number format, which makes it many times slower.

    Parameters
    ----------
    precision : {"fp32", "bf16", "fp16"}
    device : torch.device

    Returns
    -------
    bool
        False where nothing is known.
    """
    return _computes_in(precision, device) is False


def total_memory(device: torch.device) -> int | None:
    """Return the bytes of memory that a device has, used or not.

    Parameters
    ----------
    device : torch.device

    Returns
    -------
    int or None
        None where nothing is known.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if device.type == "cpu" else None
    except (AttributeError, OSError, ValueError):  # not on every system
        return None
