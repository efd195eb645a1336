"""
aioquic behind the seam of ``backend``; no other package names it.

What a stock aioquic server does not do and this adds: it asks for a client certificate, refuses an
empty one, and verifies chain, dates and purpose before anything of the client is looked at; it
refuses a connection whose certificate nobody judged, should a private name it hooks into change. It
lets a session be resumed only with a certificate that was verified, and verifies it again. Windows
slide with what was taken instead of doubling with what was sent, so that memory stays bounded. The
path is probed for longer datagrams, first datagrams prove their address, and a server that was
restarted resets the connections it no longer knows.

Private names of aioquic are used throughout: its version is pinned, and the tests show each effect.
"""

from typing import Final

from tidewire.transport.quic.backend import QuicBackend
from tidewire.transport.quic.over_aioquic.server import AioquicBackend

BACKEND: Final[QuicBackend] = AioquicBackend()
