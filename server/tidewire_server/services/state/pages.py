"""
Page tokens: where a listing goes on, and which revision it shows.

A token is opaque to clients and belongs to the question it came from: with another prefix or key it
is refused, so that a mix-up is an error and not a wrong listing.
"""

import base64
import binascii
import struct
import zlib

from tidewire.errors import InvalidArgument

_HEAD = struct.Struct(">IQ")


def encode_token(question: str, revision: int, place: str = "") -> str:
    """
    Make the token for a question (prefix or key), the revision of its pages and the last key that
    was sent.
    """
    head = _HEAD.pack(zlib.crc32(question.encode()), revision)
    return base64.urlsafe_b64encode(head + place.encode()).decode()


def decode_token(question: str, token: str) -> tuple[int, str]:
    """
    Return the revision and the place of a token; ``(0, "")`` for the empty one.

    Raises:
        InvalidArgument: It is not a token of this question.
    """
    if not token:
        return 0, ""
    try:
        data = base64.b64decode(token, altchars=b"-_", validate=True)
        asked, revision = _HEAD.unpack_from(data)
        place = data[_HEAD.size :].decode()
    except (binascii.Error, struct.error, UnicodeError, ValueError):
        raise _refused("is not a token of this server") from None
    if asked != zlib.crc32(question.encode()):
        raise _refused("is of another listing; start again without a token")
    return revision, place


def _refused(what: str) -> InvalidArgument:
    return InvalidArgument(f"page_token {what}", fields={"page_token": what})
