"""What users are told: values of bounded length, whatever they are, and warnings that point at the user's own line."""

from __future__ import annotations

import reprlib
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

MAX_LENGTH = 200

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = MAX_LENGTH


def shown(value: object) -> str:
    """Return a representation of a value that is short and can always be made.

    Parameters
    ----------
    value : object

    Returns
    -------
    str
        Its type where it has none: integers of thousands of digits, or objects that raise.

    Examples
    --------
    >>> shown(list(range(1000)))
    '[0, 1, 2, 3, 4, 5, ...]'
    """
    try:
        text = _SHORT.repr(value)
    except Exception:
        text = f"a {type(value).__name__}"
    return shortened(text, MAX_LENGTH)


def shortened(text: str, length: int = 200) -> str:
    """Return a text, cut where it is longer than that.

    Parameters
    ----------
    text : str
    length : int, default=200

    Returns
    -------
    str
    """
    return text if len(text) <= length else f"{text[:length]}..."


def duration(seconds: float) -> str:
    """Return seconds as people say them.

    Parameters
    ----------
    seconds : float

    Returns
    -------
    str

    Examples
    --------
    >>> duration(7.24), duration(129.9), duration(300)
    ('7 s', '2 min 9 s', '5 min')
    """
    minutes, rest = divmod(int(seconds), 60)
    parts = [f"{minutes} min"] if minutes else []
    if rest or not minutes:
        parts.append(f"{rest} s")
    return " ".join(parts)


_kept: ContextVar[list[str] | None] = ContextVar("_kept", default=None)


@contextmanager
def keeping_warnings() -> Iterator[list[str]]:
    """Keep the text of each warning of this library, whether it is shown or not.

    Returns
    -------
    context manager
        Of the list that the warnings of this thread go to.

    Examples
    --------
    >>> with warnings.catch_warnings(action="ignore"), keeping_warnings() as told:
    ...     warn("this image is blank")
    >>> told
    ['this image is blank']
    """
    told: list[str] = []
    before = _kept.set(told)
    try:
        yield told
    finally:
        _kept.reset(before)


def warn(message: str, category: type[Warning] | None = None) -> None:
    """Warn at the line of the user's code that called this library, by itself or through scikit-learn.

    Parameters
    ----------
    message : str
    category : type, default=None
        A kind of Warning; None is UserWarning.
    """
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in ("skdiec", "sklearn"):
        level, frame = level + 1, frame.f_back
    if (told := _kept.get()) is not None:
        told.append(message)
    warnings.warn(message, category, stacklevel=level)
