"""
Two honest sides never break a rule, whatever they do and however their bytes are cut and delayed.
"""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.pipe import LoggedClientCall, Pipe, PipeServer, piped
from tidewire.wire.bodies import ENDING_OK, Ending, Hello, encode_hello
from tidewire.wire.call import Call
from tidewire.wire.connection import Connection
from tidewire.wire.frame import HELLO, encode_frame
from tidewire.wire.limits import KIB, WireLimits

TIGHT = WireLimits(
    call_credit_bytes=4 * KIB,
    connection_credit_bytes=16 * KIB,
    fragment_bytes=512,
    calls_max=5,
    unread_bytes_max=16 * KIB,
    incomplete_bytes_max=8 * KIB,
    message_bytes_max=64 * KIB,
)
STEPS = 300


class Chaos:
    """Random acts of both sides, with bytes that wait on the way and arrive in pieces."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.pipe: Pipe = piped(TIGHT, TIGHT)
        self.pipe.server.reads = False
        self.calls: list[LoggedClientCall] = []
        self.finished: set[Call] = set()
        self.on_the_way = {"client": bytearray(), "server": bytearray()}

    def act(self) -> None:
        """Do one thing."""
        self.random.choice(
            [
                self.open,
                self.send,
                self.send,
                self.cancel,
                self.answer,
                self.answer,
                self.take,
                self.take,
                self.write,
                self.write,
                self.deliver,
                self.deliver,
                self.deliver,
                self.wait,
            ]
        )()

    def open(self) -> None:
        size = self.random.choice([None, 0, 10, 600, 5000, 30_000])
        last = size is not None and self.random.random() < 0.5
        call = LoggedClientCall(
            reads=self.random.random() < 0.8, priority=self.random.randrange(10)
        )
        if self.random.random() < 0.3:
            call.deadline_s = self.pipe.now_s + self.random.random() * 3
        self.pipe.client.open(call, None if size is None else bytes(size), last=last)
        self.calls.append(call)
        if last:
            self.finished.add(call)

    def send(self) -> None:
        unfinished = [call for call in self.calls if not call.over and call not in self.finished]
        if unfinished:
            call = self.random.choice(unfinished)
            call.send_message(bytes(self.random.choice([0, 1, 700, 9000])))
            if self.random.random() < 0.2:
                call.half_close()
                self.finished.add(call)

    def cancel(self) -> None:
        if self.calls and self.random.random() < 0.3:
            self.pipe.client.cancel(self.random.choice(self.calls), Ending(1, "enough"))

    def answer(self) -> None:
        live = list(self.pipe.server.calls.values())
        if not live:
            return
        call = self.random.choice(live)
        if call in self.finished:
            return
        if self.random.random() < 0.4:
            self.finished.add(call)
            if self.random.random() < 0.5:
                call.reply(bytes(self.random.choice([0, 5, 900, 20_000])))
            else:
                call.finish(Ending(self.random.choice([0, 5, 14]), "done"))
        else:
            call.send_message(bytes(self.random.choice([0, 5, 900, 20_000])))

    def take(self) -> None:
        for side in (self.calls, self.pipe.server.opened):
            for call in side:
                if call.log.unread and self.random.random() < 0.5:
                    call.take(call.log.unread.pop(0))

    def write(self) -> None:
        for name, side in (("client", self.pipe.client), ("server", self.pipe.server)):
            assert isinstance(side, Connection)
            data = side.data_to_send(self.random.choice([1, 100, 5000]), self.pipe.now_s)
            self.on_the_way[name] += b"".join(data)

    def deliver(self) -> None:
        for name, target in (("client", self.pipe.server), ("server", self.pipe.client)):
            waiting = self.on_the_way[name]
            size = self.random.choice([1, 13, 500, 100_000])
            data = bytes(waiting[:size])
            del waiting[:size]
            if data:
                target.receive_data(data, self.pipe.now_s)

    def wait(self) -> None:
        if self.random.random() < 0.3:
            self.pipe.pass_time(0.2)

    def settle(self) -> None:
        """Answer and read everything until nothing is left."""
        for _ in range(2000):
            self.write()
            self.deliver()
            for call in list(self.pipe.server.calls.values()):
                if call not in self.finished:
                    self.finished.add(call)
                    call.finish(ENDING_OK)
            for side in (self.calls, self.pipe.server.opened):
                for each in side:
                    while each.log.unread:
                        each.take(each.log.unread.pop(0))
            if all(call.log.endings for call in self.calls) and not any(self.on_the_way.values()):
                return


@pytest.mark.parametrize("start", range(0, 200, 20))
def test_honest_sides_never_break_a_rule(start: int) -> None:
    """
    After any acts both sides are open, every call has ended exactly once, and nothing is left.
    """
    for seed in range(start, start + 20):
        chaos = Chaos(seed)
        for _ in range(STEPS):
            chaos.act()
        chaos.settle()
        pipe = chaos.pipe

        assert (None, None) == (pipe.client.error, pipe.server.error), seed
        assert [1] * len(chaos.calls) == [len(call.log.endings) for call in chaos.calls], seed
        assert ({}, {}) == (pipe.client.calls, pipe.server.calls), seed
        assert ({}, {}) == (pipe.client.unsent, pipe.client.waiting), seed
        left = [(side.incomplete_bytes, side.incomplete) for side in (pipe.client, pipe.server)]
        assert [(0, {}), (0, {})] == left, seed
        assert (0, 0) == (pipe.client.unread_bytes, pipe.server.unread_bytes), seed


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400), st.booleans())
def test_any_bytes_after_hello(data: bytes, framed: bool) -> None:
    """Bytes of a peer raise nothing: they are frames, wait for more, or end the connection."""
    server = PipeServer(WireLimits())
    server.receive_data(encode_frame(HELLO, encode_hello(Hello(), WireLimits())), 0.0)
    if framed:
        kind = data[0] % 12 if data else 0
        data = encode_frame(kind, data[4:], flags=data[1] % 16 if len(data) > 1 else 0, call_id=1)
    server.receive_data(data, 0.0)
    server.receive_data(data, 0.0)

    assert server.error is None or server.closed
