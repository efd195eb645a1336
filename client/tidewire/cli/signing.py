"""Options of `pub` and `sub` for signed events."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from collections.abc import Callable

    from tidewire.signing import Signer, Verifier

FunctionT = TypeVar("FunctionT", bound="Callable[..., Any]")
_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
_FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)


def signing_options(command: FunctionT) -> FunctionT:
    """Add what `signer_of` reads."""
    command = click.option("--audience", default="", help="Whom it is signed for.")(command)
    command = click.option("--key-id", help="Name of the key.  [default: name of its file]")(
        command
    )
    command = click.option(
        "--sign-cert", type=_FILE, help="Certificate of the key; its SPIFFE id is the key id."
    )(command)
    return click.option("--sign", type=_FILE, help="Sign with this Ed25519 key.")(command)


def verifying_options(command: FunctionT) -> FunctionT:
    """Add what `verifier_of` reads."""
    command = click.option("--audience", default="", help="Whom it must be signed for.")(command)
    command = click.option(
        "--verify-ca", type=_FILE, help="The keys are certificates of this authority."
    )(command)
    return click.option(
        "--verify", type=_FOLDER, help="Take only what is signed with a key of this folder."
    )(command)


def signer_of(options: dict[str, Any]) -> "Signer | None":
    """Signer the options ask for; ``None``: nothing is signed."""
    path: Path | None = options["sign"]
    if path is None:
        if options["key_id"] or options["sign_cert"] or options["audience"]:
            raise click.UsageError("--key-id, --sign-cert and --audience go with --sign.")
        return None
    from tidewire.signing import Signer

    audience = options["audience"]
    if options["sign_cert"] is None:
        return Signer.from_file(options["key_id"] or path.stem, path, audience=audience)
    if options["key_id"]:
        raise click.UsageError("The key id of a certificate is its SPIFFE id; leave out --key-id.")
    return Signer.from_certificate(options["sign_cert"], path, audience=audience)


def verifier_of(options: dict[str, Any]) -> "Verifier | None":
    """Verifier the options ask for; ``None``: everything is taken."""
    folder: Path | None = options["verify"]
    authority, audience = options["verify_ca"], options["audience"]
    if folder is None:
        if authority or audience:
            raise click.UsageError("--verify-ca and --audience go with --verify.")
        return None
    from tidewire.signing import Verifier

    if authority is None:
        return Verifier.from_folder(folder, audience=audience)
    return Verifier.from_certificates(folder, authority=authority, audience=audience)
