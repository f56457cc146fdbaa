"""What items of one kind have in common: the policy in ids, its keys and values, the blanks, names of categories."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import torch

from guardkeel.conversation import Side
from guardkeel.errors import RunError
from guardkeel.guards.batching import MEMORY_REMEDY
from guardkeel.guards.categories import CategoryReader
from guardkeel.guards.encoding import Encoder
from guardkeel.guards.form import Form
from guardkeel.guards.prefix import KeyValues, encode_prefix
from guardkeel.models.devices import is_out_of_memory

if TYPE_CHECKING:
    from guardkeel.guards.causal import CausalGuard


class Ground:
    """One encoder's; everything is made when it is first asked for, and then stays."""

    def __init__(self, guard: CausalGuard, side: Side, encoder: Encoder) -> None:
        self.guard, self.side, self.encoder = guard, side, encoder

    @property
    def form(self) -> Form:
        """The blanks that the guard fills in."""
        return self.encoder.form(self.side)

    @cached_property
    def reader(self) -> CategoryReader | None:
        """Reads the names of categories; None where the guard names none."""
        guard = self.guard
        if not guard.grammar.categories or not self.form.blanks:
            return None
        return CategoryReader(guard.grammar, self.side, self.form, guard.tokenizer.eos_token_id)

    @cached_property
    def prefix(self) -> KeyValues | None:
        """Keys and values of what is shared; None where nothing is.

        Raises:
            RunError: out of memory.
        """
        ids = self.encoder.prefix_ids
        if not ids:
            return None
        try:
            with torch.inference_mode():
                return encode_prefix(self.guard.model, ids)
        except (RuntimeError, MemoryError) as e:
            if not is_out_of_memory(e):
                raise
            raise RunError(
                f"out of memory on the policy prefix of {len(ids)} tokens", remedy=MEMORY_REMEDY
            ) from e
