"""A verb with sub-commands that is a verb by itself too: `guardkeel fuse GUARD` beside `guardkeel fuse sweep`."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup

OWN = "itself"
"""The hidden name of the verb's own form; nobody sees it or types it."""


class OwnForm(TyperGroup):
    """What does not begin with a sub-command's name is for the verb's own form."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the hidden name before the words of the verb's own form."""
        return super().parse_args(ctx, args if args and args[0] in self.commands else [OWN, *args])

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Leave the hidden name out of what usage lines and errors call the command."""
        name, command, rest = super().resolve_command(ctx, args)
        return "" if name == OWN else name, command, rest
