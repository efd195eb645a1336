"""Options that many commands take, before the command's name or after it."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import click

DEFAULT_URL: Final = "tcp://127.0.0.1:7401"
DEFAULT_TIMEOUT_S: Final = 10.0
TIMEOUT_S_MAX: Final = 86_400.0

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


class Terminated(Exception):
    """SIGTERM came."""


class ReaderGone(Exception):
    """
    Who read our standard output has gone. No `BrokenPipeError`, which click would make an exit of.
    """


@dataclass(slots=True)
class Settings:
    """What was said of the server, and of what to write."""

    url: str = DEFAULT_URL
    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    server_name: str | None = None
    timeout_s: float = DEFAULT_TIMEOUT_S
    json: bool = False
    quiet: bool = False
    debug: bool = False

    def note(self, text: str) -> None:
        """Tell the person at the terminal something that is no result; not with -q."""
        if not self.quiet:
            click.echo(text, err=True)

    def progress(self, text: str) -> None:
        """Show how far a long work is, on one line of the terminal; nothing in a pipe."""
        if not self.quiet and sys.stderr.isatty():
            click.echo(f"\r\x1b[K{text}", err=True, nl=False)

    def end_progress(self) -> None:
        """Clear that line."""
        self.progress("")


pass_settings: Final = click.make_pass_decorator(Settings, ensure=True)


def _keep(ctx: click.Context, parameter: click.Parameter, value: object) -> None:
    """Note what was given; what was not leaves what was given before the command's name."""
    if value is not None and parameter.name is not None:
        setattr(ctx.ensure_object(Settings), parameter.name, value)


def _option(*names: str, env: str | None = None, **options: Any) -> Callable[[bool], click.Option]:
    def make(outermost: bool) -> click.Option:
        # Variables count once, at the outermost place: else they would cover a flag given there.
        more: dict[str, Any] = {"envvar": env, "show_envvar": True} if outermost and env else {}
        # A flag without a default must not become False, which would cover one given before.
        return click.Option(
            names, expose_value=False, callback=_keep, default=None, **more, **options
        )

    return make


_CONNECTION: Final = (
    _option("--url", env="TIDEWIRE_URL", metavar="URL", help=f"Server.  [default: {DEFAULT_URL}]"),
    _option("--ca", env="TIDEWIRE_CA", metavar="FILE", help="Authorities of the server (PEM)."),
    _option("--cert", env="TIDEWIRE_CERT", metavar="FILE", help="Own certificate (PEM)."),
    _option("--key", env="TIDEWIRE_KEY", metavar="FILE", help="Its private key (PEM)."),
    _option(
        "--server-name",
        env="TIDEWIRE_SERVER_NAME",
        metavar="NAME",
        help="Name in the server's certificate, if not the URL's host.",
    ),
    _option(
        "--timeout",
        "timeout_s",
        env="TIDEWIRE_TIMEOUT",
        metavar="SECONDS",
        type=click.FloatRange(0.001, TIMEOUT_S_MAX),
        help=f"Time for each request.  [default: {DEFAULT_TIMEOUT_S:g}]",
    ),
)
_OUTPUT: Final = (
    _option("--json", is_flag=True, help="Write JSON, one object on each line."),
    _option("-q", "--quiet", is_flag=True, help="Write results only, no remarks."),
)
_DEBUG: Final = _option("--debug", is_flag=True, help="Show tracebacks of what goes wrong.")


def global_parameters() -> list[click.Parameter]:
    """The options as they stand before a command's name, where variables are read too."""
    return [make(True) for make in (*_CONNECTION, *_OUTPUT, _DEBUG)]


def output_options(function: FunctionT) -> FunctionT:
    """Let a command take --json and -q."""
    return _add(function, *_OUTPUT, _DEBUG)


def connection_options(function: FunctionT) -> FunctionT:
    """Let a command take --url, --ca and the like, and those of its output."""
    return _add(function, *_CONNECTION, *_OUTPUT, _DEBUG)


def _add(function: FunctionT, *makes: Callable[[bool], click.Option]) -> FunctionT:
    parameters = function.__dict__.setdefault("__click_params__", [])
    parameters.extend(make(False) for make in reversed(makes))
    return function
