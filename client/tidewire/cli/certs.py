"""``tidewire certs``: certificates for development."""

from pathlib import Path

import click

from tidewire.cli.groups import Group
from tidewire.cli.output import Output
from tidewire.cli.settings import Settings, output_options, pass_settings


@click.group(cls=Group)
def certs() -> None:
    """Make certificates for development."""


@certs.command(
    epilog="""\b
What is in DIR and fits is kept, so it can be run again, for another client too. Keep ca.key away
from the servers: whoever has it can be anybody.

\b
Examples:
  tidewire certs init certs --host localhost --client laptop
  tidewire certs init certs --host broker.internal --host 10.0.0.5 --days 30
"""
)
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--host",
    "hosts",
    multiple=True,
    help="Name or address the server is reached by.  [default: localhost, 127.0.0.1, ::1]",
)
@click.option("--client", "clients", multiple=True, help="Name of a client; may be repeated.")
@click.option("--server", default="server", show_default=True, help="Name of the server.")
@click.option("--days", default=90, show_default=True, help="How long they last.")
@click.option(
    "--trust-domain", default="tidewire.local", show_default=True, help="Domain of the SPIFFE ids."
)
@click.option("--force", is_flag=True, help="Replace everything in DIR, the authority too.")
@output_options
@pass_settings
def init(
    settings: Settings,
    folder: Path,
    hosts: tuple[str, ...],
    clients: tuple[str, ...],
    server: str,
    days: int,
    trust_domain: str,
    force: bool,
) -> None:
    """Make an authority, a server's certificate and clients' certificates in DIR."""
    from tidewire.certs import Leaf
    from tidewire.certs import init as make

    leaves = [Leaf(server, "server", hosts or ("localhost", "127.0.0.1", "::1"))]
    leaves += [Leaf(name, "client") for name in clients]
    made = make(folder, leaves, days=days, trust_domain=trust_domain, force=force)
    out = Output()
    for one in made:
        if settings.json:
            out.record(one)
        else:
            what = "made" if one.is_new else "kept"
            identity = f" {one.spiffe_id}" if one.spiffe_id else ""
            out.line(f"{what} {one.path} until {one.expires:%Y-%m-%d}{identity}")
    server_files = f"--tls-certificate {folder / server}.pem --tls-key {folder / server}.key"
    settings.note(
        f"tidewire serve --listen tls://127.0.0.1:7401 --tls-ca {folder / 'ca'}.pem {server_files}"
    )
