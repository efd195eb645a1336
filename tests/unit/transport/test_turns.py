"""What one turn of the event loop queues: the peer begins with the first while others are made."""

import asyncio
from typing import Any

import pytest

from support.echo.v1 import echo_pb2, echo_pb2_grpc
from support.echoing import serving_echo
from tidewire.transport import channel
from tidewire.transport.stream import HURRY_FRAMES_MAX, WireProtocol
from tidewire.wire.connection import Connection

LIMIT_S = 20.0
CALLS = 200
PIECES = 3
"""Of a frame that opens a call: its header, the method with its metadata, the message."""


async def writes_of_a_turn(monkeypatch: pytest.MonkeyPatch) -> tuple[list[int], list[str]]:
    """Start calls in one turn; return the frames of each write of the client, and the answers."""
    frames: list[int] = []
    write = WireProtocol._write

    def counted(self: Any, pieces: Any) -> None:
        if not self.connection.is_server:
            frames.append(len(pieces) // PIECES)
        write(self, pieces)

    async with serving_echo("tcp") as (url, _, _), channel(url) as made:
        stub = echo_pb2_grpc.EchoServiceStub(made)
        await stub.Say(echo_pb2.SayRequest(text="warm"), timeout=LIMIT_S)
        monkeypatch.setattr(WireProtocol, "_write", counted)
        calls = [
            stub.Say(echo_pb2.SayRequest(text=str(number)), timeout=LIMIT_S)
            for number in range(CALLS)
        ]
        answers = await asyncio.gather(*calls)
    return frames, [answer.text for answer in answers]


async def test_the_first_frame_leaves_at_once_and_more_follow_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Writes double up to a bound, so that many calls cost few writes and none waits for all."""
    frames, answers = await writes_of_a_turn(monkeypatch)

    assert [1, 2, 4, 8, 16, 32, 32] == frames[:7]
    assert HURRY_FRAMES_MAX == max(frames)
    assert [str(number) for number in range(CALLS)] == answers


async def test_without_hurry_a_turn_is_one_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: a connection that hurries nobody sends all when the turn is over."""
    push_call = Connection.push_call

    def patient(self: Any, call: Any) -> None:
        self.hurry_at = 0
        push_call(self, call)

    monkeypatch.setattr(Connection, "push_call", patient)
    frames, answers = await writes_of_a_turn(monkeypatch)

    assert CALLS == frames[0]
    assert CALLS == len(answers)


async def test_large_messages_hurry_nobody_from_within() -> None:
    """Its fragments queue themselves while others are taken: they are not sent out of order."""
    async with serving_echo("tcp") as (url, _, _), channel(url) as made:
        stub = echo_pb2_grpc.EchoServiceStub(made)
        bodies = ["x" * (3_000_000 + number) for number in range(3)]
        calls = [stub.Say(echo_pb2.SayRequest(text=body), timeout=LIMIT_S) for body in bodies]
        answers = await asyncio.gather(*calls)

    assert bodies == [answer.text for answer in answers]
