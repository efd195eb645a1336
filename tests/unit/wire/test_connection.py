"""Two connections back to back: calls, fragments, priority, credit, ends."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.pipe import Pipe, piped
from tidewire.errors import ConnectionLost, MessageTooLarge, ResourceExhausted
from tidewire.wire.bodies import ENDING_OK, Ending
from tidewire.wire.deadlines import Deadlines
from tidewire.wire.frame import END, FrameDecoder
from tidewire.wire.limits import FRAME_BYTES_MAX, KIB, MIB, WireLimits

SMALL = WireLimits(call_credit_bytes=8 * KIB, connection_credit_bytes=64 * KIB, fragment_bytes=KIB)


def test_hellos() -> None:
    """Both sides learn the limits of the other."""
    pipe = piped(WireLimits(calls_max=7), WireLimits(calls_max=9, frame_bytes_max=1024))

    assert 1 == pipe.client.ready
    assert 9 == pipe.client.peer_limits.calls_max
    assert 7 == pipe.server.peer_limits.calls_max
    assert 1016 == pipe.client.fragment_bytes


@pytest.mark.parametrize("size", [0, 1, 1000, 64 * KIB, 64 * KIB + 1, MIB, 10 * MIB])
def test_unary_call(size: int) -> None:
    """A message of any size goes there and comes back."""
    pipe = piped()
    body = bytes(size)
    call = pipe.open(body)
    pipe.run()
    (served,) = pipe.server.opened
    served.reply(body)
    pipe.run()

    assert [body] == served.log.messages
    assert [body] == call.log.messages
    assert [ENDING_OK] == call.log.endings
    assert {} == pipe.client.calls
    assert {} == pipe.server.calls


def test_unary_call_is_one_frame_each_way() -> None:
    """A small unary call costs one frame in each direction."""
    pipe = piped()
    pipe.carried.clear()
    pipe.open(b"request")
    pipe.run()
    pipe.server.opened[0].reply(b"response")
    pipe.run()

    frames = [(side, len(FrameDecoder(FRAME_BYTES_MAX).feed(data))) for side, data in pipe.carried]
    assert [("client", 1), ("server", 1)] == frames


def test_streams_both_ways() -> None:
    """Messages keep their order and bounds; half-close and status end the call."""
    pipe = piped()
    call = pipe.open(None, last=False)
    sent = [bytes([n]) * n * 1000 for n in range(100)]
    for body in sent:
        call.send_message(body)
    call.half_close()
    pipe.run()
    (served,) = pipe.server.opened
    served.send_headers((("first", "1"),))
    for body in sent:
        served.send_message(body)
    served.finish(Ending(5, "done", b"", (("last", "2"),)))
    pipe.run()

    assert sent == served.log.messages
    assert 1 == served.log.half_closed
    assert [(("first", "1"),)] == call.log.headers
    assert sent == call.log.messages
    assert [Ending(5, "done", b"", (("last", "2"),))] == call.log.endings


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 5000), max_size=6), min_size=1, max_size=6),
    st.integers(16, 4096),
    st.lists(st.integers(0, 9), min_size=6, max_size=6),
)
def test_any_streams_arrive(sizes: list[list[int]], turn_bytes: int, priorities: list[int]) -> None:
    """Any mix of calls, sizes, priorities and turns delivers every message of a call in order."""
    pipe = piped(SMALL, SMALL)
    calls = []
    for priority, lengths in zip(priorities, sizes, strict=False):
        call = pipe.open(None, last=False, priority=priority)
        for n, length in enumerate(lengths):
            call.send_message(bytes([n]) * length)
        call.half_close()
        calls.append(call)
    pipe.run(turn_bytes)
    for served in pipe.server.opened:
        for body in served.log.messages:
            served.send_message(body)
        served.finish(ENDING_OK)
    pipe.run(turn_bytes)

    expected = [[bytes([n]) * length for n, length in enumerate(each)] for each in sizes]
    assert expected == [call.log.messages for call in calls]
    assert [[ENDING_OK]] * len(calls) == [call.log.endings for call in calls]
    assert 0 == pipe.client.unread_bytes == pipe.server.unread_bytes
    assert 0 == pipe.client.incomplete_bytes == pipe.server.incomplete_bytes


def test_urgent_call_overtakes_a_long_message() -> None:
    """A call of priority 0 goes out after at most one turn of a 10 MiB message of priority 9."""
    pipe = piped()
    bulk = pipe.open(bytes(10 * MIB), priority=9)
    pipe.step(pipe.client, pipe.server)
    urgent = pipe.open(b"now", priority=0)
    pipe.step(pipe.client, pipe.server)

    assert [[], [b"now"]] == [call.log.messages for call in pipe.server.opened]
    pipe.run()
    assert 10 * MIB == len(pipe.server.opened[0].log.messages[0])
    assert urgent.call_id > bulk.call_id


def test_priorities_may_reorder_calls_that_wait() -> None:
    """Calls opened in one turn go out by priority, and their numbers still increase."""
    pipe = piped()
    calls = [pipe.open(bytes([priority]), priority=priority) for priority in (9, 5, 0)]
    pipe.run()

    assert [[b"\x00"], [b"\x05"], [b"\x09"]] == [c.log.messages for c in pipe.server.opened]
    assert [3, 2, 1] == [call.call_id for call in calls]


def test_equal_priorities_take_turns() -> None:
    """Two long messages of one priority travel fragment by fragment, not one after the other."""
    pipe = piped()
    pipe.carried.clear()
    for _ in range(2):
        pipe.open(bytes(512 * KIB))
    pipe.run()

    decoder = FrameDecoder(FRAME_BYTES_MAX)
    frames = [f for side, data in pipe.carried if side == "client" for f in decoder.feed(data)]
    order = [frame[3] for frame in frames if frame[0] == 3]
    assert [1, 2] * 8 == order


def test_reader_that_does_not_read_stops_its_sender() -> None:
    """Unread messages stop the sender after the window; reading lets it go on."""
    pipe = piped(SMALL, SMALL)
    pipe.server.reads = False
    call = pipe.open(None, last=False)
    for _ in range(100):
        call.send_message(bytes(KIB))
    pipe.run()
    (served,) = pipe.server.opened
    stopped_at = len(served.log.messages)

    assert stopped_at <= 9
    waits = call.drained
    assert not waits
    assert 0 == call.log.drained_times
    while served.log.unread:
        served.take(served.log.unread.pop(0))
        pipe.run()
    assert 100 == len(served.log.messages)
    assert call.drained is True
    assert 1 == call.log.drained_times


def test_long_messages_widen_the_window_of_their_call() -> None:
    """After the first one some of them may be on their way unread, up to the limit; no more."""
    limits = WireLimits(
        call_credit_bytes=8 * KIB, call_window_bytes_max=24 * KIB, fragment_bytes=KIB
    )
    pipe = piped(limits, limits)
    pipe.server.reads = False
    call, other = (pipe.open(b"x", last=False) for _ in range(2))
    pipe.run()
    served, _ = pipe.server.opened
    served.take(served.log.unread.pop())
    assert (8 * KIB, 8 * KIB) == (call.credit, other.credit)
    for _ in range(20):
        call.send_message(bytes(10 * KIB))
    pipe.run()
    # Two whole ones and a part of a third fill 24 KiB; before the first one 8 KiB held none.
    assert 3 == len(served.log.messages)
    while served.log.unread:
        served.take(served.log.unread.pop(0))
        pipe.run()
        # What is unread is what the window was full of when the last message was taken.
        assert call.credit <= served.consumed + 24 * KIB + 11 * KIB
    assert 21 == len(served.log.messages)
    assert 24 * KIB == served.window
    assert 0 == pipe.server.opened[1].window


def test_unread_long_messages_stop_their_sender() -> None:
    """Long whole messages count until they are taken: one waits, and a window of the next."""
    pipe = piped()
    pipe.server.reads = False
    call = pipe.open(None, last=False)
    for _ in range(5):
        call.send_message(bytes(4 * MIB))
    pipe.run()
    (served,) = pipe.server.opened

    assert 1 == len(served.log.messages)
    assert served.received < 6 * MIB
    for count in range(1, 5):
        served.take(served.log.unread.pop(0))
        pipe.run()
        assert count + 1 == len(served.log.messages)


def test_incomplete_messages_are_bounded_and_still_complete() -> None:
    """When fragments of many calls pile up, the oldest call goes on and all finish in the end."""
    limits = WireLimits(incomplete_bytes_max=256 * KIB, call_credit_bytes=64 * KIB)
    pipe = piped(limits, limits)
    highest = 0
    for _ in range(20):
        pipe.open(bytes(MIB))
    while pipe.step(pipe.client, pipe.server, 64 * KIB) | pipe.step(pipe.server, pipe.client):
        highest = max(highest, pipe.server.incomplete_bytes)

    assert [MIB] * 20 == [len(call.log.messages[0]) for call in pipe.server.opened]
    # 20 calls may each hold their window, and one of them a whole message.
    assert highest <= 256 * KIB + 20 * 128 * KIB + MIB


def test_unread_messages_of_all_calls_stop_the_connection() -> None:
    """Beyond ``unread_bytes_max`` the connection's credit stops growing, and grows again."""
    limits = WireLimits(
        unread_bytes_max=32 * KIB, connection_credit_bytes=32 * KIB, call_credit_bytes=16 * KIB
    )
    pipe = piped(WireLimits(), limits)
    pipe.server.reads = False
    calls = [pipe.open(None, last=False) for _ in range(20)]
    for call in calls:
        for _ in range(8):
            call.send_message(bytes(KIB))
    pipe.run()

    assert pipe.server.unread_bytes <= 32 * KIB + 32 * KIB + 2 * KIB
    for _ in range(200):
        for served in pipe.server.opened:
            if served.log.unread:
                served.take(served.log.unread.pop(0))
        pipe.run()
    assert 160 == sum(len(served.log.messages) for served in pipe.server.opened)


