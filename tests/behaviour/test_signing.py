"""
Signed events over every wire: what is signed passes, everything else is refused and told.

An attacker is somebody who may publish: it captures a signed batch and publishes it again through
the generated stub, changed or not. Each attack has its control: a client without a verifier gets
what it published.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass

import pytest
import pytest_asyncio
from crc32c import crc32c

import tidewire
from support.server import Running
from support.signing import private_pem, public_pem
from tidewire import errors
from tidewire.signing import Refusal, Signer, Verifier
from tidewire.v1 import common_pb2, event_pb2
from tidewire.v1.event_pb2_grpc import EventServiceStub
from tidewire.wire.batch import encode_payloads

pytestmark = pytest.mark.asyncio(loop_scope="module")

WAIT_S = 20.0
KEY = private_pem()
OTHER_KEY = private_pem()


@dataclass
class Site:
    """A publisher that signs, a reader that verifies, one that does not, and an attacker's stub."""

    publisher: tidewire.Client
    reader: tidewire.Client
    trusting: tidewire.Client
    attacker: EventServiceStub
    refusals: list[Refusal]
    verifier: Verifier

    async def publish_raw(self, batch: common_pb2.Batch) -> None:
        """Publish a batch as it is."""
        request = event_pb2.PublishRequest(batch=batch)
        await self.attacker.Publish(request, timeout=WAIT_S)  # type: ignore[misc]  # an aio stub

    def reasons(self) -> list[str]:
        """Names of the errors told, in order."""
        return [type(refusal.error).__name__ for refusal in self.refusals]


@pytest_asyncio.fixture(loop_scope="module")
async def site(server: Running, wire: str) -> AsyncIterator[Site]:
    """Four clients on one wire."""
    refusals: list[Refusal] = []
    verifier = Verifier({"orders": public_pem(KEY)}, audience="here", on_refused=refusals.append)
    async with AsyncExitStack() as stack:

        async def client(
            signer: Signer | None = None, verifier: Verifier | None = None
        ) -> tidewire.Client:
            return await stack.enter_async_context(
                tidewire.connect(
                    server.url(wire), tls=server.tls(wire), signer=signer, verifier=verifier
                )
            )

        publisher = await client(Signer("orders", KEY, audience="here"))
        trusting = await client()
        stub = EventServiceStub(trusting.channel)
        reader = await client(verifier=verifier)
        yield Site(publisher, reader, trusting, stub, refusals, verifier)


def signed(subject: str, payload: bytes, **options: str) -> common_pb2.Batch:
    """A batch of one message as the publisher would sign it."""
    batch = encode_payloads(subject, [payload])
    Signer(options.get("key_id", "orders"), KEY, audience=options.get("audience", "here")).sign(
        batch
    )
    return batch


def tampered(batch: common_pb2.Batch) -> common_pb2.Batch:
    """Another body under the same signature, with a checksum that fits."""
    other = encode_payloads(batch.subject, [b"evil"])
    batch.body, batch.raw_size = other.body, other.raw_size
    batch.crc32c = crc32c(other.body)
    return batch


def moved(batch: common_pb2.Batch) -> common_pb2.Batch:
    """The same batch on another subject."""
    batch.subject += ".moved"
    return batch


def unsigned(batch: common_pb2.Batch) -> common_pb2.Batch:
    """The same batch without anything of its signature."""
    for name in ("signature", "signature_key_id", "signature_time_us", "signature_nonce"):
        batch.ClearField(name)
    return batch


def forged(batch: common_pb2.Batch) -> common_pb2.Batch:
    """Signed by another key, under the name of the one that is trusted."""
    Signer("orders", OTHER_KEY, audience="here").sign(batch)
    return batch


def unknown(batch: common_pb2.Batch) -> common_pb2.Batch:
    """Signed by a key nobody trusts."""
    Signer("stranger", OTHER_KEY, audience="here").sign(batch)
    return batch


def misdirected(batch: common_pb2.Batch) -> common_pb2.Batch:
    """Signed by the right key for somebody else."""
    Signer("orders", KEY, audience="elsewhere").sign(batch)
    return batch


def stale(batch: common_pb2.Batch) -> common_pb2.Batch:
    """Signed by the right key an hour ago."""
    batch.signature_time_us -= 3_600_000_000
    late = batch.signature_time_us / 1e6
    Signer("orders", KEY, audience="here", clock=lambda: late).sign(batch)
    return batch


