"""The generated parts of the documentation, each made from what it describes."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel

COLLAPSE = Path(__file__).with_name("collapse.json")
COLLAPSE_PARTS = ("overall", "table", "contrasts", "prediction", "variants")
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
        rows.append(
            [
                f"`{card.name}`",
                card.description,
                ", ".join(card.sides) or "prompt",
                _number(card.unsafe),
                _number(card.safe),
                card.licence,
                card.checked or "",
                card.where,
                ", ".join(f"`@{c.name}`" for c in card.copies),
            ]
        )
        cited = f" {card.citation}." if card.citation else ""
        home = f" <{card.home}>" if card.home else ""
        parts.append(
            f"**{card.name}** ({card.version}; {card.origin}).{cited}{home}\n\n"
            + "".join(f"- {t}\n" for t in card.traps)
            + "".join(f"- `@{c.name}`: {c.note}\n" for c in card.copies if c.note)
        )
    head = ["name", "what", "side", "unsafe", "safe", "licence", "checked", "read from", "copies"]
    return table(head, rows) + "\nTraps:\n\n" + "\n".join(parts)


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

    return _keys(AuditConfig)


def tune_keys() -> str:
    """The keys of a fine-tune's configuration, from its model."""
    from guardkeel.tuning.config import TuneConfig

    return _keys(TuneConfig)


def methods() -> str:
    """What `--method` takes, with the settings in which a method differs from the defaults of its kind."""
    from guardkeel.tuning.config import DEFAULT_METHOD
    from guardkeel.tuning.regularisers.registry import METHODS

    rows = []
    for name, method in METHODS.items():
        default = " (default)" if name == DEFAULT_METHOD else ""
        kind = method.regulariser.name
        fields = method.regulariser.Settings.model_fields
        own = [f"`{k} = {json.dumps(v)}`" for k, v in method.options.items() if v != fields[k].default]
        settings = kind if fields else ""
        rows.append([f"`{name}`{default}", method.summary, settings, ", ".join(own)])
    return table(["method", "what it does", "settings of", "set to"], rows)


def method_settings() -> str:
    """The settings of each kind of method, from their models."""
    from guardkeel.tuning.regularisers.registry import METHODS

    parts = {}
    for method in METHODS.values():
        kind = method.regulariser
        if kind.Settings.model_fields:
            parts[kind.name] = f"**{kind.name}**. {inspect.getdoc(kind.Settings)}\n\n{_keys(kind.Settings)}"
    return "\n".join(parts.values())


def fuse_keys() -> str:
    """The keys of a fuse's configuration, from its model."""
    from guardkeel.fusion.config import FuseConfig

    return _keys(FuseConfig)


def fusion_methods() -> str:
    """What `guardkeel fuse --method` takes: what it does, its paper (from its module), and what it needs."""
    from guardkeel.fusion.config import DEFAULT_METHOD
    from guardkeel.fusion.methods.registry import OWN

    rows = []
    for method in OWN:
        default = " (default)" if method.name == DEFAULT_METHOD else ""
        first = (inspect.getdoc(inspect.getmodule(method)) or "").split("\n", 1)[0]
        paper = ", ".join(f"[{i}](https://arxiv.org/abs/{i})" for i in re.findall(r"arXiv:([\d.]+\d)", first))
        more = "any number" if method.most is None else str(method.most)
        takes = more if method.least == 1 else f"{method.least} or more"
        needs = ["`--unaligned`"] * method.needs_unaligned + [f"`--extra {e}=FILE`" for e in method.extras]
        needs += ["a seed"] * method.draws
        rows.append([f"`{method.name}`{default}", method.summary, paper, takes, ", ".join(needs)])
    return table(["method", "what it makes", "paper", "candidates", "needs"], rows)


def fusion_settings() -> str:
    """The settings of each fusion method, from their models."""
    from guardkeel.fusion.methods.registry import OWN

    return "\n".join(f"**{m.name}**\n\n{_keys(m.Settings)}" for m in OWN if m.Settings.model_fields)


def detectable() -> str:
    """What n pairs can resolve at some discordances, where three rates are tested together (Holm)."""
    from guardkeel.evaluation.paired import detectable_margin

    shares = (0.0, 0.02, 0.05, 0.1, 0.2)
    rows = []
    for n in (50, 100, 200, 300, 500, 1000, 2000, 5000):
        margins = [detectable_margin(n, share, alpha=0.05 / 3) for share in shares]
        rows.append([f"{n:,}", *("–" if m is None else f"{m:.3f}" for m in margins)])
    return table(["n", *(f"{100 * s:g}% differ" for s in shares)], rows)


def collapse(part: str) -> str:
    """A part of the table of the collapse bench, from its published figures."""
    from guardkeel.report.collapse import markdown
    from guardkeel.tuning.collapse.table import read_table

    if not COLLAPSE.exists():
        return "No figures are there yet: the bench has not been run.\n"
    return markdown(read_table(COLLAPSE))[part]


PARTS: dict[str, Callable[[], str]] = {
    "suites": suites,
    "policy": policy,
    "audit-keys": audit_keys,
    "detectable": detectable,
    "tune-keys": tune_keys,
    "methods": methods,
    "method-settings": method_settings,
    "fuse-keys": fuse_keys,
    "fusion-methods": fusion_methods,
    "fusion-settings": fusion_settings,
    **{f"collapse-{part}": partial(collapse, part) for part in COLLAPSE_PARTS},
}


def _keys(model: type[BaseModel]) -> str:
    """The fields of a model as a table."""
    fields = model.model_fields.items()
    rows = [[f"`{k}`", _type(f.annotation), _default(f), f.description or ""] for k, f in fields]
    return table(["key", "value", "default", "meaning"], rows)


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
    if get_origin(annotation) is Literal:
        *some, last = (f"`{value}`" for value in get_args(annotation))
        return f"{', '.join(some)} or {last}"
    if get_origin(annotation) in (list, tuple):
        return f"list of {_type(get_args(annotation)[0])}s"
    if get_origin(annotation) is dict:
        return "table"
    return {str: "text", int: "whole number", float: "number", bool: "true or false"}.get(
        annotation, str(annotation)
    )


def _default(field: Any) -> str:
    value = field.get_default(call_default_factory=True)
    if field.is_required() or value is None or value == {}:
        return "–"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
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
    """Every verb with its help text and what it takes, read from the app's functions; of a group as "group verb".

    A hidden command is the group's own form, and goes by its name.
    """
    from guardkeel.cli import app

    commands = [("", command) for command in app.registered_commands]
    for group in app.registered_groups:
        assert group.typer_instance is not None
        commands += [(f"{group.name} ", command) for command in group.typer_instance.registered_commands]
    found = {}
    for group_name, command in commands:
        function = command.callback
        assert function is not None
        name = command.name or function.__name__.replace("_", "-")
        full = group_name.strip() if command.hidden else group_name + name
        found[full] = (command.help or inspect.getdoc(function) or "", _options(function))
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
        [f"[{verb}](#guardkeel-{verb.replace(' ', '-')})", _described(text).split("\n", 1)[0]]
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
    return MARKUP.sub("", text).replace("\\[", "[").strip()


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
