import json
import random
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from guardkeel.conversation import Conversation, Example, write_jsonl
from guardkeel.errors import DataError, ModelError
from guardkeel.evaluation.suites import load_suite, split_many
from guardkeel.guards import linear
from guardkeel.guards.base import Judgement
from guardkeel.guards.linear import LinearGuard, LinearSettings, fit_linear, open_guard

SMALL = LinearSettings(columns=1024, words=(1, 2), characters=(3, 4))
COMMON = ["please", "tell", "me", "now", "how", "the", "big", "old", "one", "works"]


def examples(n, seed=0, *, side="prompt"):
    chance = random.Random(seed)
    found = []
    for i in range(n):
        words = ("bomb", "gun", "steal", "hurt") if i % 2 else ("bread", "river", "garden", "tea")
        text = " ".join([chance.choice(words), *chance.choices(COMMON, k=5), chance.choice(words)])
        talk = Conversation.of(text) if side == "prompt" else Conversation.of("And then?", text)
        found.append(Example(f"{side}{i}", talk, {side: "unsafe" if i % 2 else "safe"}))
    return found


def judgements(found):
    return [Judgement(e.id, e.conversation, side) for e in found for side in e.labels]


@pytest.fixture(scope="module")
def fitted():
    return LinearGuard.fit(examples(80), calibrate=examples(40, seed=1), settings=SMALL, name="small")


def test_it_learns_and_says_on_what(fitted):
    test = examples(60, seed=2)
    found = [v.unsafe >= 0.5 for v in fitted.score(judgements(test))]
    assert found == [e.labels["prompt"] == "unsafe" for e in test]
    assert fitted.provenance == {"fit": {"unsafe": 40, "safe": 40}, "calibrate": {"unsafe": 20, "safe": 20}}
    assert (fitted.name, fitted.family, fitted.threshold) == ("small", "linear", 0.5)
    assert fitted.facts["parameters"] == 2 * 1024 + 3 and fitted.facts["columns"] == 1024


def test_saved_and_loaded_scores_are_the_same_bits(fitted, tmp_path):
    items = judgements(examples(50, seed=3))
    fitted.save(tmp_path / "guard")
    for path in (tmp_path / "guard", tmp_path / "guard" / "linear.json"):
        again = open_guard(path)
        assert again.score(items) == fitted.score(items)
        assert (again.name, again.provenance) == (fitted.name, fitted.provenance)
        assert linear.is_linear(path)
    assert open_guard(tmp_path / "guard", name="x", threshold=0.3).threshold == 0.3
    names = {p.name for p in (tmp_path / "guard").iterdir()}
    assert names == {"linear.json", "linear.safetensors"}
    held = (tmp_path / "guard" / "linear.json").read_bytes() + (
        tmp_path / "guard" / "linear.safetensors"
    ).read_bytes()
    assert b"bread" not in held and b"garden" not in held  # hashed: no text of anyone's is kept


def test_fitting_is_deterministic(fitted):
    again = LinearGuard.fit(examples(80), calibrate=examples(40, seed=1), settings=SMALL)
    assert (
        np.array_equal(again.fitted.weights, fitted.fitted.weights)
        and again.fitted.shift == fitted.fitted.shift
    )


def test_platt_makes_probabilities_of_margins():
    """Labels that the text tells with 80%: calibrated scores are near 0.8, not near 1."""

    def noisy(n, seed):
        chance = random.Random(seed)
        flip = {"safe": "unsafe", "unsafe": "safe"}
        return [
            replace(e, labels={"prompt": flip[e.labels["prompt"]]}) if chance.random() < 0.2 else e
            for e in examples(n, seed)
        ]

    guard = LinearGuard.fit(examples(80), calibrate=noisy(400, 5), settings=SMALL)
    found = np.array([v.unsafe for v in guard.score(judgements(examples(100, seed=6)))])
    assert 0.7 < found[found > 0.5].mean() < 0.9 and 0.1 < found[found < 0.5].mean() < 0.3


def test_sides_have_a_marker_and_their_own_text():
    """Prompts are all safe and replies all unsafe, with one text: only the side tells."""

    def of(side, label):
        talk = Conversation.of("same words here", "same words here")
        return [Example(f"{side}{i}", talk, {side: label}) for i in range(20)]

    guard = LinearGuard.fit(of("prompt", "safe") + of("response", "unsafe"), settings=SMALL)
    talk = Conversation.of("same words here", "same words here")
    items = [Judgement("1", talk, side) for side in ("prompt", "response")]
    prompt, response = guard.score(items)
    assert prompt.unsafe < 0.5 < response.unsafe
    forged = Conversation.of("\x00response same words here")  # a message cannot write the marker
    assert guard.score([Judgement("1", forged, "prompt")])[0].unsafe < 0.5
    assert guard.provenance["calibrate"].startswith("none")


