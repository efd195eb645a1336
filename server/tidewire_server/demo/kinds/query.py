"""Query: the operator is asked for every day, and how far it is."""

import asyncio
import json
from collections.abc import Mapping
from typing import Any, Final

import tidewire
from tidewire.errors import NoResponders, ResponderFailed, Unavailable
from tidewire_server.demo.expected import Summary, read
from tidewire_server.demo.names import Names
from tidewire_server.demo.report import Cell, Stopwatch, Unverified, require

ASKED_MAX: Final = 1_000
READY_TIMEOUT_S: Final = 15.0
ASK_AGAIN_S: Final = 0.05
NEVER: Final = "1066-10-14"
"""A day no input has."""


class Questions:
    """Asks the operator."""

    def __init__(self, client: tidewire.Client, names: Names) -> None:
        self._client = client
        self._names = names

    async def status(self) -> dict[str, Any]:
        """How far the operator is; waits a while for one that is just starting."""
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                while True:
                    try:
                        told: dict[str, Any] = json.loads(await self._ask_status())
                    except NoResponders:
                        await asyncio.sleep(ASK_AGAIN_S)
                    else:
                        return told
        except TimeoutError:
            raise Unavailable(f"nobody answered within {READY_TIMEOUT_S:g} s") from None

    async def verify(
        self, expected: Mapping[tuple[str, str], Summary], principal: str, cell: Cell
    ) -> None:
        """Ask for every day, at most 1,000 of them; the operator must know who asked."""
        watch = Stopwatch()
        for (city, day), summary in list(expected.items())[:ASKED_MAX]:
            with watch.measured():
                reply = await self._client.queries.ask(self._names.question(city), day)
            told = read(reply.payload)
            require(told == summary, f"{city} on {day} is {told}, not {summary}")
        await self._ask_for_nothing(next(city for city, _ in expected))
        asked_by = (await self.status())["asked_by"]
        require(asked_by == principal, f"the operator saw {asked_by!r} asking, not {principal!r}")
        cell.count = len(watch.durations_s)
        cell.p50_us = watch.p50_us
        cell.detail = f"days asked for and compared; the asker was {principal or 'anybody'}"

    async def _ask_for_nothing(self, city: str) -> None:
        """An exception of the responder is told to who asks."""
        try:
            reply = await self._client.queries.ask(self._names.question(city), NEVER)
        except ResponderFailed:
            return
        raise Unverified(f"a day that is not there was answered with {reply.text}")

    async def _ask_status(self) -> bytes:
        return (await self._client.queries.ask(self._names.status)).payload
