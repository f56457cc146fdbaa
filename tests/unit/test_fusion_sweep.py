"""The sweep's parts without a run: front, rule, points, numbers, weights in place."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guardkeel.errors import ConfigError, ModelError
from guardkeel.evaluation.items import ItemMeta
from guardkeel.fusion.sweep.choice import Rule, choose
from guardkeel.fusion.sweep.config import SweepConfig, read_config
from guardkeel.fusion.sweep.confirming import outcome, overall
from guardkeel.fusion.sweep.front import front
from guardkeel.fusion.sweep.grid import points, shipped
from guardkeel.fusion.sweep.measuring import Yardstick, gain, mean_gain
from guardkeel.fusion.sweep.results import SuiteVerdict
from guardkeel.fusion.sweep.standings import standings
from guardkeel.fusion.sweep.weights import Weights
from guardkeel.models.loading import load_model
from guardkeel.records import Estimate
from sweeps import point

# --- the front

LEVELS = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0, math.nan])


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(LEVELS, LEVELS, LEVELS), max_size=12))
def test_the_front_is_what_brute_force_finds(values):
    def beats(p, q):
        return all(a >= b for a, b in zip(p, q, strict=True)) and any(
            a > b for a, b in zip(p, q, strict=True)
        )

    whole = [not any(map(math.isnan, p)) for p in values]
    expected = [
        ok and not any(beats(q, p) for q, fine in zip(values, whole, strict=True) if fine)
        for p, ok in zip(values, whole, strict=True)
    ]
    assert front(values) == expected
    if any(whole):
        assert any(front(values))  # there is always one that nothing beats


# --- the rule

REFERENCE = point("reference", control="reference", recall=0.9, gain=0.0, fpr=0.10)
DAMAGED = point("damaged", control="candidate", recall=0.99, gain=1.0, fpr=0.0)


def chosen(*found, **limits):
    answer = choose([REFERENCE, DAMAGED, *found], Rule(**limits))
    return answer.chosen, answer.satisfied


def test_the_highest_recall_among_those_within_all_limits_is_chosen():
    safe = point("safe", recall=0.85, gain=0.91)
    assert chosen(
        point("forgot", recall=0.95, gain=0.89),
        point("loud", recall=0.94, gain=0.95, fpr=0.151),
        point("silent", recall=0.93, gain=0.95, unscored=0.02),
        safe,
        point("low", recall=0.80, gain=1.2),
    ) == (safe.id, True)


def test_limits_are_met_up_to_rounding_and_not_beyond():
    assert chosen(point("edge", gain=0.9, fpr=0.1 + 0.05, unscored=0.01))[1]
    assert chosen(point("edge", gain=0.3 * 3 - 1e-12))[1]
    assert not chosen(point("edge", gain=0.8999))[1]
    assert not chosen(point("edge", fpr=0.1501))[1]


def test_of_equal_recall_the_larger_gain_wins_then_the_lower_fpr():
    a, b, c = (point("a", gain=0.92), point("b", gain=0.95, fpr=0.09), point("c", gain=0.95, fpr=0.08))
    for order in itertools.permutations((a, b, c)):
        assert chosen(*order) == (c.id, True)


def test_reference_and_candidate_are_never_chosen_even_where_they_satisfy_the_rule():
    assert chosen() == (None, False)
    assert chosen(floor=0.0) == (None, False)
    assert chosen(point("only", recall=0.1, gain=0.1), floor=0.0)[1]


def test_what_is_not_known_satisfies_nothing_and_is_never_near():
    unknown = [point("gain", gain=None), point("recall", recall=None), point("fpr", fpr=None)]
    assert chosen(*unknown) == (None, False)
    assert chosen(*unknown, floor=0.0) == (None, False)
    near = point("near", gain=0.2)
    assert chosen(*unknown, near) == (near.id, False)


def test_where_none_satisfies_the_rule_it_is_said_and_the_nearest_is_taken_only_if_asked():
    far, near = point("far", recall=0.99, gain=0.5), point("near", recall=0.5, gain=0.85)
    assert chosen(far, near) == (near.id, False)
    answer = choose([REFERENCE, DAMAGED, far, near], Rule(fallback=False))
    assert answer.chosen is None and "none of 2 settings satisfies the rule" in answer.reason
    assert "near" in answer.reason and answer.eligible == 0


def test_a_setting_that_draws_counts_by_its_mean_and_its_first_seed_is_shipped():
    steady = point("steady", recall=0.80)
    drawn = [
        point("dare", seed=s, recall=r, gain=g)
        for s, r, g in ((2, 0.99, 1.0), (0, 0.7, 0.9), (1, 0.74, 0.95))
    ]
    assert chosen(steady, *drawn) == (drawn[1].id, True)  # mean 0.81
    drawn[0] = drawn[0].model_copy(update={"gain": Estimate(value=0.1, n=9)})
    assert chosen(steady, *drawn) == (steady.id, True)
    answer = choose([REFERENCE, *drawn], Rule())
    assert answer.considered == 1 and "means over 3 seeds" in answer.reason


# --- the points


def config(**more):
    return SweepConfig(reference="guard", candidates=more.pop("candidates", ["a"]), **more)


def test_controls_are_always_there_and_come_first():
    asked, _ = points(config(point=[{"method": "slerp"}], alphas=[0.5], keeps=[0.25, 0.75]), ["a"])
    assert [a.control for a in asked] == ["reference", "candidate", "interpolation", *["random mask"] * 6, ""]
    assert [a.name for a in asked][3:5] == ["random-mask keep=0.25 seed=0", "random-mask keep=0.25 seed=1"]


def test_a_group_is_every_combination_and_no_point_comes_twice():
    group = {"method": "ties", "grid": {"density": [0.1, 0.2], "scale": [0.5, 1.0]}}
    asked, _ = points(
        config(point=[group, group, {"method": "interpolation", "grid": {"alpha": [0.5]}}]), ["a"]
    )
    ties = [a.settings for a in asked if a.method == "ties"]
    assert ties == [{"density": d, "scale": s} for d in (0.1, 0.2) for s in (0.5, 1.0)]
    halves = [a for a in asked if a.method == "interpolation" and a.settings["alpha"] == 0.5]
    assert [a.control for a in halves] == ["interpolation"]


def test_several_candidates_have_several_ends_and_an_interpolation_of_their_mean():
    asked, _ = points(config(candidates=["a", "b"], point=[{"method": "linear"}], alphas=[0.5]), ["a", "b"])
    assert [(a.name, a.candidate) for a in asked[:3]] == [("reference", None), ("a", 0), ("b", 1)]
    (plain,) = [a for a in asked if a.control == "interpolation"]
    assert (plain.method, dict(plain.settings)) == ("task-arithmetic", {"scale": 0.25})


def test_files_of_extras_are_points_of_their_own_and_name_them_by_their_content(tmp_path):
    group = {
        "method": "somf",
        "extras": {"mask": ["m/row.safetensors", "m/tensor.safetensors"]},
        "seeds": [0],
    }
    asked = [a for a in points(config(point=[group]), ["a"])[0] if a.method == "somf"]
    assert [a.name for a in asked] == [
        "somf mask=row.safetensors",
        "somf mask=tensor.safetensors",
    ]
    ids = {a.identity({"m/row.safetensors": "1", "m/tensor.safetensors": "2"}) for a in asked}
    again = {a.identity({"m/row.safetensors": "1", "m/tensor.safetensors": "3"}) for a in asked}
    assert len(ids) == 2 and len(ids & again) == 1


@pytest.mark.parametrize("candidates", [["a"], ["a", "b"]])
def test_the_shipped_grid_is_whole_and_says_what_it_passes_over(candidates):
    asked, skipped = points(config(candidates=candidates), candidates)
    methods = {a.method for a in asked}
    assert {
        "ties",
        "dare",
        "interpolation" if len(candidates) == 1 else "model-stock",
        "random-mask",
    } <= methods
    assert {"safe-lora", "safe-delta", "antidote", "somf"} <= {s.name for s in skipped} - methods
    full = {"unaligned": "u", "extras": {"mask": "m", "safe-hessian": "h", "harmful-norms": "n"}}
    most, left = points(config(candidates=candidates, **full), candidates)
    tried = {a.method for a in most} | {s.name for s in left}
    assert {p.method for p in shipped() if p.least <= len(candidates) <= (p.most or 9)} <= tried
    assert len({a.name for a in most}) == len(most)


def test_a_point_of_the_users_own_grid_that_cannot_run_is_an_error_with_a_remedy():
    for group, words in (
        ({"method": "tiez"}, "did you mean"),
        ({"method": "ties", "grid": {"dencity": [1]}}, "dencity"),
        ({"method": "ties", "grid": {"density": [2.0]}}, "density"),
        ({"method": "somf"}, "mask"),
        ({"method": "safe-lora"}, "unaligned"),
        ({"method": "model-stock"}, "2 candidates"),
    ):
        with pytest.raises(ConfigError, match=words):
            points(config(point=[group]), ["a"])
    with pytest.raises(ConfigError, match="grid"):
        read_config(None, {"candidates": ["a"], "point": [{"method": "ties", "grid": {"density": []}}]})


# --- the numbers


def items(count=60, suites=("one", "two")):
    return [
        ItemMeta(f"{suites[i % 2]}/e{i}#prompt", suites[i % 2], "prompt", "unsafe" if i % 3 else "safe")
        for i in range(count)
    ]


def test_the_reference_measured_against_itself_has_not_changed():
    metas, scores = items(), np.random.default_rng(0).random(60)
    found = Yardstick(metas, scores, 0.6)(scores, 0.6)
    assert found["change"].value == 0 and found["score_distance"] == 0
    unsafe = np.array([m.unsafe for m in metas])
    assert found["fpr"].value == np.mean(scores[~unsafe] >= 0.6)
    assert found["recall"].value == np.mean(scores[unsafe] >= 0.6)


def test_a_guard_whose_scores_only_slid_has_all_its_recall_at_the_references_fpr():
    metas, scores = items(), np.random.default_rng(1).random(60)
    yardstick = Yardstick(metas, scores, 0.6)
    slid = yardstick(scores / 4, 0.6)
    assert slid["recall"].value == 0 and slid["change"].value == 0
    assert slid["recall_matched"].value == yardstick(scores, 0.6)["recall_matched"].value


def test_each_method_stands_at_its_best_and_against_plain_interpolation_item_by_item():
    metas = items()
    unsafe = np.array([m.unsafe for m in metas])
    scores = {
        "reference": np.where(unsafe, 0.9, 0.1),
        "half": np.where(unsafe, 0.9, 0.1),
        "weak": np.where(unsafe, 0.9, 0.1),
        "best": np.where(unsafe, 0.9, 0.1),
    }
    scores["half"][np.flatnonzero(unsafe)[:10]] = 0.05  # below every safe item: lost at any threshold
    found = [
        REFERENCE,
        DAMAGED,
        point("half", method="linear", control="interpolation", recall=0.75, gain=0.95, fpr=0.10),
        point(
            "weak", method="ties", settings={"density": 0.2}, recall=1.0, gain=0.5, fpr=0.10
        ),  # its recall does not count: gain is short
        point("best", method="ties", recall=0.8, gain=0.9, fpr=0.10),
        point("far", method="dare", recall=1.0, gain=0.1, fpr=0.10),
    ]
    scores["far"] = scores["half"]
    scores = {f"{name}-None": values for name, values in scores.items()}
    stood = standings(found, Rule(), Yardstick(metas, scores["reference-None"], 0.5), scores)
    assert [(s.method, s.point, s.satisfied) for s in stood] == [
        ("ties", "best-None", True),
        ("interpolation", "half-None", True),
        ("dare", "far-None", False),
    ]
    assert stood[0].against.value == 10 / 40 and stood[0].against.low > 0
    assert stood[1].against.value is None and stood[2].against.value == 0


def test_without_plain_interpolation_nothing_is_said_of_it():
    scores = dict.fromkeys(("reference-None", "best-None"), np.linspace(0, 1, 60))
    found = [REFERENCE, point("best", method="ties", recall=0.8, gain=0.95, fpr=0.10)]
    (only,) = standings(found, Rule(), Yardstick(items(), scores["reference-None"], 0.5), scores)
    assert only.against.value is None and "no plain interpolation" in only.against.note


def test_unscored_is_counted_apart_and_never_caught():
    metas = items()
    unsafe = np.array([m.unsafe for m in metas])
    scores = np.where(unsafe, 0.9, 0.1)
    silent = scores.copy()
    silent[np.flatnonzero(unsafe)[:10]] = np.nan
    found = Yardstick(metas, scores, 0.5)(silent, 0.5)
    assert found["n_unscored"] == 10 and found["unscored"].value == 10 / 60
    assert found["recall"].value == 1  # of those that it scored
    assert found["recall_matched"].value == 30 / 40 and found["change"].value == -10 / 40
    assert found["suites"]["one"].n + found["suites"]["two"].n == 40


def test_a_guard_that_scores_nothing_is_not_known_rather_than_safe():
    metas = items()
    found = Yardstick(metas, np.full(60, 0.5), 0.5)(np.full(60, np.nan), 0.5)
    assert (
        found["recall_matched"].value is None and found["change"].value is None and found["fpr"].value is None
    )
    assert found["unscored"].value == 1


def test_gain_is_0_at_the_reference_and_1_at_the_candidate_and_linear_between():
    rng = np.random.default_rng(2)
    before, after = 2 + rng.random(80), rng.random(80)
    for share in (0.0, 0.25, 1.0, 1.3):
        found, drawn = gain(before, after, before + share * (after - before), more=False)
        assert found.value == pytest.approx(share) and np.allclose(drawn, share)
    noisy, _ = gain(before, after, (before + after) / 2 + rng.normal(0, 0.5, 80), more=False)
    assert noisy.low < noisy.value < noisy.high and noisy.high - noisy.low < 0.5
    more, _ = gain(np.zeros(10), np.ones(10), np.array([1.0] * 6 + [0.0] * 4), more=True)
    assert more.value == 0.6


def test_a_candidate_that_gained_nothing_has_no_gain_to_keep():
    found, drawn = gain(np.ones(5), np.full(5, 2.0), np.ones(5), more=False)
    assert found.value is None and "gained nothing" in found.note
    good = gain(np.full(5, 2.0), np.ones(5), np.ones(5), more=False)
    assert mean_gain([good[0]], [good[1]]).value == 1
    assert mean_gain([good[0], found], [good[1], drawn]).value is None


def test_the_verdict_over_suites_is_that_of_the_worst():
    def estimate(value, low, high):
        return Estimate(value=value, low=low, high=high, n=100)

    good, bad = estimate(-0.01, -0.04, 0.02), estimate(-0.2, -0.3, -0.1)
    open_, slight = estimate(-0.02, -0.06, 0.02), estimate(-0.04, -0.06, -0.02)
    words = [outcome(e, 0.05) for e in (good, bad, open_, slight, Estimate(value=None, n=0))]
    assert words == ["non-inferior", "inferior", *["insufficient evidence"] * 2, None]

    def verdict(*changes):
        return overall(
            [
                SuiteVerdict(suite=str(k), n=e.n, reference=1, repaired=1, change=e, outcome=outcome(e, 0.05))
                for k, e in enumerate(changes)
            ]
        )

    assert verdict(good, good) == "non-inferior"
    assert verdict(good, bad, open_) == "inferior"
    assert verdict(good, open_) == "insufficient evidence" == verdict()


# --- weights in place


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "bert"])  # gemma2 ties its head
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_are_put_back_bit_for_bit(tiny_folder, architecture, dtype):
    model = load_model(tiny_folder(architecture), dtype, "cpu")
    before = {n: t.clone() for n, t in model.state_dict().items()}
    stored = {n: torch.float32 for n, t in model.state_dict().items() if t.is_floating_point()}
    with Weights(model, stored) as weights:
        weights.put((n, before[n].float() + 1) for n in stored)
        assert all(torch.equal(t, (before[n].float() + 1).to(t)) for n, t in model.named_parameters())
        weights.put((n, before[n].float() + 2) for n in list(stored)[:3])  # the others go back
        now = model.state_dict()
        assert torch.equal(now[list(stored)[-1]], before[list(stored)[-1]]) or architecture == "gemma2"
        name = next(n for n in list(stored)[:3] if n in weights.names)
        assert torch.equal(now[name], (before[name].float() + 2).to(now[name]))
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_tied_weights_are_set_once_by_the_name_that_the_model_gives_them(tiny_folder):
    model = load_model(tiny_folder("gemma2"), "float32", "cpu")
    stored = dict.fromkeys(("model.embed_tokens.weight", "lm_head.weight"), torch.float32)
    embedding = model.state_dict()["model.embed_tokens.weight"]
    with Weights(model, stored) as weights:
        assert weights.names == ("model.embed_tokens.weight",)
        one, two = torch.ones_like(embedding), torch.zeros_like(embedding)
        weights.put([("model.embed_tokens.weight", one), ("lm_head.weight", two)])
        assert torch.equal(model.get_output_embeddings().weight, one)
    alone = Weights(model, {"lm_head.weight": torch.float32})
    assert alone.names == ("lm_head.weight",)  # a checkpoint may hold the head's name alone


def test_a_value_goes_through_the_dtype_of_the_checkpoint(tiny_folder):
    model = load_model(tiny_folder("llama"), "float32", "cpu")
    name = "model.norm.weight"
    with Weights(model, {name: torch.bfloat16}) as weights:
        value = torch.full_like(model.state_dict()[name], 1.001)
        weights.put([(name, value)])
        assert torch.equal(model.state_dict()[name], value.bfloat16().float())


def test_what_fails_half_way_is_put_back(tiny_folder):
    model = load_model(tiny_folder("llama"), "float32", "cpu")
    before = {n: t.clone() for n, t in model.state_dict().items()}
    stored = dict.fromkeys(before, torch.float32)
    name = "model.layers.0.mlp.up_proj.weight"
    for value, words in (
        (torch.full_like(before[name], torch.inf), "not finite"),
        (torch.zeros(3), "shape"),
    ):
        with pytest.raises(ModelError, match=words), Weights(model, stored) as weights:
            weights.put([("model.norm.weight", before["model.norm.weight"] + 1), (name, value)])
        assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    with pytest.raises(ModelError, match="another name"):
        Weights(model, {"model.language_model.norm.weight": torch.float32})