def test_cancel() -> None:
    """CANCEL ends the call at both sides, and a late answer is dropped."""
    pipe = piped()
    call = pipe.open(b"x")
    pipe.run()
    (served,) = pipe.server.opened
    served.reply(b"late")
    pipe.client.cancel(call, Ending(1, "enough"))
    pipe.run()

    assert [Ending(1, "enough")] == call.log.endings
    assert [] == call.log.messages
    assert not pipe.client.closed
    assert not pipe.server.closed


def test_cancel_before_open_went_out() -> None:
    """A call cancelled before its OPEN went out costs nothing on the wire."""
    pipe = piped()
    pipe.carried.clear()
    call = pipe.open(b"x")
    pipe.client.cancel(call, Ending(1, "never mind"))
    pipe.run()

    assert [] == pipe.carried
    assert [] == pipe.server.opened


def test_cancel_in_the_middle_of_a_message() -> None:
    """A cancelled half-sent message leaves the stream intact."""
    pipe = piped()
    call = pipe.open(bytes(MIB))
    pipe.step(pipe.client, pipe.server)
    pipe.client.cancel(call, Ending(1, "enough"))
    after = pipe.open(b"after")
    pipe.run()
    pipe.server.opened[1].reply(b"fine")
    pipe.run()

    assert 1 == pipe.server.opened[0].log.endings[0].code
    assert [b"fine"] == after.log.messages
    assert 0 == pipe.server.incomplete_bytes


