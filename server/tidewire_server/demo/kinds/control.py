"""Control: the operator is paused and resumed, and each command is acknowledged and done once."""

import asyncio
from typing import Final

import tidewire
from tidewire.client.control import CommandOutcome
from tidewire_server.demo.kinds.query import Questions
from tidewire_server.demo.names import Names
from tidewire_server.demo.report import Cell, Stopwatch, require

ROUNDS: Final = 20
STILL_S: Final = 0.5
"""How long a paused operator is looked at, with messages waiting for it."""


class Switch:
    """Pauses and resumes the operator."""

    def __init__(self, client: tidewire.Client, names: Names, questions: Questions) -> None:
        self._control = client.control
        self._names = names
        self._questions = questions
        self._watch = Stopwatch()
        self._sent = 0
        self._paused_at = 0

    async def pause(self) -> None:
        """Switch it to and fro, and leave it paused."""
        before = (await self._questions.status())["commands"]
        for _ in range(ROUNDS):
            await self._send("pause")
            await self._send("resume")
        outcome = await self._send("pause")
        again = await self._control.send(
            "pause", node_id=self._names.operator, command_id=outcome.command_id
        )
        status = await self._questions.status()
        done = status["commands"] - before
        require(done == self._sent, f"{self._sent} commands were sent, {done} were done")
        require(again.nodes == outcome.nodes, "a command sent twice was answered differently")
        require(status["paused"], "the operator was paused and says it is not")
        self._paused_at = status["processed"]

    async def verify(self, waiting: int, cell: Cell) -> None:
        """
        With messages waiting for it, it must stand still, and go on when resumed.

        Args:
            waiting: Sequence of the last message in the stream.
            cell: Cell to fill.
        """
        await asyncio.sleep(STILL_S)
        processed = (await self._questions.status())["processed"]
        require(processed == self._paused_at < waiting, f"paused, it went on to {processed}")
        await self._send("resume")
        require(not (await self._questions.status())["paused"], "resumed, it stays paused")
        cell.count = self._sent
        cell.p50_us = self._watch.p50_us
        cell.detail = (
            f"pause and resume, acknowledged and done once; stood still at {processed:,} with "
            f"{waiting - processed:,} waiting"
        )

    async def _send(self, verb: str) -> CommandOutcome:
        command = self._control.send(verb, node_id=self._names.operator)
        with self._watch.measured():
            steps = [step.progress async for step in command]
        self._sent += 1
        outcome = command.outcome
        require(outcome is not None and outcome.succeeded, f"{verb} had the outcome {outcome}")
        require("acknowledged" in steps, f"{verb} was not acknowledged: {steps}")
        assert outcome is not None
        return outcome
