"""What a query, a reply and a command carry, as the application reads it."""

import json
from collections.abc import Sequence
from typing import Any

from tidewire.errors import InvalidArgument
from tidewire.v1 import common_pb2
from tidewire.wire.payload import decode_payload, headers_of


class Content:
    """Base of what carries one payload; it is decompressed when it is asked for."""

    __slots__ = ("_payload",)

    def __init__(self, payload: common_pb2.Payload) -> None:
        self._payload = payload

    @property
    def payload(self) -> bytes:
        """The bytes, decompressed. Errors: see `wire.payload.decode_payload`."""
        return decode_payload(self._payload)

    @property
    def text(self) -> str:
        """The bytes as UTF-8 text."""
        return self.payload.decode()

    @property
    def headers(self) -> Sequence[tuple[str, bytes]]:
        """Headers the sender gave."""
        return headers_of(self._payload)

    @property
    def content_type(self) -> str:
        """Media type the sender gave."""
        return self._payload.content_type

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
