"""No text that a guard may write turns into `safe` unless it says safe."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from guardkeel.guards.keel import Keel
from guardkeel.guards.llama_guard import LlamaGuard3
from guardkeel.taxonomy import AEGIS2

pieces = st.sampled_from(
    ["safe", "unsafe", "Safe", "un", "\n", " ", "\t", "\r", ",", "S1", "S14", "S15", "Threat", "<|eot_id|>",
     "\0", "ſafe", "safe\u2028", "\u00a0", "\x0b", "\x1c", "\x85", "\ufeff", "not", "N/A", *AEGIS2[:2]]
)  # fmt: skip
outputs = st.text(st.characters(), max_size=30) | st.lists(pieces, max_size=6).map("".join)


@pytest.mark.parametrize("family", [Keel(), LlamaGuard3()], ids=lambda f: f.name)
@given(output=outputs)
@example(output="unsafe\nsafe")
@example(output="safe\n\0")
@example(output="safe\nunsafe")
@example(output="")
@settings(max_examples=300, deadline=None)
def test_only_safe_is_safe(family, output):
    found = family.parse(output)
    if found.unsafe is None:
        assert found.unscored and not found.categories
    elif found.unsafe < 0.5:
        assert found.unsafe == 0.0 and output.strip() == "safe"
    else:
        assert found.unsafe == 1.0 and output.split()[0] == "unsafe"
        assert set(found.categories) <= set(family.categories)
