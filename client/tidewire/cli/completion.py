"""``tidewire completion``: the script that makes a shell complete our words."""

import click

SHELLS = ("bash", "zsh", "fish")


@click.command(
    epilog="""\b
Examples:
  tidewire completion bash > ~/.local/share/bash-completion/completions/tidewire
  tidewire completion fish > ~/.config/fish/completions/tidewire.fish
  eval "$(tidewire completion zsh)"
"""
)
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print the completion script of a shell."""
    from click.shell_completion import get_completion_class

    from tidewire.cli.app import make_root

    kind = get_completion_class(shell)
    assert kind is not None
    # Not source(): it asks the shell for its version, which need not be installed here.
    script = kind(make_root(), {}, "tidewire", "_TIDEWIRE_COMPLETE")
    click.echo(script.source_template % script.source_vars())
