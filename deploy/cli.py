"""The command `reseen`. Commands import what they need when they run, so that `--help` answers at once."""

import sys
from typing import Annotated

import typer

from deploy import (
    command_serve,
    commands_client,
    commands_gallery,
    commands_generations,
    commands_removal,
    commands_setup,
)
from deploy.terminal import MISTAKE, Commands, prepare_process, stop_on_sigterm

app = typer.Typer(
    name="reseen",
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Finds every image of the same thing, in collections of millions.",
    epilog="Exit codes: 0 done, 1 failed, 2 the caller's mistake, 130 stopped (the next run resumes).",
)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"reseen {version('reseen')}")
        raise typer.Exit


@app.callback()
def root(
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error came from.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    from ingest.packages import check_packages

    prepare_process()
    check_packages()


for commands in (
    commands_gallery,
    commands_generations,
    commands_removal,
    command_serve,
    commands_client,
    commands_setup,
):
    commands.add_to(app)


def main() -> None:
    """The entry point; ends the process with one of the exit codes of `deploy.terminal`."""
    stop_on_sigterm()
    try:
        app(prog_name="reseen")
    except UnicodeError as error:  # arguments that are not text
        print(f"reseen: {error}", file=sys.stderr)
        sys.exit(MISTAKE)


if __name__ == "__main__":
    main()
