"""``tidewire config``: what a server here would be configured as."""

from pathlib import Path
from typing import Any

import click

from tidewire.cli.configuration import config_options, load_config, unknown_options
from tidewire.cli.groups import Group
from tidewire.cli.output import Output
from tidewire.cli.settings import Settings, output_options, pass_settings


@click.group(cls=Group)
def config() -> None:
    """Show the server's configuration."""


@config.command(
    context_settings=unknown_options(),
    epilog="""\b
Examples:
  tidewire config show --origin
  tidewire config show --config tidewire.toml --json
""",
)
@click.option("--origin", is_flag=True, help="Say where each value is from.")
@config_options
@output_options
@pass_settings
def show(settings: Settings, /, origin: bool, config: Path | None = None, **flags: Any) -> None:
    """Print every option with its value, as TOML that a server can read."""
    loaded = load_config(config, flags)
    from tidewire_server.ops.config import to_builtins
    from tidewire_server.ops.config_sources import describe

    values = to_builtins(loaded.config)
    out = Output()
    if settings.json:
        if not origin:
            out.record(values)
            return
        for section, options in values.items():
            for key, value in options.items():
                source = loaded.origins[section, key]
                out.record({"option": f"{section}.{key}", "value": value, "origin": source})
        return
    for section, options in values.items():
        out.line(f"[{section}]")
        for key, value in options.items():
            remark = loaded.origins[section, key] if origin else describe(section, key)
            out.line(f"{key} = {to_toml(value)}  # {remark}")
        out.line("")


def to_toml(value: Any) -> str:
    """A value as TOML writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # JSON's escapes are TOML's, but for DEL, which TOML wants escaped.
        import json

        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list):
        return "[" + ", ".join(to_toml(item) for item in value) + "]"
    if isinstance(value, dict):
        pairs = (f"{key} = {to_toml(item)}" for key, item in value.items())
        return "{ " + ", ".join(pairs) + " }"
    return str(value)
