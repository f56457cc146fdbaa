"""What a guard is asked to look for, as data: its categories in words, and how strict it is. One TOML file.

    name = "bank"
    strictness = "strict"                    # or "permissive": what a guard calls controversial passes

    [[categories]]
    name = "Account takeover"
    description = "Help with getting into another person's account."

Families whose template takes a policy show these categories to the guard in place of their own; those that were
trained on fixed categories say that they cannot (see `Family.under`). A guard was trained on its own policy: audit it
under a new one before it is relied on.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from guardkeel.errors import ConfigError

Strictness = Literal["strict", "permissive"]


class PolicyCategory(BaseModel):
    """One thing that is unsafe, by the name that verdicts and results call it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1)
    description: str = ""


class GuardPolicy(BaseModel):
    """Categories (empty: the family's own) and strictness."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1)
    strictness: Strictness = "strict"
    categories: tuple[PolicyCategory, ...] = ()

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = [c.name for c in self.categories]
        twice = next((n for i, n in enumerate(names) if n in names[:i]), None)
        if twice is not None:
            raise ValueError(f"category {twice!r} is there twice")
        return self


def read_policy(path: str | Path) -> GuardPolicy:
    """Read a policy file; raises ConfigError naming file, field, value and remedy."""
    path = Path(path)
    try:
        return GuardPolicy.model_validate(tomllib.loads(path.read_bytes().decode("utf-8")))
    except OSError as e:
        raise ConfigError(f"{path}: cannot be read ({e.strerror or e})", remedy="check the path") from e
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as e:
        raise ConfigError(f"{path}: not TOML ({e})", remedy="check the file at that place") from e
    except ValidationError as e:
        first = e.errors()[0]
        place = ".".join(map(str, first["loc"])) or "policy"
        raise ConfigError(
            f"{path}: {place}: {first['msg']}",
            remedy="a guard policy has name, strictness and [[categories]]",
        ) from e
