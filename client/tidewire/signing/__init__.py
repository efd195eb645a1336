"""
Signed events: Ed25519 signatures over batches, made by publishers and checked by who receives.

::

    signer = Signer.from_file("orders-service", "orders.key", audience="prod")
    verifier = Verifier.from_folder("trusted-keys", audience="prod")
    async with tidewire.connect(url, signer=signer, verifier=verifier) as client:
        ...

Every batch the client publishes is signed once, however many messages it has; whatever it receives
of events is verified before anything else is done with it. Servers carry signatures and cannot make
them. Needs the package ``cryptography`` (``tidewire[certs]``). ``proto/SIGNING.md`` says what is
signed and what is not.
"""

from tidewire.signing.keys import (
    KeyUnusable,
    PublicKey,
    SigningUnavailable,
    certified_keys,
    public_keys,
)
from tidewire.signing.replay import ReplayMemory
from tidewire.signing.signer import Signer
from tidewire.signing.verifier import Refusal, Verifier

__all__ = (
    "KeyUnusable",
    "PublicKey",
    "Refusal",
    "ReplayMemory",
    "Signer",
    "SigningUnavailable",
    "Verifier",
    "certified_keys",
    "public_keys",
)
