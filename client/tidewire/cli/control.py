"""``tidewire control``: commands to nodes, and nodes that obey them."""

import shlex
from typing import TYPE_CHECKING, Any

import click

from tidewire.cli.groups import Group
from tidewire.cli.input import read_value
from tidewire.cli.output import Output, payload_fields
from tidewire.cli.parameters import SECONDS
from tidewire.cli.settings import Settings, connection_options, pass_settings

if TYPE_CHECKING:
    import tidewire
    from tidewire.client.attendance import Command, CommandHandler
    from tidewire.client.control import NodeResult


@click.group(cls=Group)
def control() -> None:
    """Send commands to nodes, or obey them."""


@control.command(
    epilog="""\b
The server itself is a node, named in `tidewire info`; its verbs are drain, pause_stream,
resume_stream, disconnect_client, list_connections and set_log_level.

\b
Examples:
  tidewire control send pause --node pump-1
  tidewire control send reload --group web --expiry 1m
  tidewire control send set_log_level --node SERVER '{"level": "debug"}'
"""
)
@click.argument("verb")
@click.argument("arguments", default="")
@click.option("--node", help="Send to this node.")
@click.option("--group", help="Send to every node of this group.")
@click.option("--all", "everybody", is_flag=True, help="Send to every node that attends.")
@click.option("--expiry", type=SECONDS, default=30.0, show_default=True, help="Time to be done.")
@click.option("--id", "command_id", help="A command of this id is done once by each node.")
@connection_options
@pass_settings
def send(settings: Settings, /, verb: str, arguments: str, **options: Any) -> int:
    """Tell nodes to do VERB, with ARGUMENTS (or standard input, "-"); wait until they have."""
    from tidewire.cli.session import run

    chosen = [name for name in ("node", "group", "everybody") if options[name]]
    if len(chosen) != 1:
        raise click.UsageError("Choose one of --node, --group and --all.")
    payload = read_value(arguments)
    out = Output()

    async def work(client: "tidewire.Client") -> bool:
        command = client.control.send(
            verb,
            payload,
            node_id=options["node"],
            group=options["group"],
            all_nodes=options["everybody"],
            expiry_s=options["expiry"],
            command_id=options["command_id"],
        )
        async for step in command:
            if step.progress in ("sent", "acknowledged"):
                settings.note(f"{step.node_id}: {step.progress}")
        outcome = await command
        for node in outcome.nodes.values():
            _write(settings, out, node)
        return outcome.succeeded

    return 0 if run(settings, work) else 1


@control.command(
    epilog="""\b
A program gets the arguments on standard input, the verb in TIDEWIRE_VERB and the command's id in
TIDEWIRE_COMMAND_ID; what it writes is the result. There is no shell between.

\b
Examples:
  tidewire control attend pump-1 --on pause='systemctl stop pump' --on resume='systemctl start pump'
  tidewire control attend web-1 --group web --on reload='nginx -s reload'
"""
)
@click.argument("node")
@click.option("--on", "on", multiple=True, required=True, metavar="VERB=COMMAND", help="Obey VERB.")
@click.option("--group", "groups", multiple=True, help="Groups the node is in.")
@connection_options
@pass_settings
def attend(settings: Settings, /, node: str, **options: Any) -> None:
    """Attend as NODE and run a program for each command."""
    from tidewire.cli.session import run

    programs = dict(_program(text) for text in options["on"])

    async def work(client: "tidewire.Client") -> None:
        handlers = {verb: _handler(settings, words) for verb, words in programs.items()}
        async with client.control.attend(node, handlers, groups=options["groups"]) as attendance:
            settings.note(f"attending as {node}: {', '.join(handlers)}")
            await attendance.join()

    run(settings, work)


def _program(text: str) -> tuple[str, list[str]]:
    verb, equals, command = text.partition("=")
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise click.BadParameter(f"{text!r}: {error}.", param_hint="--on") from error
    if not verb or not equals or not words:
        raise click.BadParameter(f"{text!r} is not VERB=COMMAND.", param_hint="--on")
    return verb, words


def _handler(settings: Settings, words: list[str]) -> "CommandHandler":
    from tidewire.cli.program import run_program

    async def handle(command: "Command") -> bytes:
        variables = {"TIDEWIRE_VERB": command.verb, "TIDEWIRE_COMMAND_ID": command.command_id}
        limit_s = max(command.remaining_s, 0.001)
        settings.note(f"{command.verb} {command.command_id}")
        return await run_program(words, command.payload, variables, limit_s)

    return handle


def _write(settings: Settings, out: Output, node: "NodeResult") -> None:
    error = node.error.message if node.error is not None else ""
    if settings.json:
        plain = {"node_id": node.node_id, "progress": node.progress}
        plain |= payload_fields(node.result, "result") if node.result else {}
        out.record(plain | ({"error": error} if error else {}))
        return
    head = f"{node.node_id}\t{node.progress}".encode()
    tail = error.encode() or node.result
    out.payload(head + b"\t" + tail if tail else head)
