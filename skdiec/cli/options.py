"""Options that several commands share, and how their texts are read."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import typer


def whole(least: int, most: int | None = None) -> Callable[[str | int], int]:
    """Return what reads a whole number between two limits from the text of an option.

    Parameters
    ----------
    least : int
    most : int, default=None

    Returns
    -------
    callable
        It raises typer.BadParameter for another text.
    """
    limits = f"of at least {least}" if most is None else f"between {least} and {most}"

    def read(text: str | int) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least or (most is not None and value > most):
            raise typer.BadParameter(f"must be a whole number {limits}; got {text!r}")
        return value

    return read


def positive(text: str | float) -> float:
    """Return the number in the text of an option.

    Parameters
    ----------
    text : str or float

    Returns
    -------
    float

    Raises
    ------
    typer.BadParameter
        Where it is none, infinite, or not above 0.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise typer.BadParameter(f"must be a number above 0; got {text!r}")
    return value


def a_path(text: str | Path) -> Path:
    """Return a path.

    Parameters
    ----------
    text : str or Path

    Returns
    -------
    Path

    Raises
    ------
    typer.BadParameter
        For an empty text, as of a variable of the shell that has no value: it would be the current folder.
    """
    if not str(text):
        raise typer.BadParameter("must be a path; got ''")
    return Path(text)


Folder = Annotated[
    Path,
    typer.Argument(
        parser=a_path, metavar="FOLDER", help="Folder of images, or a text file with the path of one in each line."
    ),
]
Model = Annotated[
    Path,
    typer.Argument(parser=a_path, metavar="MODEL", help="Folder of a saved model, or one that skdiec cluster wrote."),
]
Clusters = Annotated[
    str | None, typer.Option("-k", "--clusters", metavar="N", help="Number of clusters; found if not said.")
]
Output = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", help="Where results go; FOLDER-clusters beside FOLDER if not said."),
]
Backbone = Annotated[
    str | None,
    typer.Option(help="Diffusion model to take instead of training one: a folder, or an id of the Hugging Face Hub."),
]
Minutes = Annotated[
    float,
    typer.Option(
        parser=positive,
        metavar="NUMBER",
        help="Time for all of it. What reading, search and report leave of it trains the backbone.",
    ),
]
TrainingMinutes = Annotated[
    float,
    typer.Option(
        parser=positive,
        metavar="NUMBER",
        help="Time for the training of the backbone. What follows takes some minutes more.",
    ),
]
Epochs = Annotated[
    int | None,
    typer.Option(parser=whole(1), metavar="N", help="Passes over the images at most, in the training of the backbone."),
]
ImageShape = Annotated[
    str | None,
    typer.Option(metavar="HEIGHT,WIDTH", help="Size that images are read at; found from the files if not said."),
]
ValueRange = Annotated[
    str | None, typer.Option(metavar="LOW,HIGH", help="Black and white in files of over 8 bits, such as 0,4095.")
]
Seed = Annotated[
    int, typer.Option(parser=whole(0, 2**32 - 1), metavar="N", help="Seed of all that is drawn at random.")
]
Device = Annotated[str | None, typer.Option(help="Such as cpu or cuda; a GPU where there is one, if not said.")]
AsJson = Annotated[bool, typer.Option("--json", help="Write the result as JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")]
Names = Annotated[Path | None, typer.Option(metavar="CSV", help="File with the columns cluster and name.")]

DEFAULT_MINUTES = 6.0

_Number = TypeVar("_Number", int, float)


def numbers(name: str, text: str | None, kind: type[_Number]) -> tuple[_Number, ...] | None:
    """Return the numbers in the text of an option.

    Parameters
    ----------
    name : str
        Of the option, for the message.
    text : str or None
        With commas between.
    kind : {int, float}

    Returns
    -------
    tuple or None

    Raises
    ------
    ValueError
        Where they are none.
    """
    if text is None:
        return None
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError as error:
        word = "whole numbers" if kind is int else "numbers"
        raise ValueError(f"--{name} must be {word} with commas between; got {text!r}") from error


def limits(name: str, text: str | None) -> tuple[float, float] | None:
    """Return the two numbers in the text of an option.

    Parameters
    ----------
    name : str
        Of the option, for the message.
    text : str or None
        With a comma between.

    Returns
    -------
    tuple or None

    Raises
    ------
    ValueError
        Where they are not two finite numbers, the lower one first.
    """
    found = numbers(name, text, float)
    if found is not None and not (len(found) == 2 and -math.inf < found[0] < found[1] < math.inf):
        raise ValueError(f"--{name} must be two numbers with a comma between, the lower one first; got {text!r}")
    return None if found is None else (found[0], found[1])


def number_of_clusters(text: str | None) -> int | Literal["auto"]:
    """Return what ``-k`` says.

    Parameters
    ----------
    text : str or None

    Returns
    -------
    int or str

    Raises
    ------
    ValueError
        For what is no number above 0.
    """
    if text is None or text == "auto":
        return "auto"
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"-k must be a whole number of at least 1; got {text!r}")
    return int(text)
