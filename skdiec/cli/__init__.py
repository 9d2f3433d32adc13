"""The command line: ``skdiec cluster`` and its companions.

What takes seconds to import is imported inside the commands, which have said what they are about by then.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from skdiec._version import __version__
from skdiec.cli.clustering import cluster
from skdiec.cli.console import arguments, fail
from skdiec.cli.describing import info
from skdiec.cli.predicting import predict
from skdiec.cli.pretraining import pretrain
from skdiec.cli.reporting import report
from skdiec.cli.sampling import sample
from skdiec.cli.searching import search

_UsageError: Any = typer.BadParameter.__base__  # of click, or of the part of it that newer versions of typer hold


class _Commands(TyperGroup):
    """The commands. What they were called with is kept, for the line that goes on after Ctrl-C."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        arguments.set(tuple(args))
        with _told_in_one_line():
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        with _told_in_one_line():
            return super().invoke(ctx)


@contextmanager
def _told_in_one_line() -> Iterator[None]:
    """Tell of wrong options in a line, in place of typer's box."""
    try:
        yield
    except _UsageError as error:
        if not arguments.get():  # what is to be shown is the help
            raise
        text = str(error.message or "")
        if text.startswith("must ") and error.param is not None:
            name = error.param.opts[0]
            text = f"{name if name.startswith('-') else error.param.metavar or name} {text}"
        else:
            place = error.ctx.command_path if error.ctx is not None else "skdiec"
            text = f"{error.format_message().rstrip('.')}; see {place} --help"
        fail(text, 2)


app = typer.Typer(cls=_Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"skdiec {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Cluster images with what a diffusion model knows of them."""


for command in (cluster, predict, search, report, sample, info, pretrain):
    app.command()(command)
