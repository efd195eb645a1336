"""Who may talk to whom: certificates are asked for, judged and shown; secrets need encryption."""

from typing import TYPE_CHECKING

import grpc.aio

from tidewire.client.translate import translate
from tidewire.errors import TidewireError
from tidewire.testing.behaviour import (
    CERTIFICATES,
    TOKEN,
    Unmet,
    behaviour,
    expect,
    require,
)
from tidewire.testing.site import IDENTITY, Site, decoded
from tidewire.transport import TlsConfig

if TYPE_CHECKING:
    from tidewire.testing.certificates import Trust

REFUSED_S = 5.0
TOKEN_TEXT = "kit-token"  # noqa: S105 (not one)


def _trust(site: Site) -> "Trust":
    assert site.trust is not None
    return site.trust


async def _refused(site: Site, tls: TlsConfig, who: str) -> None:
    """See that no call of this client reaches a handler, and that the right client's does."""
    try:
        fresh = site.connect(tls)
        await site.unary("Who", through=fresh, timeout=REFUSED_S)
    except grpc.aio.AioRpcError as error:
        require(
            error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED,
            f"{who} waited {REFUSED_S:g} s instead of being told",
        )
        refusal = translate(error)
    except TidewireError as error:
        refusal = error
    else:
        raise Unmet(f"{who} is served")
    expect(0, site.echo.calls, f"the calls of {who} that reached a handler ({refusal.message})")
    expect(b"on", await site.say(b"on"), "the answer to the right client afterwards")


@behaviour(CERTIFICATES)
async def identity(site: Site) -> None:
    """The handler sees who calls, as the certificate says."""
    seen = decoded(await site.unary("Who"))
    require(IDENTITY in seen["identities"], f"{IDENTITY} is not in {seen['identities']}")


@behaviour(CERTIFICATES)
async def no_certificate(site: Site) -> None:
    """A client without a certificate reaches no handler."""
    await _refused(site, _trust(site).stranger(), "a client without a certificate")


@behaviour(CERTIFICATES)
async def unknown_authority(site: Site) -> None:
    """A client whose certificate another authority signed reaches no handler."""
    trust = _trust(site)
    shown = trust.others.issue("mallory", names=(), addresses=(), uris=(IDENTITY,))
    await _refused(site, trust.client(shown), "a client of another authority")


@behaviour(CERTIFICATES)
async def expired_certificate(site: Site) -> None:
    """A client whose certificate has expired reaches no handler."""
    trust = _trust(site)
    shown = trust.ours.issue("late", names=(), addresses=(), uris=(IDENTITY,), expired=True)
    await _refused(site, trust.client(shown), "a client whose certificate has expired")


@behaviour(CERTIFICATES)
async def wrong_server_name(site: Site) -> None:
    """A client does not talk to a server whose certificate is for another name."""
    tls = _trust(site).client(server_name="elsewhere.example")
    await _refused(site, tls, "a client that looks for another server")


@behaviour(CERTIFICATES)
async def unknown_server(site: Site) -> None:
    """A client does not talk to a server whose authority it does not trust."""
    trust = _trust(site)
    good = trust.client()
    tls = TlsConfig(certificate=good.certificate, key=good.key, ca=trust.others.file)
    await _refused(site, tls, "a client that trusts another authority")


@behaviour(CERTIFICATES)
async def certificates_reload(site: Site) -> None:
    """New files of a server count for the next connection, without a restart."""
    expect(b"old", await site.say(b"old"), "an answer under the old certificate")
    renewed = _trust(site).renew()
    site.refresh()
    fresh = site.connect(renewed)
    expect(b"new", await site.say(b"new", through=fresh), "an answer under the new one")
    expect(b"old", await site.say(b"old"), "an answer on the connection that was there")


@behaviour(TOKEN)
async def token(site: Site) -> None:
    """A bearer token arrives; where it would travel in the clear it is not sent at all."""
    fresh = site.connect(token=TOKEN_TEXT)
    seen = decoded(await site.unary("Who", through=fresh))
    expect(f"Bearer {TOKEN_TEXT}", seen["authorization"], "the authorization the handler sees")
