"""What commands say: results on standard output; progress, warnings and errors on standard error."""

from __future__ import annotations

import json
import logging
import math
import os
import shlex
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NoReturn

import typer

arguments: ContextVar[tuple[str, ...]] = ContextVar("arguments", default=())
"""What the command was called with."""

_SAME_NAMES = (
    *("image_shape", "value_range", "device", "backbone", "architecture"),
    *("channels", "layers_per_block", "patch_size", "max_timestep", "standardize", "dtype"),
)
_OPTIONS = {
    "max_minutes": "minutes",
    "random_state": "seed",
    **{name: name.replace("_", "-") for name in _SAME_NAMES},
}
"""Options by the parameters that the library's errors name."""

QUIET_SECONDS = 2.0
"""How long a piece of work may take before its progress is shown."""

LINE_SECONDS = 10.0
"""Time between two lines of progress, where standard error is no terminal."""

_LEAST_SHARE = 0.05
"""Of the work, for a first estimate from it alone."""

_BAR = "{desc} {percentage:3.0f} % {bar} {remaining} left"
_LINE = "{desc}: {percentage:.0f} %, {remaining} left"

Report = Callable[[int, int], object]


class Console:
    """What a command says while it works, on standard error.

    Parameters
    ----------
    quiet : bool, default=False
        Say nothing but warnings.

    Attributes
    ----------
    warnings : list of str
        All that was warned of.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.warnings: list[str] = []

    def say(self, text: str) -> None:
        """Say what happens now."""
        if not self.quiet:
            _write(text)

    def warn(self, text: str) -> None:
        """Warn, once for each text."""
        text = " ".join(text.removeprefix("X: ").split())
        if text not in self.warnings:
            self.warnings.append(text)
            _write(f"Warning: {text}")

    @contextmanager
    def bar(self, text: str) -> Iterator[Report]:
        """Show how far a piece of work is, and how long it will take, from its third second on.

        Parameters
        ----------
        text : str

        Returns
        -------
        context manager
            Of a function to be called as ``report(done, total)``.
        """
        if self.quiet:
            yield lambda done, total: None
        elif not sys.stderr.isatty():
            yield _lines(text)
        else:
            with ExitStack() as stack:
                yield _bar(text, stack)

    @contextmanager
    def telling(self, name: str) -> Iterator[None]:
        """Say what a logger of the library says.

        Parameters
        ----------
        name : str
            Of the logger.

        Returns
        -------
        context manager
        """
        logger, handler = logging.getLogger(name), _Saying(self)
        level = logger.level
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        try:
            yield
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Say the library's warnings in a line each, and keep those of others to themselves."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", UserWarning)
            warnings.filterwarnings("ignore", message="Persisting input arguments took")  # of joblib's cache
            warnings.showwarning = lambda message, *_, **__: self.warn(str(message))
            yield


@contextmanager
def command(
    quiet: bool = False, *, goes_on: Callable[[], str] = lambda: "the same command begins again"
) -> Iterator[Console]:
    """Run a command: errors that users can do something about are told of in one line.

    Parameters
    ----------
    quiet : bool, default=False
    goes_on : callable
        Returns what to say of how to go on after Ctrl-C.

    Returns
    -------
    context manager
        Of a Console. It ends the program with 2 for wrong arguments, 1 for other failures, and 130 for Ctrl-C.
    """
    console = Console(quiet)
    try:
        with console.listening():
            yield console
    except BrokenPipeError:  # whoever read the results has seen enough
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - Python flushes it when it ends
        raise typer.Exit(1) from None
    except (ValueError, TypeError, ImportError, FileNotFoundError) as error:
        message, code = str(error), 2
    except (OSError, FloatingPointError) as error:
        message, code = str(error), 1
    except KeyboardInterrupt:
        message, code = f"stopped; {goes_on()}", 130
    else:
        return
    fail(_by_option(message), code)


def fail(message: str, code: int) -> NoReturn:
    """Tell of an error in one line, and end the program.

    Parameters
    ----------
    message : str
    code : int
        With which it ends.

    Returns
    -------
    never
    """
    _write(f"Error: {' '.join(message.split())}")
    raise typer.Exit(code)


def command_line() -> str:
    """Return the line that runs this command again, as a shell takes it.

    Returns
    -------
    str
    """
    return shlex.join(["skdiec", *arguments.get()])


def show(text: str) -> None:
    """Write a result.

    Parameters
    ----------
    text : str
    """
    typer.echo(printable(text))


def show_json(value: Any) -> None:
    """Write a result as JSON.

    Parameters
    ----------
    value : object
        As for `json_of`.
    """
    typer.echo(json_of(value))


def json_of(value: Any) -> str:
    """Return strict JSON, in ASCII: what is no number is null, and what is a path is a string.

    Parameters
    ----------
    value : object
        Of plain values, paths, and arrays and numbers of numpy.

    Returns
    -------
    str

    Examples
    --------
    >>> json_of({"a": float("nan"), "b": (1,)}).split()
    ['{', '"a":', 'null,', '"b":', '[', '1', ']', '}']
    """
    return json.dumps(_plain(value), indent=1, allow_nan=False)


def printable(text: str) -> str:
    r"""Return a text that any terminal takes, with what names of files may hold beside it written as escapes.

    Parameters
    ----------
    text : str

    Returns
    -------
    str

    Examples
    --------
    >>> printable("caf\udce9.jpg")
    'caf\\udce9.jpg'
    """
    return text.encode("utf-8", "backslashreplace").decode()


def shown_path(path: Path | str) -> str:
    """Return the name of a file in one line.

    Parameters
    ----------
    path : Path or str

    Returns
    -------
    str
    """
    return "".join(mark if mark.isprintable() else repr(mark)[1:-1] for mark in str(path))


class StageProgress:
    """A callback of scikit-learn that shows the stages of a fit.

    Parameters
    ----------
    console : Console
    names : mapping of str to str
        What to say of each stage.
    """

    def __init__(self, console: Console, names: Mapping[str, str]) -> None:
        self._console, self._names = console, names
        self._open: Any = None
        self._report: Report | None = None
        self._done = 0

    def setup(self, estimator: Any, context: Any) -> None:
        """Do nothing: stages say when they begin."""

    def teardown(self, estimator: Any, context: Any) -> None:
        """End the bar of a stage that was interrupted."""
        self._close()

    def on_fit_task_begin(self, estimator: Any, context: Any) -> None:
        """Say which stage begins."""
        if not _is_stage(context):
            return
        name = self._names[context.task_name]
        self._console.say(name)
        self._done = 0
        if context.max_subtasks:
            self._open = self._console.bar(name.partition(",")[0])
            self._report = self._open.__enter__()

    def on_fit_task_end(self, estimator: Any, context: Any) -> None:
        """Count a step, or end a stage."""
        if _is_stage(context):
            self._close()
        elif context.parent is not None and _is_stage(context.parent) and self._report is not None:
            self._done += 1
            self._report(self._done, context.parent.max_subtasks)

    def _close(self) -> None:
        if self._open is not None:
            self._open.__exit__(None, None, None)
        self._open = self._report = None


def _bar(text: str, stack: ExitStack) -> Report:
    """Return what moves a bar in a terminal, which ends with the stack."""
    from tqdm import tqdm

    bar: tqdm | None = None  # until it is known how much there is to do

    def report(done: int, total: int) -> None:
        nonlocal bar
        if bar is None:
            size = shutil.get_terminal_size()  # tqdm shows nothing where a terminal says that it has none
            options = {
                "ncols": size.columns,
                "nrows": size.lines,
                "delay": QUIET_SECONDS,
                "bar_format": _BAR,
                "leave": False,
                "file": sys.stderr,
            }
            bar = stack.enter_context(tqdm(desc=text, total=total, **options))
        bar.update(done - bar.n)

    return report


def _lines(text: str) -> Report:
    """Return what writes a line of progress now and then, for files and pipes."""
    from tqdm import tqdm

    started = told = time.monotonic()
    began, first, is_first = started, 0, True

    def report(done: int, total: int) -> None:
        nonlocal told, began, first, is_first
        now = time.monotonic()
        if now - started < QUIET_SECONDS:  # what was done by an earlier call says nothing of how long the rest takes
            began, first = now, done
        elif is_first and done < _LEAST_SHARE * total:  # others may follow at once
            told = now
        elif now - told >= LINE_SECONDS:
            told = now
            rate = (done - first) / (now - began)
            _write(tqdm.format_meter(done, total, now - started, rate=rate or None, prefix=text, bar_format=_LINE))
        is_first = False

    return report


def _by_option(message: str) -> str:
    """Return an error of the library with the option in place of the parameter."""
    name, must, rest = message.partition(" must ")
    return f"--{_OPTIONS[name]}{must}{rest}" if name in _OPTIONS else message


class _Saying(logging.Handler):
    """Has a console say what is logged."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        self._console.say(record.getMessage())


def _is_stage(context: Any) -> bool:
    return context.parent is not None and context.parent.parent is None


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, (list, tuple, set)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)


def _write(text: str) -> None:
    if not sys.stderr.isatty():
        typer.echo(printable(text), err=True)
        return
    from tqdm import tqdm

    with tqdm.external_write_mode(file=sys.stderr):  # above the bar
        typer.echo(printable(text), err=True)
