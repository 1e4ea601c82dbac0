"""`billing completion bash|zsh|fish`: prints the script with which a shell completes commands and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from billing.cli.options import Command
from billing.cli.output import put

SHELLS = ("bash", "zsh", "fish")


@click.command(cls=Command)
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Prints what makes SHELL complete commands and options.

    \b
    bash:  billing completion bash > ~/.local/share/bash-completion/completions/billing
    zsh:   billing completion zsh > "${fpath[1]}/_billing"
    fish:  billing completion fish > ~/.config/fish/completions/billing.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None, "click knows these shells"
    script = kind(context.find_root().command, {}, "billing", "_BILLING_COMPLETE")
    put(script.source_template % script.source_vars(), newline=False)


COMMANDS: dict[str, click.Command] = {"completion": completion}
