"""An echo that counts how often each request was really done."""

import asyncio
from collections import Counter
from typing import Any

from support.echo.v1 import echo_pb2
from support.echo_service import EchoService


class CountingEcho(EchoService):
    """
    Remembers the texts it was asked with, each as often as its handler ran.

    ``wait_s`` in the text after a colon, as in ``"a:0.3"``, lets the handler take so long.
    """

    def __init__(self) -> None:
        super().__init__()
        self.done: Counter[str] = Counter()

    async def Say(self, request: echo_pb2.SayRequest, context: Any) -> echo_pb2.SayResponse:
        """Count and echo."""
        self.done[request.text] += 1
        _, colon, wait_s = request.text.partition(":")
        if colon:
            await asyncio.sleep(float(wait_s))
        if request.fault:
            return await super().Say(request, context)
        return echo_pb2.SayResponse(text=request.text, body=request.body)
