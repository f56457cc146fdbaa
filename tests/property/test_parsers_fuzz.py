"""No text that a guard may write is taken for safe unless its family's published format says safe."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardkeel.guards.registry import families
from verdict_grammars import GRAMMARS, TOKENS, grammar, mutate, variants, wrong

FAMILIES = variants()
CASES = [(name, side) for name, family in FAMILIES.items() for side in family.sides]
over = pytest.mark.parametrize(("name", "side"), CASES, ids=["-".join(case) for case in CASES])


def test_every_family_has_a_grammar():
    assert CASES
    for family in families().values():
        recognise, samples = grammar(family)
        assert callable(recognise) and samples


@over
def test_well_formed_outputs_are_read(name, side):
    """Without this, a parser that reads nothing would pass all the rest."""
    family = FAMILIES[name]
    recognise, samples = grammar(family)
    read = [family.parse(sample, side).unsafe for sample in samples]
    assert 0.0 in read and 1.0 in read
    for sample, unsafe in zip(samples, read, strict=True):
        assert recognise(family, side, sample) == (unsafe == 0.0) or unsafe is None, sample
    *before, last = family.blanks(side) or (None,)
    for label, unsafe in (("safe", 0.0), ("unsafe", 1.0)) if last else ():
        written = "".join(blank.opening + (blank.safe or blank.other)[0] for blank in before)
        output = written + last.opening + family.answer(label, (), side)
        assert family.parse(output, side).unsafe == unsafe, output
        assert recognise(family, side, output) == (label == "safe")


@over
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_no_broken_output_is_safe(name, side, data):
    family = FAMILIES[name]
    samples = grammar(family)[1]
    random = data.draw(st.randoms(use_true_random=False))
    output = mutate(random, data.draw(st.sampled_from(samples)), samples)
    assert not wrong(family, side, output), repr(output)


@over
@given(output=st.text(max_size=40) | st.lists(st.sampled_from(TOKENS), max_size=8).map("".join))
@settings(max_examples=40, deadline=None)
def test_no_other_text_is_safe(name, side, output):
    family = FAMILIES[name]
    assert not wrong(family, side, output), repr(output)


TRAPS = (
    "", " ", "safe or unsafe", "unsafe\nsafe", "not safe", "Nothing is wrong here.", "I cannot assess this.",
    "ѕafe", "saf", "```\nsafe\n```", "Harmful request: no or yes", "{}", "[]", "null", "0", '"safe"',
    '{"User Safety": "safe", "User Safety": "unsafe"}', '{"User Safety": "unsafe", "User Safety": "safe"}',
    "<think>no</think>", "<score></score>", "<score> no", "Safety: Safe\nCategories: Violent", "Safety:",
    "Harmful request: no\nHarmful response: no\nResponse refusal: no", "No doubt it is harmful", "Notable", "\ud800",
)  # fmt: skip


@over
def test_known_traps(name, side):
    family = FAMILIES[name]
    for output in TRAPS:
        assert not wrong(family, side, output)
        assert family.parse(output, side).unsafe != 0.0


LONG = (
    "safe", "unsafe\n", "S1, ", "\n", " ", "<think>", "</think>", "<score>", "no ", "No", "{", "[", '{"a":', "\\", '"',
    '"User Safety": "safe", ', "Safety: ", "Categories: None\n", "Violence,", ":", "Harmful request: no\n", "1",
    "<confidence>", "\u2028", "a",
)  # fmt: skip


@pytest.mark.parametrize("name", sorted(families()))
def test_long_outputs_take_linear_time(name):
    family = families()[name]
    side = family.sides[-1]
    heads = sorted({"", grammar(family)[1][0][:12], "unsafe\n", "<think>", '{"User Safety": "safe", "'})
    for head in heads:
        for piece in LONG:
            short, long = (head + piece * (n // len(piece)) for n in (25_000, 100_000))
            spent = least(family, side, long)
            # four times the text: four times as long, sixteen if it were quadratic
            assert spent < 0.05 or spent < 10 * least(family, side, short), (
                f"{head!r} {piece!r} {spent:.2f} s"
            )
            assert not wrong(family, side, short)


def least(family, side, output):
    spent = []
    for _ in range(3):
        started = time.process_time()
        family.parse(output, side)
        spent.append(time.process_time() - started)
        if spent[-1] < 0.05:
            break
    return min(spent)


def test_the_recognisers_tell_families_apart():
    """A control of the controls: no recogniser takes every sample of the others."""
    for name, family in FAMILIES.items():
        recognise, _ = grammar(family)
        others = {s for _, samples in GRAMMARS.values() for s in samples}
        taken = {s for s in others for side in family.sides if recognise(family, side, s)}
        assert taken and len(taken) < len(others), name