ATTACKS: list[tuple[Callable[[common_pb2.Batch], common_pb2.Batch], type[errors.TidewireError]]] = [
    (tampered, errors.SignatureInvalid),
    (moved, errors.SignatureInvalid),
    (forged, errors.SignatureInvalid),
    (unsigned, errors.SignatureMissing),
    (unknown, errors.UnknownKey),
    (misdirected, errors.WrongRecipient),
    (stale, errors.Replayed),
]


async def test_what_is_signed_passes_and_names_its_key(site: Site, name: str) -> None:
    """Every way to publish signs, every message says by whom, and nothing is refused."""
    async with site.reader.events.subscribe(f"{name}.>") as subscription:
        await site.publisher.events.publish(f"{name}.a", b"1")
        await site.publisher.events.publish(f"{name}.a", b"2", headers=[("k", b"v")])
        await site.publisher.events.publish(f"{name}.a", b"3", message_id="id")
        await site.publisher.events.publish_many(f"{name}.a", [b"4", b"5"])
        async with site.publisher.events.publisher(acknowledge=False) as quiet:
            await quiet.publish(f"{name}.a", b"6")
        await site.publisher.events.publish_lossy(f"{name}.a", b"7")
        await site.publisher.events.publish(f"{name}.a", b"8")
        got = [await subscription.next(timeout_s=WAIT_S) for _ in range(8)]

    assert {b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"8"} == {m.payload for m in got}
    assert ["orders"] * 8 == [m.signed_by for m in got]
    assert ([], 0) == (site.reasons(), subscription.refused)


@pytest.mark.parametrize(
    ("attack", "expected"), ATTACKS, ids=lambda it: getattr(it, "__name__", "")
)
async def test_what_is_not_as_it_was_signed_is_refused(
    site: Site,
    name: str,
    attack: Callable[[common_pb2.Batch], common_pb2.Batch],
    expected: type[errors.TidewireError],
) -> None:
    """A live subscription drops it, tells why and goes on; without a verifier it is delivered."""
    batch = attack(signed(f"{name}.a", b"good"))
    async with (
        site.reader.events.subscribe(f"{name}.>") as verified,
        site.trusting.events.subscribe(f"{name}.>") as control,
    ):
        await site.publish_raw(batch)
        delivered = await control.next(timeout_s=WAIT_S)
        await site.publisher.events.publish(f"{name}.a", b"after")
        following = await verified.next(timeout_s=WAIT_S)

    assert b"evil" == delivered.payload if attack is tampered else b"good" == delivered.payload
    assert b"after" == following.payload
    assert [expected.__name__] == site.reasons()
    assert 1 == verified.refused
    assert expected is type(verified.last_refusal)


async def test_the_same_batch_twice_is_a_replay(site: Site, name: str) -> None:
    """Live: the first passes, the copy is refused; without a verifier both are delivered."""
    batch = signed(f"{name}.a", b"once")
    async with (
        site.reader.events.subscribe(f"{name}.>") as verified,
        site.trusting.events.subscribe(f"{name}.>") as control,
    ):
        await site.publish_raw(batch)
        await site.publish_raw(batch)
        delivered = [(await control.next(timeout_s=WAIT_S)).payload for _ in range(2)]
        await site.publisher.events.publish(f"{name}.a", b"after")
        got = [(await verified.next(timeout_s=WAIT_S)).payload for _ in range(2)]

    assert [b"once", b"once"] == delivered
    assert [b"once", b"after"] == got
    assert ["Replayed"] == site.reasons()


async def test_two_subscriptions_each_get_a_batch(site: Site, name: str) -> None:
    """What one reader of a client has seen is no replay for another one."""
    async with (
        site.reader.events.subscribe(f"{name}.>") as first,
        site.reader.events.subscribe(f"{name}.>") as second,
    ):
        await site.publisher.events.publish(f"{name}.a", b"x")
        got = [(await each.next(timeout_s=WAIT_S)).payload for each in (first, second)]

    assert [b"x", b"x"] == got
    assert [] == site.reasons()


async def test_a_consumer_sends_what_it_refuses_to_the_dead_letters(site: Site, name: str) -> None:
    """The handler never sees it, the dead letter says why, and the good one after it arrives."""
    await _durable(site, name)
    handled: list[bytes] = []
    arrived = asyncio.Event()

    def handler(message: tidewire.Message) -> None:
        handled.append(message.payload)
        if message.payload == b"after":
            arrived.set()

    once = signed(f"{name}.a", b"once")
    for batch in (once, once, tampered(signed(f"{name}.a", b"good"))):
        await site.publish_raw(batch)
    await site.publisher.events.publish(f"{name}.a", b"after")
    async with site.reader.events.consume(name, "c", handler=handler) as subscription:
        async with asyncio.timeout(WAIT_S):
            await arrived.wait()
        refused = subscription.refused
    letters = await _dead_letters(site.trusting, name, 2)

    assert [b"once", b"after"] == handled
    assert (2, ["Replayed", "SignatureInvalid"]) == (refused, site.reasons())
    assert ["REPLAYED", "SIGNATURE_INVALID"] == [
        letter.dead_letter.reason.partition(":")[0] for letter in letters if letter.dead_letter
    ]


