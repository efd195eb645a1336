"""The server's options as flags of a command, made from their definition."""

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

if TYPE_CHECKING:
    from tidewire_server.ops.config_sources import Loaded

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])

BETWEEN: Final = "__"
"""Stands between section and key in the names of parameters, as in those of variables."""
# What the table of options does not say by itself: shorter words for what is said most.
SHORTER = {
    ("listen", "urls"): "--listen",
    ("server", "data_dir"): "--data-dir",
    ("server", "node_id"): "--node-id",
    ("admin", "address"): "--admin",
}


def config_options(function: FunctionT) -> FunctionT:
    """Let a command take --config, and a flag for every option of the server."""
    parameters: list[click.Parameter] = function.__dict__.setdefault("__click_params__", [])
    if not is_server_installed():
        # Take any words, so that what is said is which package is missing.
        words = click.Argument(["words"], nargs=-1, type=click.UNPROCESSED, expose_value=False)
        parameters.append(words)
        return function
    from tidewire_server.ops.config_sources import describe, keys, sections

    for section, kind in reversed(sections().items()):
        for key in reversed(keys(kind)):
            shorter = SHORTER.get((section, key))
            names = [f"--{section}-{key}".replace("_", "-"), f"{section}{BETWEEN}{key}"]
            repeated = shorter == "--listen"
            parameters.append(
                click.Option(
                    [shorter, *names] if shorter else names,
                    metavar=_metavar(key),
                    help=describe(section, key).capitalize() + ".",
                    multiple=repeated,
                    default=None,
                )
            )
    parameters.append(
        click.Option(
            ["--config"],
            type=click.Path(path_type=Path, dir_okay=False),
            metavar="FILE",
            help="Configuration file (TOML); else the one TIDEWIRE_CONFIG names.",
        )
    )
    return function


class BadConfiguration(click.ClickException):
    """The configuration cannot be used; wrong usage, as a wrong flag is."""

    exit_code = 2


def load_config(file: Path | None, flags: Mapping[str, Any]) -> "Loaded":
    """Read the configuration as a server with these flags would."""
    from tidewire_server.ops.config import ConfigError
    from tidewire_server.ops.config_sources import load

    given = {}
    for name, value in flags.items():
        if value is None or value == ():
            continue
        option = name.replace(BETWEEN, ".", 1)
        given[option] = value if isinstance(value, str) else ",".join(value)
    try:
        return load(file, flags=given)
    except ConfigError as error:
        raise BadConfiguration(error.message) from error


def is_server_installed() -> bool:
    """Say whether the packages of the extra "server" that configuration needs are there."""
    return find_spec("tidewire_server") is not None and find_spec("msgspec") is not None


def unknown_options() -> dict[str, Any]:
    """Settings of a command that takes the server's options, known here or not."""
    return {"ignore_unknown_options": not is_server_installed()}


def _metavar(key: str) -> str:
    if key.endswith(("_s", "_s_max")):
        return "SECONDS"
    if "bytes" in key:
        return "BYTES"
    return "N" if key.endswith("_max") else "VALUE"