def test_deadline_on_both_sides() -> None:
    """When the time is over the client ends its call and the server its handler, by themselves."""
    pipe = piped()
    call = pipe.open(None, last=False)
    call.deadline_s = 5.0
    pipe.client.watch_deadline(call, 5.0)
    pipe.run()
    (served,) = pipe.server.opened
    assert 5.0 == served.deadline_s

    pipe.now_s = 5.0
    pipe.server.handle_timeout(5.0)
    pipe.client.handle_timeout(5.0)
    pipe.run()

    assert [4] == [ending.code for ending in served.log.endings]
    assert [4] == [ending.code for ending in call.log.endings]


def test_calls_beyond_the_servers_limit_wait() -> None:
    """A client keeps calls back that the server would refuse, and sends them as others end."""
    pipe = piped(WireLimits(), WireLimits(calls_max=2))
    calls = [pipe.open(bytes([n])) for n in range(5)]
    pipe.run()
    assert 2 == len(pipe.server.opened)
    for n in range(5):
        pipe.server.opened[n].reply(b"")
        pipe.run()

    assert [[ENDING_OK]] * 5 == [call.log.endings for call in calls]


def test_waiting_calls_are_bounded() -> None:
    """A client refuses calls when too many wait."""
    pipe = piped(WireLimits(calls_waiting_max=1))
    pipe.open(b"")
    with pytest.raises(ResourceExhausted):
        pipe.open(b"")


def test_too_large_a_message_ends_its_call() -> None:
    """A message that grows over the limit ends its call at once; the rest of it is ignored."""
    pipe = piped(WireLimits(), WireLimits(message_bytes_max=100 * KIB))
    pipe.client.peer_limits = WireLimits()  # type: ignore[assignment]  # a client that does not care
    call = pipe.open(bytes(MIB))
    pipe.run()

    assert [8] == [ending.code for ending in call.log.endings]
    assert [8] == [ending.code for ending in pipe.server.opened[0].log.endings]
    other = pipe.open(b"other")
    pipe.run()
    pipe.server.opened[1].reply(b"")
    pipe.run()
    assert [ENDING_OK] == other.log.endings


