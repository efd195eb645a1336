"""``tidewire state``: shared, versioned values."""

from typing import TYPE_CHECKING, Any

import click

from tidewire.cli.groups import Group
from tidewire.cli.input import read_value
from tidewire.cli.output import Output, payload_fields
from tidewire.cli.parameters import SECONDS
from tidewire.cli.settings import Settings, connection_options, pass_settings

if TYPE_CHECKING:
    import tidewire
    from tidewire.client.entries import Entry, StateEvent


@click.group(cls=Group)
def state() -> None:
    """Read, write and watch shared state."""


@state.command(epilog="\b\nExamples:\n  tidewire state get config/limit --json")
@click.argument("name", metavar="KEY")
@click.option("--revision", type=click.IntRange(0), default=0, help="As it was at this revision.")
@connection_options
@pass_settings
def get(settings: Settings, name: str, revision: int) -> None:
    """Print the value of KEY. Exit code 1 when it is not there."""
    from tidewire.cli.session import run
    from tidewire.errors import KeyNotFound

    async def work(client: "tidewire.Client") -> "Entry":
        entry = await client.state.get(name, revision=revision)
        if entry is None:
            raise KeyNotFound(f"there is no key {name!r}")
        return entry

    entry = run(settings, work)
    if settings.json:
        Output().record(entry_fields(entry))
    else:
        Output().payload(entry.value or b"")


@state.command(
    epilog="""\b
Examples:
  tidewire state put config/limit 10
  tidewire state put lock/report me --expect 0 --ttl 30s
  tidewire state put config/file - < settings.json
"""
)
@click.argument("name", metavar="KEY")
@click.argument("value")
@click.option("--expect", type=click.IntRange(0), help="Only at this revision; 0: only if absent.")
@click.option("--ttl", type=SECONDS, help="Time to live, such as 30s.")
@connection_options
@pass_settings
def put(settings: Settings, name: str, value: str, expect: int | None, ttl: float | None) -> None:
    """Write VALUE, or standard input when it is "-", to KEY; print the new revision."""
    from tidewire.cli.session import run

    data = read_value(value)

    async def work(client: "tidewire.Client") -> "Entry":
        return await client.state.put(name, data, expected_revision=expect, ttl_s=ttl)

    entry = run(settings, work)
    if settings.json:
        Output().record(entry_fields(entry))
    elif not settings.quiet:
        Output().line(str(entry.revision))


@state.command(epilog="\b\nExamples:\n  tidewire state delete config/limit")
@click.argument("name", metavar="KEY")
@click.option("--expect", type=click.IntRange(1), help="Only at this revision.")
@connection_options
@pass_settings
def delete(settings: Settings, name: str, expect: int | None) -> None:
    """Delete KEY. Deleting what is not there is no error."""
    from tidewire.cli.session import run

    async def work(client: "tidewire.Client") -> bool:
        return bool(await client.state.delete(name, expected_revision=expect))

    deleted = run(settings, work)
    if settings.json:
        Output().record({"key": name, "deleted": deleted})
    else:
        settings.note("deleted" if deleted else f"there was no key {name!r}")


@state.command(
    "list", epilog="\b\nExamples:\n  tidewire state list\n  tidewire state list config/ --values"
)
@click.argument("prefix", default="")
@click.option("--values", is_flag=True, help="Show the values too.")
@connection_options
@pass_settings
def list_keys(settings: Settings, prefix: str, values: bool) -> None:
    """List keys, or those that begin with PREFIX, in order."""
    from tidewire.cli.session import run

    out = Output()

    async def work(client: "tidewire.Client") -> None:
        async for entry in client.state.range(prefix, keys_only=not values):
            if settings.json:
                out.record(entry_fields(entry))
            elif values:
                out.payload(entry.key.encode() + b"\t" + (entry.value or b""))
            else:
                out.line(entry.key)

    run(settings, work)


@state.command(epilog="\b\nExamples:\n  tidewire state history config/limit")
@click.argument("name", metavar="KEY")
@click.option("--count", type=click.IntRange(1), default=64, show_default=True, help="At most.")
@connection_options
@pass_settings
def history(settings: Settings, name: str, count: int) -> None:
    """Show the versions of KEY that are kept, newest first."""
    from tidewire.cli.session import run

    out = Output()

    async def work(client: "tidewire.Client") -> None:
        left = count
        async for event in client.state.history(name, page_size=min(count, 1_000)):
            write_event(settings, out, event)
            left -= 1
            if not left:
                return

    run(settings, work)


@state.command(
    epilog="""\b
Examples:
  tidewire state watch config/
  tidewire state watch config/limit --exact --changes-only --json
"""
)
@click.argument("prefix", default="")
@click.option("--exact", is_flag=True, help="Only the key that equals PREFIX.")
@click.option("--after-revision", type=click.IntRange(0), default=0, help="Go on after this one.")
@click.option("--changes-only", is_flag=True, help="Only what comes, not what is there.")
@click.option("--count", type=click.IntRange(1), help="End after this many lines.")
@connection_options
@pass_settings
def watch(settings: Settings, /, prefix: str, **options: Any) -> None:
    """Print what is there under PREFIX, then every change as it happens."""
    from tidewire.cli.session import run

    out = Output()

    async def work(client: "tidewire.Client") -> None:
        left = options["count"]
        async with client.state.watch(
            prefix,
            exact=options["exact"],
            after_revision=options["after_revision"],
            changes_only=options["changes_only"],
        ) as events:
            settings.note(f"watching {prefix or 'all keys'}")
            async for event in events:
                write_event(settings, out, event)
                left = left - 1 if left and event.entry is not None else left
                if left == 0:
                    return

    run(settings, work)


def entry_fields(entry: "Entry") -> dict[str, object]:
    """An entry in JSON; what it has not is left out."""
    value = {} if entry.value is None else payload_fields(entry.value, "value")
    fields = {
        "revision": entry.revision,
        "create_revision": entry.create_revision,
        "version": entry.version,
        "ttl_s": entry.ttl_s,
        "expires": entry.expires,
        "lease_node_id": entry.lease_node_id,
        "content_type": entry.content_type,
        "time": entry.time,
    }
    present = {name: value for name, value in fields.items() if value not in (None, "", 0)}
    return {"key": entry.key, **value, **present}


def write_event(settings: Settings, out: Output, event: "StateEvent") -> None:
    """Write an event: revision, kind, key, and the value where there is one."""
    if event.entry is None:
        if settings.json:
            out.record({"kind": event.kind, "revision": event.revision})
        else:
            settings.note(f"{event.kind.value} at revision {event.revision}")
        return
    entry = event.entry
    if settings.json:
        out.record({"kind": event.kind, **entry_fields(entry)})
        return
    head = f"{entry.revision}\t{event.kind.value}\t{entry.key}".encode()
    out.payload(head if entry.value is None else head + b"\t" + entry.value)
