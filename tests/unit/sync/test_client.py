"""The blocking client does what the asyncio client does, by the same names."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

import tidewire.sync
from support.server import Running
from support.signing import private_pem, public_pem
from tidewire import errors
from tidewire.signing import Signer, Verifier

WAIT_S = 20.0


@pytest.fixture
def client(server: Running) -> Iterator[Any]:
    """A blocking client of a whole server."""
    with tidewire.sync.connect(server.url("tcp"), timeout_s=WAIT_S) as made:
        yield made


def test_publishing_and_reading(client: Any) -> None:
    """Streams are made, published to, read to the end, and errors are raised here."""
    stream = client.events.stream("orders")
    stream.create("orders.>")
    ack = client.events.publish("orders.a", "first", headers=[("k", b"v")])
    with client.events.publisher() as publisher:
        for number in range(1_000):
            publisher.publish("orders.b", str(number))
        publisher.flush()
        published = publisher.published

    with client.events.read("orders") as reading:
        messages = list(reading.iterate(timeout_s=0.5))
    with pytest.raises(errors.StreamNotFound):
        client.events.stream("nothing").info()

    assert (1, 1_000) == (ack.sequence, published)
    assert list(range(1, 1_002)) == [message.sequence for message in messages]
    assert [b"first", b"0"] == [message.payload for message in messages[:2]]
    assert (("k", b"v"),) == messages[0].headers
    assert ["orders"] == [found.config.name for found in client.events.streams()]


def test_consuming_by_iteration_by_handler_and_by_fetch(client: Any) -> None:
    """Messages are acknowledged from any thread; a handler may block and call the client."""
    stream = client.events.stream("jobs")
    stream.create("jobs")
    consumer = stream.consumer("c")
    consumer.create()
    client.events.publish_many("jobs", [str(number) for number in range(30)])
    with client.events.consume("jobs", "c") as consuming:
        for message in consuming:
            message.ack(confirm=True)
            if message.sequence == 10:
                break
    done = threading.Event()

    def handle(message: Any) -> None:
        client.state.put(f"seen/{message.sequence}", message.payload)
        if message.sequence == 20:
            done.set()
        if message.sequence > 20:
            time.sleep(0.001)

    with client.events.consume("jobs", "c", handler=handle) as consuming:
        assert done.wait(WAIT_S)
    seen = [entry.key for entry in client.state.range("seen/")]
    # What the handler was not given comes to whoever asks next, once the server has seen the end.
    while consumer.info().state.ack_floor < 30:
        for message in client.events.fetch("jobs", "c", messages_max=100, wait_s=1.0):
            message.ack(confirm=True)

    assert {f"seen/{number}" for number in range(11, 21)} <= set(seen)


def test_a_wait_has_an_end(client: Any) -> None:
    """`next` gives up in time, an iteration ends, and the subscription goes on being usable."""
    with client.events.subscribe("live") as subscription:
        with pytest.raises(errors.DeadlineExceeded):
            subscription.next(timeout_s=0.05)
        assert [] == list(subscription.iterate(timeout_s=0.05))
        client.events.publish("live", "x")

        assert b"x" == subscription.next(timeout_s=WAIT_S).payload


def test_asking_and_answering(client: Any) -> None:
    """Responders are functions or generators on threads of their own."""

    def answer(query: Any) -> bytes:
        if query.payload == b"?":
            raise ValueError("no answer")
        return bytes(query.payload).upper()

    def count(query: Any) -> Iterator[str]:
        for number in range(int(query.text)):
            yield str(number)

    with client.queries.serve("up", answer), client.queries.serve("count", count):
        reply = client.queries.ask("up", "hi")
        replies = [each.text for each in client.queries.ask_stream("count", "3")]
        with pytest.raises(errors.ResponderFailed):
            client.queries.ask("up", "?")
        gathered = client.queries.gather("up", "x")

    assert b"HI" == reply.payload
    assert ["0", "1", "2"] == replies
    assert [b"X"] == [each.payload for each in gathered.replies]


def test_state_members_commands_and_checkpoints(client: Any) -> None:
    """The other kinds, with objects of one handed to another."""
    changed: list[str] = []
    told = threading.Event()

    def on_change(what: str, membership: Any) -> None:
        changed.append(f"{membership.node_id} {what}")
        told.set()

    with client.members.join("node-1", on_change=on_change) as membership:
        client.state.put("leased", "x", lease=membership)
        with client.control.attend("node-1", {"echo": lambda command: command.json()}):
            outcome = client.control.send("echo", {"a": 1}, node_id="node-1")
    assert told.wait(WAIT_S)
    with client.state.watch() as watch:
        client.state.put("a", "1")
        kinds = []
        while "put" not in kinds:
            kinds.append(watch.next(timeout_s=WAIT_S).kind.value)
    result = client.state.transact().if_exists("a").put("b", "2").get("b").commit()
    assert {"b": "2", "a": "1"} == {
        key: entry.text for key, entry in client.state.get_many(["b", "none", "a"]).items()
    }
    operator = client.checkpoints.operator("job")
    operator.acquire()
    committed = operator.commit("state", changes=client.state.transact().put("c", "3"))

    assert {"a": 1} == outcome.check().nodes["node-1"].json()
    assert ["node-1 left"] == changed
    assert "synced" in kinds
    assert (True, "2") == (result.succeeded, result.results[1].text)
    assert (1, b"state") == (committed.revision, operator.load().state)
    assert "3" == client.state.get("c").text


def test_a_failed_publish_is_told_later(client: Any) -> None:
    """What a blocking publisher could not send is raised at the next call."""
    publisher = client.events.publisher()
    publisher.publish("not a subject", "x")

    with pytest.raises(errors.InvalidSubject):
        publisher.flush()
    publisher.close()


def test_a_server_that_is_not_there_is_told() -> None:
    """Connecting raises a typed error in time."""
    with pytest.raises(errors.Unavailable):
        tidewire.sync.connect("tcp://127.0.0.1:1", connect_timeout_s=2.0)


def test_signing_and_verifying(server: Running) -> None:
    """The blocking client signs and verifies too; what is not signed is left out."""
    key = private_pem()
    signer, verifier = Signer("k", key), Verifier({"k": public_pem(key)})
    url = server.url("tcp")
    with (
        tidewire.sync.connect(url, timeout_s=WAIT_S, signer=signer) as signing,
        tidewire.sync.connect(url, timeout_s=WAIT_S, verifier=verifier) as verifying,
        verifying.events.subscribe("signed.>") as subscription,
    ):
        verifying.events.publish("signed.a", "unsigned")
        signing.events.publish("signed.a", "signed")
        message = subscription.next(timeout_s=WAIT_S)
        refused = subscription.refused

    assert (b"signed", "k", 1) == (message.payload, message.signed_by, refused)
