"""Administration by command: arguments, results, and what is wrong with them."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from tidewire import errors
from tidewire.v1 import common_pb2
from tidewire_server.services.control.admin import VERBS, parse_arguments, run_verb


class Recorder:
    """Actions that remember what was asked of them."""

    def __init__(self) -> None:
        self.done: list[tuple[Any, ...]] = []

    async def drain(self, grace_s: float | None = None) -> None:
        self.done.append(("drain", grace_s))

    async def pause_stream(self, name: str) -> None:
        self.done.append(("pause_stream", name))

    async def resume_stream(self, name: str) -> None:
        self.done.append(("resume_stream", name))

    async def disconnect_client(self, connection_id: str) -> None:
        self.done.append(("disconnect_client", connection_id))

    async def list_connections(self) -> Sequence[Mapping[str, str | int]]:
        return [{"connection_id": "tcp-1", "calls": 2}]

    async def set_log_level(self, level: str) -> None:
        self.done.append(("set_log_level", level))


def payload(value: Any) -> common_pb2.Payload:
    return common_pb2.Payload(data=json.dumps(value).encode())


@pytest.mark.parametrize(
    ("verb", "arguments", "expected"),
    [
        ("drain", {}, ("drain", None)),
        ("drain", {"grace_s": 2.5}, ("drain", 2.5)),
        ("pause_stream", {"name": "s"}, ("pause_stream", "s")),
        ("resume_stream", {"name": "s"}, ("resume_stream", "s")),
        ("disconnect_client", {"connection_id": "tcp-5"}, ("disconnect_client", "tcp-5")),
        ("set_log_level", {"level": "debug"}, ("set_log_level", "debug")),
    ],
)
async def test_every_verb_does_its_action(
    verb: str, arguments: dict[str, Any], expected: tuple[Any, ...]
) -> None:
    """With the arguments that were given."""
    actions = Recorder()
    result = await run_verb(actions, verb, payload(arguments))

    assert [expected] == actions.done
    assert {} == json.loads(result.data)


async def test_results_are_json() -> None:
    """What an action returns comes back."""
    result = await run_verb(Recorder(), "list_connections", common_pb2.Payload())

    assert {"result": [{"connection_id": "tcp-1", "calls": 2}]} == json.loads(result.data)
    assert "application/json" == result.content_type


@pytest.mark.parametrize(
    ("verb", "data", "word"),
    [
        ("format_disk", b"", "drain"),
        ("drain", b"{", "JSON"),
        ("drain", b"\xff\xfe", "UTF-8"),
        ("drain", b"[]", "object"),
        ("drain", b'{"grace": 1}', "grace_s"),
        ("drain", b'{"grace_s": "1"}', "number"),
        ("drain", b'{"grace_s": true}', "number"),
        ("drain", b'{"grace_s": -1}', "0 to 3600"),
        ("drain", b'{"grace_s": NaN}', "0 to 3600"),
        ("pause_stream", b"", "missing"),
        ("pause_stream", b'{"name": ""}', "not empty"),
        ("pause_stream", b'{"name": 5}', "string"),
        ("list_connections", b'{"x": 1}', "no arguments"),
    ],
)
def test_wrong_arguments_are_named(verb: str, data: bytes, word: str) -> None:
    """The message says what is wrong and what would be right."""
    with pytest.raises(errors.InvalidArgument, match=word):
        parse_arguments(verb, common_pb2.Payload(data=data))


async def test_without_administration_every_verb_fails() -> None:
    """Typed, after its arguments were checked."""
    for verb in VERBS:
        with pytest.raises((errors.FailedPrecondition, errors.InvalidArgument)):
            await run_verb(None, verb, common_pb2.Payload())
