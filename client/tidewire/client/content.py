"""What a query, a reply and a command carry, as the application reads it."""

import json
from collections.abc import Sequence
from typing import Any

from tidewire.errors import InvalidArgument
from tidewire.v1 import common_pb2
from tidewire.wire.payload import decode_payload, headers_of


class Content:
    """
    Base of what carries one payload; it is decompressed when it is asked for.

    Bare bytes stand for a payload that is nothing else.
    """

    __slots__ = ("_payload",)

    def __init__(self, payload: common_pb2.Payload | bytes) -> None:
        self._payload = payload

    @property
    def payload(self) -> bytes:
        """The bytes, decompressed. Errors: see `wire.payload.decode_payload`."""
        payload = self._payload
        return payload if isinstance(payload, bytes) else decode_payload(payload)

    @property
    def text(self) -> str:
        """The bytes as UTF-8 text."""
        return self.payload.decode()

    @property
    def headers(self) -> Sequence[tuple[str, bytes]]:
        """Headers the sender gave."""
        payload = self._payload
        return () if isinstance(payload, bytes) else headers_of(payload)

    @property
    def content_type(self) -> str:
        """Media type the sender gave."""
        payload = self._payload
        return "" if isinstance(payload, bytes) else payload.content_type

    def json(self) -> Any:
        """
        The bytes as JSON; an empty mapping when there are none.

        Raises:
            InvalidArgument: They are not JSON; left alone in a handler, it is the answer.
        """
        raw = self.payload
        try:
            return json.loads(raw) if raw else {}
        except ValueError as error:
            raise InvalidArgument(f"the {len(raw)} bytes are not JSON: {error}") from error
