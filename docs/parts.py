"""The generated parts of the documentation, each made from what it describes."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel

MARKUP = re.compile(r"\[/?(?:bold|dim|italic)?\]")


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(
        "| " + " | ".join(c.replace("|", "\\|").replace("\n", " ") for c in row) + " |\n" for row in lines
    )


def suites() -> str:
    """The built-in suites, from their cards."""
    from guardkeel.evaluation.suites.card import read_card
    from guardkeel.evaluation.suites.registry import CARDS

    rows, parts = [], []
    for card in (read_card(file) for file in sorted(CARDS.glob("*.toml"))):
        mapped = card.mapping
        sides = ", ".join(mapped.labels) if mapped else "prompt"
        rows.append(
            [
                f"`{card.name}`",
                card.description,
                _number(card.unsafe),
                _number(card.safe),
                sides,
                card.licence,
            ]
        )
        cited = f" {card.citation}." if card.citation else ""
        parts.append(
            f"**{card.name}** ({card.version}; {card.origin}).{cited}\n\n"
            + "".join(f"- {t}\n" for t in card.traps)
        )
    return (
        table(["name", "what", "unsafe", "safe", "side", "licence"], rows) + "\nTraps:\n\n" + "\n".join(parts)
    )


def policy() -> str:
    """The keys of a gate policy, from the docstrings of its models."""
    from guardkeel.evaluation import policy as p

    parts = []
    for name, model in (
        ("top level", p.Policy),
        ("[non_inferiority]", p.NonInferiority),
        ("[non_inferiority.margins]", p.Margins),
        ("[[absolute]]", p.Absolute),
        ("[geometry]", p.Geometry),
        ("[completeness]", p.Completeness),
    ):
        keys = {k: f for k, f in model.model_fields.items() if not _is_table(f.annotation)}
        if keys:
            rows = [
                [f"`{k}`", _type(f.annotation), _default(f), f.description or ""] for k, f in keys.items()
            ]
            title = f"`{name}`" if name.startswith("[") else name.capitalize()
            parts.append(
                f"{title}. {inspect.getdoc(model)}\n\n" + table(["key", "value", "default", "meaning"], rows)
            )
    return "\n".join(parts)


def audit_keys() -> str:
    """The keys of an audit's configuration, from its model."""
    from guardkeel.evaluation.config import AuditConfig

    fields = AuditConfig.model_fields.items()
    rows = [[f"`{k}`", _type(f.annotation), _default(f), f.description or ""] for k, f in fields]
    return table(["key", "value", "default", "meaning"], rows)


def detectable() -> str:
    """What n pairs can resolve at some discordances, where three rates are tested together (Holm)."""
    from guardkeel.evaluation.paired import detectable_margin

    shares = (0.0, 0.02, 0.05, 0.1, 0.2)
    rows = []
    for n in (50, 100, 200, 300, 500, 1000, 2000, 5000):
        margins = [detectable_margin(n, share, alpha=0.05 / 3) for share in shares]
        rows.append([f"{n:,}", *("–" if m is None else f"{m:.3f}" for m in margins)])
    return table(["n", *(f"{100 * s:g}% differ" for s in shares)], rows)


PARTS: dict[str, Callable[[], str]] = {
    "suites": suites,
    "policy": policy,
    "audit-keys": audit_keys,
    "detectable": detectable,
}


