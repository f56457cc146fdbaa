"""Options that are fields of a verb's configuration: their help is what the field says of itself, and its default."""

from __future__ import annotations

from typing import Any, Protocol

import typer
from pydantic import BaseModel


class Says(Protocol):
    """The help text of a field, with words before and after its description."""

    def __call__(self, name: str, before: str = "", after: str = "") -> str:
        """As one sentence, with the default where it tells something."""


def says(model: type[BaseModel]) -> Says:
    """The help texts of a configuration's fields."""

    def text(name: str, before: str = "", after: str = "") -> str:
        field = model.model_fields[name]
        words = before + (field.description or "") + after
        default: Any = None if field.is_required() else field.get_default(call_default_factory=True)
        if isinstance(default, list):
            default = ", ".join(map(str, default))
        shown = isinstance(default, str | int | float) and default != "" and not isinstance(default, bool)
        return f"{words[:1].upper()}{words[1:]}." + (f" Default: {default}." if shown else "")

    return text


def named_files(given: list[str]) -> dict[str, str]:
    """NAME=FILE options as a table."""
    found = {}
    for text in given:
        name, equals, file = text.partition("=")
        if not equals or not file:
            raise typer.BadParameter(f"{text!r} is not NAME=FILE", param_hint="--extra")
        found[name] = file
    return found
