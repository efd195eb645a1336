"""``tidewire check-wire``: the conformance kit over one wire."""

import logging

import click

from tidewire.cli.output import Output
from tidewire.cli.settings import Settings, output_options, pass_settings


@click.command(
    epilog="""\b
A server is started on URL for each behaviour, and a client connects to it. The exit code is 0 when
nothing fails: what the wire cannot carry and says so by its typed error is "unsuitable".

\b
Examples:
  tidewire check-wire tcp://127.0.0.1:0
  tidewire check-wire --list
  tidewire check-wire third://127.0.0.1:0 --lacks streams --only unary_unary --only text_metadata
"""
)
@click.argument("listen_url", metavar="URL", default="")
@click.option("--lacks", multiple=True, metavar="ABILITY", help="The wire does not carry this.")
@click.option("--only", multiple=True, metavar="BEHAVIOUR", help="Only this; may be repeated.")
@click.option("--markdown", is_flag=True, help="Write a table of Markdown.")
@click.option("--list", "list_", is_flag=True, help="Show the behaviours and what they prove.")
@output_options
@pass_settings
def check_wire(
    settings: Settings,
    listen_url: str,
    lacks: tuple[str, ...],
    only: tuple[str, ...],
    markdown: bool,
    list_: bool,
) -> int:
    """Show that a wire does what every wire must: anybody's, registered by an entry point."""
    from tidewire.testing import ABILITIES, BEHAVIOURS, check_transport_blocking

    out = Output()
    if list_:
        rows = [(one.name, ", ".join(sorted(one.needs)), one.proves) for one in BEHAVIOURS]
        out.table(("behaviour", "needs", "proves"), rows)
        return 0
    if not listen_url:
        raise click.MissingParameter(param_hint="URL", param_type="argument")
    unknown = sorted(set(lacks) - ABILITIES.keys())
    if unknown:
        raise click.BadParameter(f"{unknown[0]} is none of {', '.join(ABILITIES)}")
    # Handlers of the kit fail on purpose; that is no news.
    logging.getLogger().addHandler(logging.NullHandler())
    carries = set(ABILITIES) - set(lacks) if lacks else None
    report = check_transport_blocking(listen_url, carries=carries, only=only or None)
    if settings.json:
        out.line(report.json())
    elif markdown:
        out.line(report.markdown().rstrip())
    else:
        out.line(report.text())
    return 0 if report.ok else 1