async def test_fetched_messages_are_verified(site: Site, name: str) -> None:
    """Fetch leaves out what is refused and settles it; reading a part of a stream leaves it out."""
    await _durable(site, name)
    await site.publish_raw(tampered(signed(f"{name}.a", b"good")))
    await site.publisher.events.publish(f"{name}.a", b"after")

    fetched = await site.reader.events.fetch(name, "c", wait_s=WAIT_S)
    for message in fetched:
        await message.ack(confirm=True)
    read, following = await site.reader.events.fetch_from(name)
    control, _ = await site.trusting.events.fetch_from(name)
    letters = await _dead_letters(site.trusting, name, 1)

    assert [b"after"] == [m.payload for m in fetched] == [m.payload for m in read]
    assert 3 == following
    assert [b"evil", b"after"] == [m.payload for m in control]
    assert b"evil" == letters[0].payload


async def test_redelivery_is_no_replay(site: Site, name: str) -> None:
    """What the server delivers again from the same place passes again, a stream is read twice."""
    await _durable(site, name)
    await site.publisher.events.publish_many(f"{name}.a", [b"1", b"2", b"3"])
    async with site.reader.events.consume(name, "c") as subscription:
        first = [await subscription.next(timeout_s=WAIT_S) for _ in range(3)]
        await first[1].retry(0.0)
        again = await subscription.next(timeout_s=WAIT_S)
        for message in (first[0], again, first[2]):
            await message.ack(confirm=True)
    for _ in range(2):
        read, _ = await site.reader.events.fetch_from(name)
        assert [b"1", b"2", b"3"] == [m.payload for m in read]

    assert (b"2", 2) == (again.payload, again.attempt)
    assert [] == site.reasons()


async def test_parts_of_a_batch_verify_over_the_whole(site: Site, name: str) -> None:
    """A stream that leaves out duplicates, and a dead letter of one message, keep the signature."""
    await _durable(site, name)
    events = site.publisher.events
    await events.publish(f"{name}.a", b"2", message_id="two")
    await events.publish_many(f"{name}.a", [b"1", b"2", b"3"], message_ids=["one", "two", "three"])
    async with site.reader.events.consume(name, "c") as subscription:
        got = [await subscription.next(timeout_s=WAIT_S) for _ in range(3)]
        await got[0].ack(confirm=True)
        await got[1].ack(confirm=True)
        await got[2].terminate("not wanted")
        await got[1].batch.settler().settled(1, 3)
    letters = await _dead_letters(site.reader, name, 1)

    assert [b"2", b"1", b"3"] == [m.payload for m in got]
    assert (b"3", "orders") == (letters[0].payload, letters[0].signed_by)
    assert [] == site.reasons()


async def test_outputs_of_a_checkpoint_are_signed(site: Site, name: str) -> None:
    """What an operator commits with its state verifies like anything else."""
    await _durable(site, name)
    operator = site.publisher.checkpoints.operator(name)
    await operator.acquire()
    ready = event_pb2.PublishRequest(batch=encode_payloads(f"{name}.b", [b"2"]))
    await operator.commit("state", outputs=[(f"{name}.a", b"1"), ready])
    read, _ = await site.reader.events.fetch_from(name)

    assert [b"1", b"2"] == [m.payload for m in read]
    assert not ready.batch.signature  # the application's own is left as it is
    assert [] == site.reasons()


async def _durable(site: Site, name: str) -> None:
    """A stream, its dead letters, and a consumer."""
    await site.trusting.events.stream(name).create(f"{name}.>")
    await site.trusting.events.stream(f"{name}-dead").create(f"dead.{name}.>")
    await (
        site.trusting.events.stream(name)
        .consumer("c")
        .create(dead_letter_stream=f"{name}-dead", ack_wait_s=WAIT_S)
    )


async def _dead_letters(client: tidewire.Client, name: str, count: int) -> list[tidewire.Message]:
    async with client.events.read(f"{name}-dead") as dead:
        return [await dead.next(timeout_s=WAIT_S) for _ in range(count)]