def _number(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def _is_table(annotation: Any) -> bool:
    inner = get_args(annotation) or (annotation,)
    return any(isinstance(a, type) and issubclass(a, BaseModel) for a in inner)


def _type(annotation: Any) -> str:
    """A field's type in words."""
    if get_origin(annotation) is Annotated:
        return _type(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return " or ".join(_type(a) for a in get_args(annotation) if a is not type(None))
    if get_origin(annotation) is list:
        return f"list of {_type(get_args(annotation)[0])}s"
    return {str: "text", int: "whole number", float: "number", bool: "true or false"}.get(
        annotation, str(annotation)
    )


def _default(field: Any) -> str:
    value = field.default
    if value is None:
        return "–"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ", ".join(f"`{v}`" for v in value) or "none"
    return f"`{value}`" if isinstance(value, str) else f"{value:g}"


@dataclass(frozen=True)
class Option:
    """An argument (no names) or an option of a verb."""

    key: str
    names: tuple[str, ...]
    value: str
    default: str
    required: bool
    help: str


def verbs() -> dict[str, tuple[str, list[Option]]]:
    """Every verb with its help text and what it takes, read from the app's functions."""
    from guardkeel.cli import app

    found = {}
    for command in app.registered_commands:
        function = command.callback
        assert function is not None
        name = command.name or function.__name__.replace("_", "-")
        found[name] = (command.help or inspect.getdoc(function) or "", _options(function))
    return found


def _options(function: Callable[..., Any]) -> list[Option]:
    hints = get_type_hints(function, include_extras=True)
    options = []
    for key, parameter in inspect.signature(function).parameters.items():
        if get_origin(hints[key]) is not Annotated:
            continue  # typer's own context
        kind, info = get_args(hints[key])[:2]
        # Inside Annotated the first declaration lands in `default`; typer itself puts it back.
        declared = (info.default, *(info.param_decls or ()))
        named = tuple(d for d in declared if isinstance(d, str) and d.startswith("-"))
        is_option = type(info).__name__ == "OptionInfo"
        kinds = (
            [k for k in get_args(kind) if k is not type(None)]
            if get_origin(kind) in (Union, UnionType)
            else [kind]
        )
        several = any(get_origin(k) is list for k in kinds)
        flag = bool in kinds
        value = "" if flag else (info.metavar or key.upper())
        default = parameter.default
        shown = "" if default in (None, False, True, inspect.Parameter.empty) else str(default)
        options.append(
            Option(
                key,
                (named or (f"--{key.replace('_', '-')}",)) if is_option else (),
                value + (" …" if several else ""),
                shown,
                default is inspect.Parameter.empty,
                info.help or "",
            )
        )
    return options


def cli_page() -> str:
    """docs/cli.md."""
    from guardkeel.cli import app

    found = verbs()
    index = [
        [f"[{verb}](#guardkeel-{verb})", _described(text).split("\n", 1)[0]]
        for verb, (text, _) in found.items()
    ]
    out = [
        "# Command line\n",
        "<!-- This page is generated by docs/build.py from the program's own help. Do not edit it. -->\n",
        _plain(str(app.info.epilog)) + "\n",
        "Every verb has `--help`. Progress goes to stderr and results to stdout, with `--json` as JSON.\n",
        table(["verb", "does"], index),
    ]
    for verb, (text, options) in found.items():
        taken = [o for o in options if not o.names]
        usage = "".join(f" {o.value}" if o.required else f" [{o.value}]" for o in taken)
        out += [
            f"## guardkeel {verb}\n",
            f"```text\nguardkeel {verb} [OPTIONS]{usage}\n```\n",
            _described(text),
        ]
        if taken:
            rows = [[_code(o.value), _code(o.default), o.help] for o in taken]
            out.append(f"Arguments:\n\n{table(['argument', 'default', 'meaning'], rows)}")
        rows = [
            [_code(f"{', '.join(o.names)} {o.value}".strip()), _code(o.default), o.help]
            for o in options
            if o.names
        ]
        out.append(f"Options:\n\n{table(['option', 'default', 'meaning'], rows)}")
    return "\n".join(out)


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _plain(text: str) -> str:
    """Help text without rich's markup."""
    return MARKUP.sub("", text).strip()


def _described(text: str) -> str:
    """A verb's docstring as Markdown: paragraphs, and its indented examples as a console block."""
    blocks = []
    for part in re.split(r"\n\s*\n", _plain(text)):
        if part.startswith("  "):
            lines = "".join(
                f"$ {re.sub(r'  +', '   # ', line.strip(), count=1)}\n" for line in part.split("\n")
            )
            blocks.append(f"```console\n{lines}```\n")
        elif part != "Examples":
            blocks.append(" ".join(part.split("\n")) + "\n")
    return "\n".join(blocks)
