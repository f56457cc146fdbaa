"""A verb's configuration: a TOML file, options over it, `--set KEY=VALUE` over both; unknown keys are refused."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from guardkeel.errors import ConfigError

Model = TypeVar("Model", bound=BaseModel)


def read_configuration(
    model: type[Model], verb: str, path: Path | None, given: Mapping[str, Any], changes: Sequence[str] = ()
) -> Model:
    """A TOML file, overridden by options that were given, overridden by KEY=VALUE changes.

    A key may reach into tables: options.kl.strength=2. Values are JSON, or else plain words.

    Raises:
        ConfigError: naming the file, key and value.
    """
    table: dict[str, Any] = {}
    if path is not None:
        try:
            table = tomllib.loads(path.read_text("utf-8"))
        except OSError as e:
            raise ConfigError(f"{path}: cannot be read ({e.strerror})", remedy="check the path") from e
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
            raise ConfigError(f"{path}: not TOML: {e}", remedy="see https://toml.io") from e
    table |= {k: v for k, v in given.items() if v is not None}
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals:
            raise ConfigError(f"--set {change!r}: not KEY=VALUE", remedy="for example --set limit=200")
        _put(table, key.strip(), _value(value))
    try:
        return model.model_validate(table)
    except ValidationError as e:
        first = e.errors()[0]
        key = ".".join(map(str, first["loc"]))
        where = f"{path}: " if path else ""
        if first["type"] == "extra_forbidden":
            raise ConfigError(
                f"{where}unknown key {key!r}", remedy=f"keys are {', '.join(model.model_fields)}"
            ) from e
        raise ConfigError(
            f"{where}{key} = {first['input']!r}: {first['msg']}", remedy=f"see guardkeel {verb} --help"
        ) from e


def _put(table: dict[str, Any], key: str, value: Any) -> None:
    *above, last = key.split(".")
    for i, name in enumerate(above):
        table[name] = dict(table.get(name, {})) if isinstance(table.get(name, {}), Mapping) else None
        if table[name] is None:
            raise ConfigError(
                f"--set {key}: {'.'.join(above[: i + 1])!r} is not a table", remedy="set the key itself"
            )
        table = table[name]
    table[last] = value


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text  # a bare word is a string
