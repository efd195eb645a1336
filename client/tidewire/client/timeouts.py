"""How long a client waits, by how far the server is: profiles to choose from."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from tidewire.errors import InvalidArgument

if TYPE_CHECKING:
    from tidewire.transport import TransportOptions


@dataclass(frozen=True, slots=True)
class TimeoutProfile:
    """
    Times of a client that fit together; all in seconds.

    Those of probes, of PINGs and of the answers to both adapt: they are lower bounds, and grow to
    3 to 5 measured round trips, at most to ten times what stands here.
    """

    name: str
    connect_s: float
    """To reach the server: name, connection, TLS and HELLO."""
    hello_s: float
    """For the server's HELLO."""
    request_s: float
    """For a request with all its tries, when the call does not say."""
    probe_s: float
    """Silence under an open call after which the server is asked whether it is there, and the
    time for its answer. So a server that hangs is left after twice this."""
    keepalive_s: float
    """Silence without a call after which the server is asked whether it is there."""
    ping_s: float
    """For the answer to that."""
    read_s: float
    """For a frame that has begun to arrive whole."""
    write_s: float
    """For the peer's system to acknowledge what was written, on TCP."""

    def applied_to(self, options: "TransportOptions") -> "TransportOptions":
        """Return these options of the wire with the times of this profile."""
        limits = replace(
            options.limits,
            hello_timeout_s=self.hello_s,
            probe_s=self.probe_s,
            keepalive_s=self.keepalive_s,
            ping_timeout_s=self.ping_s,
            frame_timeout_s=self.read_s,
        )
        return replace(
            options,
            limits=limits,
            connect_timeout_s=self.connect_s,
            write_timeout_s=self.write_s,
        )


LAN: Final = TimeoutProfile(
    name="lan",
    connect_s=1.0,
    hello_s=1.0,
    request_s=5.0,
    probe_s=1.0,
    keepalive_s=15.0,
    ping_s=2.0,
    read_s=5.0,
    write_s=5.0,
)
"""One network, round trips below 10 ms. A server that hangs is left after 2 s."""
WAN: Final = TimeoutProfile(
    name="wan",
    connect_s=10.0,
    hello_s=3.0,
    request_s=30.0,
    probe_s=5.0,
    keepalive_s=30.0,
    ping_s=10.0,
    read_s=10.0,
    write_s=30.0,
)
"""Between sites, round trips up to 300 ms: what holds when no profile is chosen."""
SATELLITE: Final = TimeoutProfile(
    name="satellite",
    connect_s=60.0,
    hello_s=20.0,
    request_s=120.0,
    probe_s=15.0,
    keepalive_s=60.0,
    ping_s=30.0,
    read_s=60.0,
    write_s=120.0,
)
"""Round trips of seconds, losses, small bandwidth."""
PROFILES: Final = {profile.name: profile for profile in (LAN, WAN, SATELLITE)}


def profile_of(choice: "TimeoutProfile | str | None") -> TimeoutProfile | None:
    """Return the profile of a name or of itself; raise InvalidArgument for a name of none."""
    if choice is None or isinstance(choice, TimeoutProfile):
        return choice
    if choice not in PROFILES:
        raise InvalidArgument(f"there is no profile {choice!r}; there are {', '.join(PROFILES)}")
    return PROFILES[choice]
