"""Guards of any-guardrail: what its answers mean, and one of its guards run for real where it is installed."""

import importlib.util
import json
import os
import subprocess
import sys
from types import SimpleNamespace as Output

import pytest

from guardkeel.errors import ConfigError, UnsafeFileError
from guardkeel.guards.bridge import BridgeReference, is_bridge, load_bridge, parse_bridge, stated, to_verdict
from guardkeel.guards.kinds import kind_of
from guardkeel.guards.load import guard_path, load_guard

INSTALLED = importlib.util.find_spec("any_guardrail") is not None
needs_it = pytest.mark.skipif(not INSTALLED, reason="any-guardrail is not installed (extra any-guardrail)")


def output(valid=True, score=None, explanation=None, extra=None, **categories):
    found = [Output(name=k, description=None, triggered=v) for k, v in categories.items()]
    return Output(valid=valid, score=score, explanation=explanation, extra=extra, categories=found)


def test_references():
    assert is_bridge("any:prompt_guard") and is_bridge("any-guardrail:duo_guard?threshold=0.4")
    assert (
        not is_bridge("anything:x") and not is_bridge("/any:thing") and kind_of("any:llama_guard") == "bridge"
    )
    found = parse_bridge("any:shield-gemma?threshold=0.4&model_id=google/shieldgemma-2b&policy=No%20harm")
    options = {"threshold": 0.4, "model_id": "google/shieldgemma-2b", "policy": "No harm"}
    assert found == BridgeReference("shield_gemma", options)


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("any:", "names no guard"),
        ("any:x?api_key=sk-1234", "would end up in records"),
        ("any:x?hf_token=hf_1234", "would end up in records"),
        ("any:x?a=1&a=2", "is there twice"),
    ],
)
def test_references_that_are_refused(reference, said):
    with pytest.raises(ConfigError, match=said) as raised:
        parse_bridge(reference)
    assert "1234" not in str(raised.value)


def test_without_the_package_it_is_said_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "any_guardrail", None)  # as if it were not there
    for ask in (load_guard, load_bridge, stated):
        with pytest.raises(ConfigError) as raised:
            ask("any:prompt_guard")
        assert raised.value.remedy == "pip install 'guardkeel[any-guardrail]'"
    with pytest.raises(ConfigError, match="any-guardrail runs this guard"):
        guard_path("any:prompt_guard")


@pytest.mark.parametrize(
    ("given", "side", "options", "unsafe", "unscored"),
    [
        (output(score=0.25), "prompt", {}, 0.25, ""),
        (output(valid=False, score=1.0000001), "prompt", {}, 1.0, ""),
        # No score: its word alone.
        (output(valid=True), "prompt", {}, 0.0, ""),
        (output(valid=False), "prompt", {}, 1.0, ""),
        # What any-guardrail calls unsafe because it could not read it is unscored here.
        (output(valid=False, extra={"parse_failure": True}), "prompt", {}, None, "could not be parsed"),
        (
            output(valid=False, score=1.0, extra={"parse_failure": True}),
            "prompt",
            {},
            None,
            "could not be parsed",
        ),
        (output(score=float("nan")), "prompt", {}, None, "not in [0, 1]"),
        (output(score=7.0), "prompt", {}, None, "not in [0, 1]"),
        (output(score=-3.0), "prompt", {}, None, "not in [0, 1]"),
        (output(valid=True), "prompt", {"must_score": True}, None, "gave no score"),
        (output(valid=False), "prompt", {"must_score": True}, 1.0, ""),
        ([output()], "prompt", {}, None, "no single verdict"),
        (output(valid=None), "prompt", {}, None, "no single verdict"),
        # Llama Guard reads whatever has no "unsafe" in it as safe.
        (
            output(explanation="I cannot help with that."),
            "prompt",
            {"grammar": "llama-guard-3"},
            None,
            "grammar",
        ),
        (output(explanation=""), "prompt", {"grammar": "llama-guard-3"}, None, "grammar"),
        (output(explanation="\n\nsafe"), "prompt", {"grammar": "llama-guard-3"}, 0.0, ""),
        (output(valid=False, explanation="unsafe\nS1"), "prompt", {"grammar": "llama-guard-3"}, 1.0, ""),
        # A refusal of a harmful request: the prompt is harmful, the response is not.
        (output(valid=False, harmful_request=True, harmful_response=False), "prompt", {}, 1.0, ""),
        (output(valid=False, harmful_request=True, harmful_response=False), "response", {}, 0.0, ""),
        (output(valid=False, prompt_harm=False, response_harm=True), "prompt", {}, 0.0, ""),
        (output(valid=False, prompt_harm=False, response_harm=True), "response", {}, 1.0, ""),
        (
            output(valid=False, harmful_request=True, harmful_response=None),
            "response",
            {},
            None,
            "nothing of the response",
        ),
    ],
)
def test_what_an_answer_means(given, side, options, unsafe, unscored):
    verdict = to_verdict(given, side, **options)
    assert verdict.unsafe == unsafe and unscored in verdict.unscored


