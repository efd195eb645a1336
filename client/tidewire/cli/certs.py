"""``tidewire certs``: certificates for development."""

from pathlib import Path

import click

from tidewire.cli.groups import Group
from tidewire.cli.output import Output
from tidewire.cli.settings import Settings, output_options, pass_settings


@click.group(cls=Group)
def certs() -> None:
    """Make certificates for development, and keys that sign events."""


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


@certs.command(
    epilog="""\b
NAME.key signs, NAME.pub is for who verifies; its key id is NAME. With --certified, DIR/ca.pem
issues NAME.pem, for the connection and for signing; its key id is its SPIFFE id.

\b
Examples:
  tidewire certs key keys orders
  tidewire pub orders.new '{}' --sign keys/orders.key --key-id orders
  tidewire sub 'orders.>' --verify keys
"""
)
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))
@click.argument("name")
@click.option("--certified", is_flag=True, help="Make a certificate, issued by DIR/ca.pem.")
@click.option("--days", default=90, show_default=True, help="How long a certificate lasts.")
@click.option(
    "--trust-domain", default="tidewire.local", show_default=True, help="Domain of the SPIFFE id."
)
@output_options
@pass_settings
def key(
    settings: Settings, folder: Path, name: str, certified: bool, days: int, trust_domain: str
) -> None:
    """Make a key NAME in DIR that signs events (Ed25519)."""
    from tidewire.certs import signing_certificate, signing_key

    if certified:
        made = signing_certificate(folder, name, days=days, trust_domain=trust_domain)
        path, key_id = made.path, made.spiffe_id
    else:
        path, key_id = signing_key(folder, name), name
    if settings.json:
        Output().record({"key_id": key_id, "path": str(path)})
    else:
        Output().line(f"made {path} and {folder / name}.key, key id {key_id}")
