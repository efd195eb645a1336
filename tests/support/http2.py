"""HTTP/2 by hand, for peers of gRPC that no library would make."""

import struct
from typing import Final

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, SETTINGS, PING = 0, 1, 4, 6
END_STREAM, ACK, END_HEADERS = 1, 1, 4


def frame(kind: int, flags: int, stream: int, body: bytes = b"") -> bytes:
    """One frame."""
    return len(body).to_bytes(3, "big") + bytes((kind, flags)) + struct.pack(">I", stream) + body


GREETING: Final = PREFACE + frame(SETTINGS, 0, 0) + frame(SETTINGS, ACK, 0)


def head(method: str) -> bytes:
    """The header block of a call; every field literal, without table and Huffman."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": method,
        ":authority": "localhost",
        "te": "trailers",
        "content-type": "application/grpc",
    }
    return b"".join(
        b"\x00" + bytes((len(name),)) + name.encode() + bytes((len(value),)) + value.encode()
        for name, value in fields.items()
    )


def call(method: str, message: bytes, stream: int) -> bytes:
    """A whole unary call: headers, and one message that ends the stream."""
    body = b"\x00" + struct.pack(">I", len(message)) + message
    return frame(HEADERS, END_HEADERS, stream, head(method)) + frame(DATA, END_STREAM, stream, body)