def test_texts_that_are_empty_long_or_broken(fitted):
    def one(text):
        return fitted.score([Judgement("1", Conversation.of(text), "prompt")])[0]

    assert one("").unsafe is None and one("  ").unscored == "the text is empty"
    assert one("\ud800 bread").unsafe is not None and one("!?").unsafe is not None
    long = one("bread " * 20_000)
    assert long.dropped > 0 and long.unsafe < 0.5
    assert not list(fitted.batches([]))
    many = judgements(examples(300))
    assert [b.number for b in fitted.batches(many)] == [0, 1] and [
        b.number for b in fitted.batches(many, skip=[0])
    ] == [1]
    alone = [fitted.score([item])[0] for item in many[:5]]
    assert alone == fitted.score(many)[:5]  # a batch changes nothing


def test_too_few_items_are_refused():
    with pytest.raises(DataError, match="7 unsafe items to fit") as error:
        LinearGuard.fit(examples(15), settings=SMALL)
    assert error.value.remedy
    with pytest.raises(DataError, match="0 unsafe items to calibrate"):
        LinearGuard.fit(
            examples(80), calibrate=[e for e in examples(20) if e.labels["prompt"] == "safe"], settings=SMALL
        )


def without_digest(folder):
    path = folder / "linear.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "sha256": ""}))


@pytest.mark.parametrize(
    ("key", "change", "said"),
    [
        ("weights", lambda w: np.where(np.arange(w.size) == 3, np.nan, w).astype(np.float32), "NaN"),
        ("idf", lambda w: w[:-1], "idf is float32"),
        ("weights", lambda w: w.astype(np.float16), "weights is float16"),
        ("scalars", lambda w: w * np.inf, "scalars holds NaN or infinity"),
    ],
)
def test_damaged_weights(fitted, tmp_path, key, change, said):
    folder = fitted.save(tmp_path / "guard")
    tensors = dict(load_file(folder / "linear.safetensors"))
    save_file(tensors | {key: change(tensors[key])}, folder / "linear.safetensors")
    with pytest.raises(ModelError, match=r"is not the file that linear\.json names"):
        open_guard(folder)
    without_digest(folder)
    with pytest.raises(ModelError, match=said) as error:
        open_guard(folder)
    assert "linear.safetensors" in error.value.problem and error.value.remedy


def test_files_that_are_missing_or_something_else(fitted, tmp_path):
    folder = fitted.save(tmp_path / "guard")
    (folder / "linear.safetensors").write_bytes(b"\x80\x04 a pickle, perhaps")
    without_digest(folder)
    with pytest.raises(ModelError, match="is not safetensors"):
        open_guard(folder)
    (folder / "linear.safetensors").unlink()
    with pytest.raises(ModelError, match=r"linear\.safetensors: cannot be read"):
        open_guard(folder)
    for text, said in (
        ("{", "file: "),
        ('{"kind": "rules"}', "kind"),
        ('{"settings": {"words": [3, 1]}}', "settings"),
    ):
        (folder / "linear.json").write_text(text)
        with pytest.raises(ModelError, match=said) as error:
            open_guard(folder)
        assert "linear.json" in error.value.problem
    assert not linear.is_linear(tmp_path) and not linear.is_linear(folder / "absent")


def test_fit_on_suites(tmp_path):
    found = {"one": examples(200), "two": examples(200, seed=9, side="response")}
    for name, rows in found.items():
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
    split = split_many([load_suite(tmp_path / f"{name}.jsonl") for name in found])
    guard = fit_linear(split, tmp_path / "guard", settings=SMALL)
    told = guard.provenance["suites"]
    assert told["one"]["fit"] == len(split[0].items("fit")) and told["two"]["digest"] == split[1].digest
    items = [i for s in split for i in s.items("test")]
    found = open_guard(tmp_path / "guard").score([i.judgement for i in items])
    right = [(v.unsafe >= 0.5) == (i.label == "unsafe") for v, i in zip(found, items, strict=True)]
    assert np.mean(right) > 0.95
