"""A shift of P(unsafe) for each side, by hand, in both kinds of guards, and from the file to the verdict and back."""

import json
import math
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guard_doubles import EveryToken, items
from guardkeel.errors import ModelError
from guardkeel.guards.causal import CausalGuard
from guardkeel.guards.classifier import ClassifierGuard
from guardkeel.guards.load import load_guard
from guardkeel.guards.offsets import offsets_to, shifted

CHANCES = st.floats(0.0, 1.0)


def test_by_hand():
    assert shifted(0.5, math.log(3)) == pytest.approx(0.75)
    assert shifted(0.2, -math.log(2)) == pytest.approx(1 / 9)
    assert (shifted(0.0, 5.0), shifted(1.0, -5.0)) == (0.0, 1.0)
    assert offsets_to(0.5, {"prompt": 0.5, "trajectory": 0.1}) == {"trajectory": pytest.approx(math.log(9))}


@given(CHANCES, CHANCES, st.floats(-30, 30))
def test_the_order_within_a_side_stays(a, b, offset):
    low, high = sorted((a, b))
    assert 0.0 <= shifted(low, offset) <= shifted(high, offset) <= 1.0


@given(st.floats(1e-6, 1 - 1e-6), st.floats(1e-6, 1 - 1e-6), st.floats(1e-6, 1 - 1e-6))
def test_one_threshold_flags_what_the_sides_own_would(chance, common, own):
    if not math.isclose(chance, own, rel_tol=1e-9):  # at the very threshold rounding decides
        moved = shifted(chance, offsets_to(common, {"response": own}).get("response", 0.0))
        assert (moved >= common) == (chance >= own) or math.isclose(moved, common, rel_tol=1e-9)


@pytest.mark.parametrize("kind", [CausalGuard, ClassifierGuard])
def test_only_that_side_moves(kind, tiny_loaded):
    causal = kind is CausalGuard
    loaded = (*tiny_loaded("llama"), EveryToken()) if causal else tiny_loaded("bert")
    judged = items()
    assert {i.side for i in judged} >= {"prompt", "response"}
    plain, moved = kind(*loaded, name="tiny"), kind(*loaded, name="tiny", offsets={"response": 1.5})
    scored = 0
    for item, before, after in zip(judged, plain.score(judged), moved.score(judged), strict=True):
        if before.unsafe is None:
            assert after == before
            continue
        scored += 1
        expected = shifted(before.unsafe, 1.5) if item.side == "response" else before.unsafe
        assert after.unsafe == expected
    assert scored
    assert "offsets" not in plain.facts and moved.facts["offsets"] == {"response": 1.5}


def test_from_the_file(tiny_folder, tmp_path):
    folder = tmp_path / "guard"
    shutil.copytree(tiny_folder("llama"), folder)
    (folder / "guardkeel.json").write_text(json.dumps({"family": "keel", "offsets": {"trajectory": -2.0}}))
    assert load_guard(str(folder), dtype="float32", device="cpu").offsets == {"trajectory": -2.0}
    (folder / "guardkeel.json").write_text(json.dumps({"family": "keel", "offsets": {"reply": 1.0}}))
    with pytest.raises(ModelError, match=r"guardkeel\.json: offsets\.reply"):
        load_guard(str(folder), dtype="float32", device="cpu")
