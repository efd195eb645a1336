"""``tidewire wires``: which schemes can be used here, and why others cannot."""

import click

from tidewire.cli.output import Output
from tidewire.cli.settings import Settings, output_options, pass_settings

_ENCRYPTED = {True: "yes", False: "no", None: "?"}


@click.command(epilog="\b\nExamples:\n  tidewire wires\n  tidewire wires --json")
@output_options
@pass_settings
def wires(settings: Settings) -> None:
    """List the wires that are known here; asks no server."""
    from tidewire.transport import wires as known

    out = Output()
    if settings.json:
        for one in known():
            out.record(one)
        return
    out.table(
        ("wire", "client", "server", "encrypted", "why not"),
        (
            (
                f"{one.scheme}://",
                "yes" if one.client else "no",
                "yes" if one.server else "no",
                _ENCRYPTED[one.encrypted],
                one.reason,
            )
            for one in known()
        ),
    )
