"""The command: options, the wires in turn, the outcome."""

import asyncio
import logging
import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click
import uvloop

from tidewire.errors import TidewireError
from tidewire_server.demo.data import ROWS_LEAST, ROWS_MAX, Dataset, load
from tidewire_server.demo.datagrams import DatagramScenario
from tidewire_server.demo.names import Names
from tidewire_server.demo.processes import Children
from tidewire_server.demo.report import Cell, Progress, json_line, table
from tidewire_server.demo.scenario import Scenario
from tidewire_server.demo.server import DATAGRAMS, LISTEN, DemoServer, start

WIRES_AT_ONCE: Final = 2
"""Each waits some seconds for a dead operator to be noticed; another one works meanwhile."""
EXIT_UNVERIFIED: Final = 1
EXIT_INPUT: Final = 2
EXIT_INTERRUPTED: Final = 130


@click.command(
    epilog=f"""\b
FILE is CSV in UTF-8 whose first line names the columns time,city,temperature:
  time         local time of the reading, such as 2010-01-31 23:00
  city         letters, digits, blanks, - and _
  temperature  decimal number, such as -3.5
{ROWS_LEAST} to {ROWS_MAX:,} rows, in any order.

\b
The exit code is 0 when every cell of the table is verified, 1 when one is not,
2 when the input cannot be used.
"""
)
@click.option(
    "--input",
    "path",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Hourly temperatures to use.  [default: Seattle and San Francisco, 2010]",
)
@click.option(
    "--wire",
    "wires",
    multiple=True,
    type=click.Choice(list(LISTEN)),
    help="Only this wire; may be repeated.  [default: all]",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line, no table.")
@click.option("--keep", is_flag=True, help="Leave the server running, and say how to talk to it.")
def demo(path: Path | None, wires: tuple[str, ...], as_json: bool, keep: bool) -> None:
    """
    Send real data over every wire, and verify what comes out.

    Starts a server with mTLS and a fresh data folder, and an operator that is killed halfway. On
    each wire all six kinds of messages are used; what comes out is compared with independent
    computations. What a wire of datagrams cannot carry is tried, and must be refused with the typed
    error that says so. memory:// is within one process and has no part here.
    """
    try:
        dataset = load(path)
    except TidewireError as error:
        raise click.BadParameter(error.message, param_hint="--input") from error
    chosen = [wire for wire in LISTEN if not wires or wire in wires]
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            sys.exit(runner.run(_demonstrate(dataset, chosen, as_json, keep)))
    except (KeyboardInterrupt, asyncio.CancelledError):
        click.echo("interrupted; everything that was started is ended", err=True)
        sys.exit(EXIT_INTERRUPTED)


async def _demonstrate(dataset: Dataset, wires: Sequence[str], as_json: bool, keep: bool) -> int:
    _cancel_on_signals()
    progress = Progress()
    folder = Path(tempfile.mkdtemp(prefix="tidewire-demo-"))
    logging.basicConfig(filename=folder / "driver.log", level=logging.INFO)
    folder_stays = False
    try:
        with Children() as children:
            progress.say(f"{len(dataset.readings):,} readings of {dataset.source}")
            server = await start(children, folder, wires)
            progress.say(f"server runs as process {server.child.pid}")
            places = asyncio.Semaphore(WIRES_AT_ONCE)

            async def run(wire: str) -> Sequence[Cell]:
                async with places:
                    if wire in DATAGRAMS:
                        return await DatagramScenario(wire, server, dataset, progress).run()
                    return await Scenario(wire, server, dataset, children, folder, progress).run()

            cells = [cell for found in await asyncio.gather(*map(run, wires)) for cell in found]
            _print(cells, as_json)
            verified = all(cell.ok for cell in cells)
            folder_stays = not verified
            if keep:
                click.echo(_how_to_talk(server, wires, folder), err=as_json)
                children.release(server.child)
                folder_stays = True
            else:
                await server.end()
    except TidewireError as error:
        progress.say(f"failed: {error.message}\nlogs and data are in {folder}")
        folder_stays = True
        return EXIT_UNVERIFIED
    finally:
        if not folder_stays:
            shutil.rmtree(folder, ignore_errors=True)
    if not verified:
        progress.say(f"NOT every cell is verified; logs and data are in {folder}")
        return EXIT_UNVERIFIED
    progress.say("every cell is verified")
    return 0


def _cancel_on_signals() -> None:
    """End in order when told to, or when the terminal goes; Ctrl-C is asyncio's own."""
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)


def _print(cells: Sequence[Cell], as_json: bool) -> None:
    if as_json:
        for cell in cells:
            click.echo(json_line(cell))
    else:
        click.echo(table(cells))


def _how_to_talk(server: DemoServer, wires: Sequence[str], folder: Path) -> str:
    """Commands for the server that was left running."""
    program = shlex.quote(str(Path(sys.executable).with_name("tidewire")))
    names = Names.of(wires[0])
    return f"""
The server goes on as process {server.child.pid}. Talk to it:

  export TIDEWIRE_URL={shlex.quote(server.url(wires[0]))}
  {program} info
  {program} stream list
  {program} sub --stream {names.daily} --end --count 5
  {program} state list {names.key("")} | head
  {program} checkpoint show {names.operator}

End it by `kill {server.child.pid}`. Its data, logs and certificates are in {folder}"""
