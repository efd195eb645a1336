"""``tidewire js``: the client for browsers, as files to serve."""

import shutil
from pathlib import Path
from typing import Final

import click

FOLDER: Final = Path(__file__).resolve().parent.parent / "js"


@click.command(
    epilog="""\b
Examples:
  tidewire js static/tidewire
  <script type="module">
    import { connect } from "/static/tidewire/tidewire.js";
    const client = await connect("wss://messages.example:7407");
  </script>
The server must list the page's origin: --websocket-origins https://app.example
"""
)
@click.argument("folder", required=False, type=click.Path(file_okay=False, path_type=Path))
def js(folder: Path | None) -> None:
    """
    Copy the JavaScript client to FOLDER; without one print where it is.

    It is made of ES modules and needs no build step: serve them and import tidewire.js.
    """
    if folder is None:
        click.echo(str(FOLDER))
        return
    folder.mkdir(parents=True, exist_ok=True)
    for module in sorted(FOLDER.glob("*.js")):
        shutil.copyfile(module, folder / module.name)
        click.echo(str(folder / module.name))
