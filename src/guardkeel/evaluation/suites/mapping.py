"""A field mapping: how a foreign record becomes an example. Declared as data, in a card's [mapping].

    [mapping]
    prompt = "question"                       # a field; "a.b.0" walks into objects and lists
    response = "reply"
    labels.response = { field = "score", values = { 0 = "safe", 1 = "unsafe" }, skip = ["unsure"] }
    categories = "kind"
    category_map = { weapons = "Guns and Illegal Weapons", "*" = [] }   # "*": all others; [] drops
    source = { constant = "forum" }

Categories say what is unsafe, so an example without an unsafe side gets none.

Nothing is guessed: a field that is missing, or a label value that the mapping does not name, is an error.
Here is what can be declared; labelling.py and applying.py carry it out.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from guardkeel.conversation import LABELS, Label, Role, Side
from guardkeel.evaluation.suites.readers import Format
from guardkeel.evaluation.suites.splits import Split


class _Data(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Constant(_Data):
    """A value that all records share."""

    constant: str | list[str]


Value = str | Constant
Combine = Literal["any", "majority"]


class LabelRule(_Data):
    """How one side's label is read: a constant, a field with a value map, or a number with two limits.

    A key of `values` that ends in `*` stands for all values that begin so (`*` alone: all others); the
    longest such key holds, and a value named in full, in `values` or `skip`, goes before it. Nulls and empty
    values are never meant by it.

    Several fields with limits (raters): the mean of their numbers. Several fields with values:

        any         unsafe when one field says so, safe when all do, else no label (categories)
        majority    what more than half of the fields that say anything say, else no label (raters)

    `otherwise` is the label where they together give none.

    A value between the limits, or one listed in `skip`, says nothing; so does a field that a record lacks,
    where `optional` is true. Every other unknown value is an error.
    """

    constant: Label | None = None
    field: str | list[str] = ""
    values: dict[str, Label] = Field(default_factory=dict)
    skip: list[str] = Field(default_factory=list)
    combine: Combine | None = None
    otherwise: Label | None = None
    optional: bool = False
    safe_up_to: float | None = None
    unsafe_from: float | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        limits = (self.safe_up_to, self.unsafe_from)
        numeric = any(limit is not None for limit in limits)
        if (self.constant is None) == (not self.field):
            raise ValueError("give either a constant or a field")
        if self.constant is not None and (self.values or self.skip or numeric or self.combine):
            raise ValueError("a constant takes no values, skip, combine or limits")
        if numeric and (self.values or None in limits):
            raise ValueError("give both safe_up_to and unsafe_from, and no values")
        if (
            self.safe_up_to is not None
            and self.unsafe_from is not None
            and self.safe_up_to >= self.unsafe_from
        ):
            raise ValueError("safe_up_to must be below unsafe_from")
        several = isinstance(self.field, list)
        if several and not numeric and self.combine is None:
            raise ValueError("several fields need safe_up_to and unsafe_from, or combine")
        if self.combine is not None and (numeric or not several):
            raise ValueError("combine goes with several fields and values")
        if self.otherwise is not None and self.combine is None:
            raise ValueError("otherwise goes with combine")
        return self


def _label_shorthand(value: Any) -> Any:
    return {"constant": value} if isinstance(value, str) and value in LABELS else value


class Messages(_Data):
    """Where the messages are, and how their keys and roles are called.

    `content` may name several keys, whose texts are joined by line ends (an agent's thought and action). A
    list of lists is read as one. With `marks` the field is one text instead, in which a line that begins with
    a mark begins a turn of that role: { "A: " = "user", "B: " = "assistant" }.
    """

    field: str
    role: str = "role"
    content: str | list[str] = "content"
    roles: dict[str, str] = Field(default_factory=dict)
    marks: dict[str, Role] = Field(default_factory=dict)
    line_end: str = Field(default="\n", min_length=1)


class TurnRule(_Data):
    """One turn of a conversation that is put together from fields. A field without text gives no turn."""

    role: Role
    field: str


class Filter(_Data):
    """A test of one field: equal to one of `values`, or a number within [min, max]."""

    field: str
    values: list[str | int | float | bool] = Field(default_factory=list)
    min: float | None = None
    max: float | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if bool(self.values) == (self.min is not None or self.max is not None):
            raise ValueError("give either values, or min and max")
        return self


class Mapping(_Data):
    """All that is needed to read foreign records. See the module's text and docs for examples."""

    format: Format | None = None
    rows: str = ""
    preamble: str = ""
    encoding: str = "utf-8"
    id: str = ""
    prompt: str | list[str] = ""
    response: str = ""
    response_optional: bool = False
    messages: str | Messages = ""
    turns: list[TurnRule] = Field(default_factory=list)
    labels: dict[Side, Annotated[LabelRule, BeforeValidator(_label_shorthand)]]
    categories: Value | list[str] | None = None
    category_separator: str = ""
    category_map: dict[str, str | list[str]] = Field(default_factory=dict)
    source: Value | None = None
    language: Value | None = None
    group: Value | None = None
    split: Value | None = None
    split_values: dict[str, Split] = Field(default_factory=dict)
    keep: list[Filter] = Field(default_factory=list)
    drop: list[Filter] = Field(default_factory=list)

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if sum(map(bool, (self.prompt, self.messages, self.turns))) != 1:
            raise ValueError("give one of prompt, messages and turns")
        if not self.labels:
            raise ValueError("labels must name at least one side")
        if self.turns and self.response:
            raise ValueError("response goes with prompt or messages; turns name their own replies")
        if self.prompt and "response" in self.labels and not self.response:
            raise ValueError("labels.response needs a response field")
        if self.response_optional and not self.response:
            raise ValueError("response_optional needs a response field")
        return self

    def changed(self, changes: dict[str, Any]) -> Mapping:
        """This mapping with some keys put over it; an empty value takes a key away."""
        return changed(self.model_dump(exclude_unset=True), changes)


def changed(base: dict[str, Any], changes: dict[str, Any]) -> Mapping:
    """The mapping of some keys with others put over them; an empty value takes a key away."""
    merged = {**base, **changes}
    return Mapping.model_validate({k: v for k, v in merged.items() if v not in ("", [], {})})