def test_categories_by_name():
    found = output(valid=False, score=0.9, violence=True, hate=False, unsafe=True, LABEL_1=True, refusal=True)
    assert to_verdict(found, "prompt").categories == ("violence",)
    coded = Output(name="S10", description="Hate", triggered=True)
    severity = Output(name="prompt_safety", description="unsafe", triggered=True)
    given = Output(
        valid=False, score=None, extra=None, explanation="unsafe\nS10", categories=[coded, severity]
    )
    assert to_verdict(given, "prompt").categories == ("Hate",)


@needs_it
def test_guards_that_cannot_be_had():
    with pytest.raises(ConfigError, match="has no 'nobody'"):
        load_bridge("any:nobody")
    with pytest.raises(UnsafeFileError, match="Python code"):
        load_bridge("any:injec_guard")
    with pytest.raises(ConfigError, match="could not make it"):
        load_bridge("any:prompt_guard?model_id=org/unknown")
    assert stated("any:prompt_guard") != stated("any:prompt_guard?model_id=x")


RUN = """
import json, sys
from guardkeel.conversation import Conversation
from guardkeel.errors import RunError
from guardkeel.guards.base import Judgement
from guardkeel.guards.load import load_guard

texts = ["The ships sail.", "hi", "My account shows a payment of 120.50.", "   ", "a " * 3000]
items = [Judgement(str(i), Conversation.of(t), "prompt") for i, t in enumerate(texts)]
items.append(Judgement("r", Conversation.of("ask", "reply"), "response"))
items.append(Judgement("t", Conversation.of("ask", "reply"), "trajectory"))
guard = load_guard("any:prompt_guard")
batched = list(guard.batches(items))
alone = [guard.score([item])[0] for item in items]
resumed = list(guard.batches(items, skip={0}))
own = load_guard(sys.argv[1], dtype="float32")
print(json.dumps({
    "facts": guard.facts, "family": guard.family, "name": guard.name, "resumed": len(resumed),
    "batched": [(v.unsafe, v.unscored) for v in batched[0].verdicts],
    "alone": [(v.unsafe, v.unscored) for v in alone],
    "own": [v.unsafe for v in own.score(items)],
}))
guard._rail.provider.tokenizer = None
try:
    guard.score(items[:1] * 40)
except RunError as e:
    print(e.problem)
"""


@needs_it
def test_prompt_guard_for_real(tiny_folder, tmp_path):
    """any-guardrail's own class and provider on a tiny DeBERTa that lies where its repository would be cached."""
    from guardkeel.models.tiny import make_tiny

    repository = tmp_path / "hub" / "models--meta-llama--Llama-Prompt-Guard-2-86M"
    weights = make_tiny("deberta-v2", repository / "snapshots" / ("a" * 40), labels=("LABEL_0", "LABEL_1"))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    told = {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RUN, str(weights)],
        env=os.environ | told,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    *_, printed, stopped = run.stdout.splitlines()
    found = json.loads(printed)
    assert (found["family"], found["name"], found["resumed"]) == ("any-guardrail", "prompt_guard", 0)
    assert found["facts"]["parameters"] > 1000 and found["facts"]["dtype"] == "float32"
    unsafe = [p for p, _ in found["batched"]]
    # The same weights as a classifier of ours, which does not cut long texts at the same place.
    assert unsafe[:3] == pytest.approx(found["own"][:3], abs=1e-4) and 0 <= unsafe[4] <= 1
    assert [p for p, _ in found["alone"]][:3] == pytest.approx(unsafe[:3], abs=1e-4)
    reasons = [why for _, why in found["batched"]]
    assert reasons[3] == "the text is empty" and "response" in reasons[5] and "trajectories" in reasons[6]
    assert unsafe[3] is None and unsafe[5] is None and unsafe[6] is None
    assert stopped.startswith("any:prompt_guard: failed on 16 items in a row (TypeError")