def test_sender_knows_the_limit() -> None:
    """A client refuses by itself what the server would refuse."""
    pipe = piped(WireLimits(), WireLimits(message_bytes_max=100 * KIB))

    with pytest.raises(MessageTooLarge):
        pipe.open(bytes(MIB))


def test_goaway_lets_calls_finish() -> None:
    """Calls in flight finish; later ones end as safe to retry."""
    pipe = piped()
    before = pipe.open(b"before")
    pipe.run()
    pipe.server.drain(10.0)
    crossing = pipe.open(b"crossing")
    pipe.step(pipe.client, pipe.server)
    pipe.run()
    pipe.server.opened[0].reply(b"done")
    pipe.run()

    assert [10.0] == [goaway.grace_s for goaway in pipe.client.goaways]
    assert [ENDING_OK] == before.log.endings
    assert [14] == [ending.code for ending in crossing.log.endings]
    assert "safe to retry" in crossing.log.endings[0].message
    assert 1 == len(pipe.server.opened)
    assert not pipe.server.closed


def test_lost_stream_ends_calls() -> None:
    """Calls of a lost connection are UNAVAILABLE at the client and cancelled at the server."""
    pipe = piped()
    call = pipe.open(b"x")
    pipe.run()
    unsent = pipe.open(b"y")
    for side in (pipe.client, pipe.server):
        side.connection_lost(ConnectionLost("cut"))

    assert [14] == [ending.code for ending in call.log.endings]
    assert [14] == [ending.code for ending in unsent.log.endings]
    assert [1] == [ending.code for ending in pipe.server.opened[0].log.endings]
    assert {} == pipe.server.calls


def test_close_cancels_and_says_goodbye() -> None:
    """A client that closes cancels its calls; the server hears it."""
    pipe = piped()
    call = pipe.open(b"x")
    pipe.run()
    pipe.client.close()
    pipe.run()

    assert [1] == [ending.code for ending in call.log.endings]
    assert pipe.client.closed


def test_silence_is_probed_and_ended() -> None:
    """After the keepalive time a PING goes out; an answer keeps the connection, silence ends it."""
    pipe = piped()
    call = pipe.open(b"x")
    pipe.run()
    pipe.pass_time(30.0)
    pipe.run()
    pipe.pass_time(10.0)
    pipe.run()
    assert not pipe.client.closed
    assert not pipe.server.closed

    pipe.pass_time(30.0)
    pipe.client.data_to_send(1, pipe.now_s)
    pipe.pass_time(10.0)
    assert [14] == [ending.code for ending in call.log.endings]
    assert ["PeerVanished"] == [type(error).__name__ for error in pipe.client.closed_by]


def test_messages_without_bytes_cost_credit() -> None:
    """Empty messages cannot flood a reader that does not read."""
    pipe = piped(SMALL, SMALL)
    pipe.server.reads = False
    call = pipe.open(None, last=False)
    for _ in range(10_000):
        call.send_message(b"")
    pipe.run()

    assert len(pipe.server.opened[0].log.messages) <= 8 * KIB / 12 + 1


def test_deadlines_forget_ended_calls() -> None:
    """Deadlines of ended calls do not pile up."""

    class Expiring:
        over = False

    deadlines: Deadlines[Expiring] = Deadlines()
    for n in range(10_000):
        entry = Expiring()
        deadlines.add(1000.0 + n, entry)
        entry.over = True

    assert len(deadlines) < 200


def test_last_message_and_flags() -> None:
    """The last message may carry the half-close."""
    pipe: Pipe = piped()
    call = pipe.open(None, last=False)
    pipe.run()
    call.send_message(b"only", END)
    pipe.run()

    assert [b"only"] == pipe.server.opened[0].log.messages
    assert pipe.server.opened[0].peer_done


def test_unsent_calls_may_move() -> None:
    """Calls whose OPEN has not gone out leave nothing behind when another connection takes them."""
    pipe, other = piped(), piped()
    sent = pipe.open(b"sent", priority=3)
    pipe.run()
    pipe.carried.clear()
    moved = [pipe.open(bytes(size), priority=size % 10) for size in (3, 13, 200_000)]
    pipe.client.cancel(sent, Ending(1, "enough"))

    assert moved == pipe.client.take_unsent()
    pipe.run()
    assert 1 == len(pipe.carried)  # the CANCEL
    for call in moved:
        first, call.first, call._scheduled = call.first, None, False
        other.client.open(call, first, last=bool(call.open_flags & END))
    other.run()
    assert [3, 13, 200_000] == sorted(len(c.log.messages[0]) for c in other.server.opened)
