"""``tidewire serve``: run the server. Its options are those of the configuration."""

from pathlib import Path
from typing import Any

import click

from tidewire.cli.configuration import config_options, load_config, unknown_options


@click.command(
    context_settings=unknown_options(),
    epilog="""\b
Every option of `tidewire config show` is a flag (--log-level), a variable (TIDEWIRE_LOG__LEVEL)
and a key of the file ([log] level). SIGTERM drains: health says no, streams are told, work in
flight finishes, exit code 0.

\b
Examples:
  tidewire serve
  tidewire serve --server-data-dir data --listen tcp://127.0.0.1:0
  tidewire serve --listen unix:///run/tidewire.sock --listen grpc+unix:///run/tidewire-grpc.sock
  tidewire serve --config tidewire.toml
""",
)
@config_options
def serve(config: Path | None = None, **flags: Any) -> int:
    """Run the server until it is told to stop."""
    loaded = load_config(config, flags)
    from tidewire_server.app import run

    return run(loaded.config)
