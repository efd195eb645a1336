"""A dead letter keeps what the signature of its batch needs."""

from pathlib import Path

import pytest

from support.events import Events, event_service
from support.signing import private_pem, public_pem
from tidewire import errors
from tidewire.signing import Signer, Verifier
from tidewire.v1 import event_pb2
from tidewire.wire.batch import encode_payloads
from tidewire.wire.signed import DIGEST_BYTES

TERMINATE = event_pb2.SETTLEMENT_TERMINATE
KEY = private_pem()


async def given_up(events: Events, stream: str, sequence: int, into: str) -> event_pb2.Delivery:
    """Give a message up, and return its dead letter."""
    await events.create_stream(into, into.lower())
    await events.create_consumer(stream, "c", dead_letter_stream=into)
    consumer = await events.consume(stream, "c")
    await consumer.delivery()
    await consumer.settle(sequence, sequence, TERMINATE, attempt=1, reason="poison")
    dead = await events.ordered(into, start=event_pb2.StartPosition(all=True))
    return await dead.delivery()


@pytest.mark.parametrize("numbered", [False, True])
async def test_dead_letters_still_verify(tmp_path: Path, numbered: bool) -> None:
    """Also the dead letter of a dead letter, though neither has a producer or message ids."""
    batch = encode_payloads("s.a", [b"1", b"2", b"3"])
    batch.message_ids.extend(["a", "b", "c"])
    if numbered:
        batch.producer_id, batch.producer_epoch, batch.producer_sequence = "p", 1, 1
    Signer("k", KEY).sign(batch)
    verifier = Verifier({"k": public_pem(KEY)})
    async with event_service(tmp_path) as events:
        await events.create_stream("S", "s.>")
        await events.call("Publish", event_pb2.PublishRequest(batch=batch))
        letters = [
            await given_up(events, "S", 2, "DEAD"),
            await given_up(events, "DEAD", 1, "DEADER"),
        ]

    for letter in letters:
        assert "" == letter.batch.producer_id
        assert not letter.batch.message_ids
        assert "k" == verifier.check(letter.batch, origin=letter.dead_letter.origin_digest)
        with pytest.raises(errors.SignatureInvalid):  # control: it is needed
            verifier.check(letter.batch, origin=bytes(DIGEST_BYTES))


async def test_an_unsigned_dead_letter_has_no_digest(tmp_path: Path) -> None:
    """Nothing is stored for what is not signed."""
    async with event_service(tmp_path) as events:
        await events.create_stream("S", "s.>")
        await events.publish("s.a", [b"1"])
        letter = await given_up(events, "S", 1, "DEAD")

    assert b"" == letter.dead_letter.origin_digest
