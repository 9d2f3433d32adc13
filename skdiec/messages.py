"""What messages show of the values that people pass: of bounded length, whatever they are."""

from __future__ import annotations

import reprlib

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
