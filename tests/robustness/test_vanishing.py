"""
A peer that is gone without a word, in the middle of a call: no FIN, no RST, and what is sent to it
seems to arrive. Both sides must find out by themselves, within the time of their keepalive.
"""

import asyncio
import uuid
from pathlib import Path
from typing import Final

import pytest

import tidewire
from support.hostile import PROCESS_WIRES, SHORT
from support.server import Running, running
from support.tunnel import between
from tidewire.client.timeouts import TimeoutProfile
from tidewire.errors import ConnectionLost, PeerVanished

REQUEST_S: Final = 300.0
"""Far beyond every bound here: it is not the deadline that ends the call."""
QUICK: Final = TimeoutProfile(
    name="quick",
    connect_s=2.0,
    hello_s=2.0,
    request_s=REQUEST_S,
    probe_s=0.5,
    keepalive_s=11.0,  # a gRPC server takes PINGs every 10 s and no faster
    ping_s=1.0,
    read_s=5.0,
    write_s=300.0,  # nor is it TCP_USER_TIMEOUT
)
CLIENT_S_MAX: Final = 25.0
"""1 s; datagrams are silent for 10 s; 12 s of keepalive on a gRPC that is idle; a busy machine."""
SERVER_S_MAX: Final = 25.0
"""1 s of keepalive and 1 s for the answer; lossy streams of datagrams have a lease of 10 s."""
CONTROL_S: Final = 3.0
"""Longer than the server waits for a silent peer: one that is there must not be given up."""
ONCE: Final = tidewire.RetryPolicy(attempts_max=1)


async def test_a_peer_that_vanishes_is_noticed_by_both(tmp_path: Path) -> None:
    """
    The client's call under way ends with UNAVAILABLE, and the server forgets its subscription; the
    same path, before, is the control: a client that is silent for longer but there is kept. All
    wires at the same time.
    """
    async with running(tmp_path, PROCESS_WIRES, None, **SHORT) as server:
        results = await asyncio.gather(
            *(_vanish(server, wire, tmp_path) for wire in PROCESS_WIRES), return_exceptions=True
        )
    failed = {
        wire: repr(result)
        for wire, result in zip(PROCESS_WIRES, results, strict=True)
        if isinstance(result, BaseException)
    }
    assert {} == failed


async def _vanish(server: Running, wire: str, folder: Path) -> None:
    subject = f"v{uuid.uuid4().hex[:8]}"
    tls = server.tls(wire)
    async with (
        tidewire.connect(server.url("tcp")) as near,
        between(server.url(wire), folder) as path,
        tidewire.connect(path.url, tls=tls, profile=QUICK, retry=ONCE) as client,
        client.events.subscribe(subject) as subscription,
    ):
        assert 1 == (await near.events.publish(subject, b"there?")).receivers
        assert b"there?" == (await subscription.next(timeout_s=CLIENT_S_MAX)).payload
        await client.state.put(subject, b"v")

        await asyncio.sleep(CONTROL_S)
        assert 1 == (await near.events.publish(subject, b"still there?")).receivers

        path.vanish()

        await asyncio.gather(_client_notices(client), _server_notices(near, subject))


async def _client_notices(client: tidewire.Client) -> None:
    with pytest.raises((ConnectionLost, PeerVanished)):
        await asyncio.wait_for(client.state.get("k"), CLIENT_S_MAX)


async def _server_notices(near: tidewire.Client, subject: str) -> None:
    async with asyncio.timeout(SERVER_S_MAX):
        while (await near.events.publish(subject, b"still?")).receivers:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
