"""What the event loop knows of streams without asking a thread: only what is durable."""

from dataclasses import dataclass

from tidewire.v1 import event_pb2
from tidewire_server.engine.embedded import ranges, rows
from tidewire_server.engine.embedded.facts import Stream
from tidewire_server.engine.embedded.session import Session


@dataclass(slots=True)
class StreamView:
    """A stream as it was after the last durable group. Nothing in it is shared with the writer."""

    number: int
    name: str
    config: event_pb2.StreamConfig
    created_ns: int
    consumers: int
    counters: tuple[int, ...]
    holes: tuple[ranges.Range, ...] = ()

    @property
    def first_sequence(self) -> int:
        """First sequence kept."""
        return self.counters[0]

    @property
    def last_sequence(self) -> int:
        """Last sequence given."""
        return self.counters[1]

    def as_stream(self) -> Stream:
        """A stream with the counters of this view."""
        stream = Stream(self.number, self.name, self.config, self.created_ns)
        stream.restore(self.counters)
        stream.holes = list(self.holes)
        return stream


def views_of(session: Session) -> dict[str, StreamView]:
    """
    Views of all streams. A stream's configuration is replaced, never changed, so it can be shared.
    """
    found = session.execute("SELECT stream, count(*) FROM consumers GROUP BY stream")
    counts: dict[int, int] = dict(rows.readable(found))
    return {
        name: StreamView(
            stream.number,
            name,
            stream.config,
            stream.created_ns,
            counts.get(stream.number, 0),
            stream.counters(),
            tuple(stream.holes),
        )
        for name, stream in session.streams.by_name.items()
    }
