"""The root of the commands, and what becomes of their errors."""

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Final

import click

from tidewire.cli.groups import Entry, LazyGroup
from tidewire.cli.settings import ReaderGone, Settings, Terminated, global_parameters

EXIT_OK: Final = 0
EXIT_FAILURE: Final = 1
EXIT_USAGE: Final = 2
EXIT_INTERRUPTED: Final = 130
EXIT_TERMINATED: Final = 143

COMMANDS: Final = {
    "serve": Entry("tidewire.cli.serve", "serve", "Run the server."),
    "pub": Entry("tidewire.cli.publish", "pub", "Publish events."),
    "sub": Entry("tidewire.cli.subscribe", "sub", "Receive events, live or from a stream."),
    "stream": Entry("tidewire.cli.streams", "stream", "Make, list and delete durable streams."),
    "consumer": Entry("tidewire.cli.streams", "consumer", "Make, list and delete consumers."),
    "ask": Entry("tidewire.cli.queries", "ask", "Send a query and print the answer."),
    "answer": Entry("tidewire.cli.queries", "answer", "Answer queries with a text or a program."),
    "state": Entry("tidewire.cli.state", "state", "Read, write and watch shared state."),
    "control": Entry("tidewire.cli.control", "control", "Send commands to nodes, or obey them."),
    "members": Entry("tidewire.cli.members", "members", "Show who is alive."),
    "checkpoint": Entry("tidewire.cli.checkpoints", "checkpoint", "List and show checkpoints."),
    "info": Entry("tidewire.cli.info", "info", "Show what a server is and allows."),
    "health": Entry("tidewire.cli.health", "health", "Ask whether a server takes calls."),
    "wires": Entry("tidewire.cli.wires", "wires", "List the wires that can be used here."),
    "certs": Entry("tidewire.cli.certs", "certs", "Make certificates for development."),
    "check-wire": Entry("tidewire.cli.check_wire", "check_wire", "Check that a wire conforms."),
    "bench": Entry("tidewire.cli.bench", "bench", "Measure how fast a server is from here."),
    "js": Entry("tidewire.cli.javascript", "js", "Copy the JavaScript client for browsers."),
    "config": Entry("tidewire.cli.config", "config", "Show the server's configuration."),
    "completion": Entry("tidewire.cli.completion", "completion", "Print shell completion."),
}

EPILOG: Final = """\b
Examples:
  tidewire serve
  tidewire sub 'weather.>' &
  tidewire pub weather.oslo '{"temperature": -3}'
  tidewire --url tls://host:7401 --ca ca.pem --cert me.pem --key me.key info
"""


def _print_version(ctx: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if not wanted or ctx.resilient_parsing:
        return
    from importlib.metadata import PackageNotFoundError, version

    try:
        click.echo(f"tidewire {version('tidewire')} (Python {sys.version.split()[0]})")
    except PackageNotFoundError:
        click.echo("tidewire, not installed: run from its sources")
    ctx.exit(EXIT_OK)


def make_root() -> LazyGroup:
    """Build the root; cheap, as no command is loaded."""
    version = click.Option(
        ["--version"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_print_version,
        help="Show the version.",
    )
    return LazyGroup(
        "tidewire",
        entries=COMMANDS,
        params=[*global_parameters(), version],
        help="Messaging for microservices: events, queries, state, control, members, checkpoints.",
        epilog=EPILOG,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run one command.

    Args:
        arguments: Words after the program's name; ``None`` takes the process's own.

    Returns:
        0 done, 1 failed, 2 wrong usage, 130 interrupted, 143 terminated; ``health`` has codes of
        its own.

    """
    settings = Settings()
    try:
        outcome = make_root().main(
            list(arguments) if arguments is not None else None,
            prog_name="tidewire",
            standalone_mode=False,
            obj=settings,
        )
        sys.stdout.flush()
    except (click.Abort, KeyboardInterrupt):
        click.echo(err=True)
        return EXIT_INTERRUPTED
    except Terminated:
        return EXIT_TERMINATED
    except click.exceptions.Exit as leave:
        return leave.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (ReaderGone, BrokenPipeError):
        _leave_broken_pipe()
        return EXIT_OK
    except Exception as error:  # noqa: BLE001 (the last place to tell a person what went wrong)
        return _tell(error, settings)
    return outcome if isinstance(outcome, int) else EXIT_OK


def _leave_broken_pipe() -> None:
    """Who read us has gone; let nothing fail when the interpreter flushes at its end."""
    descriptor = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(descriptor, sys.stdout.fileno())
    except OSError:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 (lives on)
    finally:
        os.close(descriptor)


def _tell(error: Exception, settings: Settings) -> int:
    """Say in one sentence what went wrong, and in another what to do."""
    if settings.debug:
        traceback.print_exception(error)
    from tidewire.cli.advice import explain

    click.echo(f"tidewire: {explain(error, settings)}", err=True)
    return EXIT_FAILURE
