import copy
import json
import sys

import pytest
import torch

from guard_doubles import EveryToken, items, make_adapter
from guardkeel.conversation import Conversation
from guardkeel.errors import ConfigError, ModelError
from guardkeel.guards import embedded, load_guard
from guardkeel.guards.base import Judgement
from guardkeel.guards.causal import CausalGuard
from guardkeel.guards.classifier import ClassifierGuard
from guardkeel.guards.load import describe, guard_path, guard_settings, with_adapter

IDS = torch.tensor([[5, 60, 70, 80]])
CPU = {"dtype": "float32", "device": "cpu", "offline": True}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GUARDKEEL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("GUARDKEEL_OFFLINE", "1")


@pytest.fixture
def checkpoint(tiny_folder, tmp_path):
    """checkpoint(architecture, name, settings) → a folder of its own that may be edited."""
    import shutil

    def copied(architecture, name="guard", settings=None, **options):
        folder = tmp_path / name
        shutil.copytree(tiny_folder(architecture, **options), folder)
        if settings is not None:
            (folder / "guardkeel.json").write_text(json.dumps(settings))
        return folder

    return copied


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_settings_beside_the_checkpoint(checkpoint):
    folder = checkpoint(
        "llama", settings={"family": "keel", "threshold": 0.3, "name": "mine", "provenance": {"a": 1}}
    )
    guard = load_guard(str(folder), **CPU)
    assert isinstance(guard, CausalGuard)
    assert (guard.name, guard.family, guard.threshold) == ("mine", "keel", 0.3)
    guard = load_guard(
        str(folder), family="llama-guard-3", threshold=0.0, max_tokens=128, token_budget=7, **CPU
    )
    assert (guard.family, guard.threshold, guard.max_tokens, guard.token_budget) == (
        "llama-guard-3",
        0.0,
        128,
        7,
    )


def test_family_by_name(checkpoint):
    guard = load_guard(f"path:{checkpoint('llama', 'Llama-Guard-3-1B')}", **CPU)
    assert (guard.family, guard.name, guard.threshold) == ("llama-guard-3-1b", "Llama-Guard-3-1B", 0.5)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"familly": "keel"}, "familly: Extra inputs are not permitted"),
        ({"threshold": 2}, "threshold: Input should be less than or equal to 1"),
        ({"threshold": [1]}, "threshold: Input should be a valid number"),
        ({"unsafe_labels": "toxic"}, "unsafe_labels: Input should be a valid list"),
    ],
)
def test_settings_that_cannot_be_used(settings, said, checkpoint):
    folder = checkpoint("llama", settings=settings)
    with pytest.raises(ModelError) as error:
        load_guard(str(folder), family="keel", **CPU)
    assert error.value.problem == f"{folder / 'guardkeel.json'}: {said}"
    assert error.value.remedy


def test_settings_that_are_not_json(checkpoint):
    folder = checkpoint("llama")
    (folder / "guardkeel.json").write_text("{")
    with pytest.raises(ModelError, match=r"guardkeel\.json"):
        load_guard(str(folder), family="keel", **CPU)


def test_families_that_cannot_be_used(checkpoint, monkeypatch):
    def never(*args, **options):
        raise AssertionError("weights were loaded before the family was known")

    monkeypatch.setattr("guardkeel.guards.load.load_model", never)
    folder = checkpoint("llama")
    with pytest.raises(ConfigError, match="unknown guard family 'lama'"):
        load_guard(str(folder), family="lama", **CPU)
    for family in (None, "classifier"):
        with pytest.raises(
            ConfigError, match="which guard family this model belongs to is not known"
        ) as error:
            load_guard(str(folder), family=family, **CPU)
        assert "--family (keel, keel-policy, llama-guard-1" in error.value.remedy
    classifier = checkpoint("bert", "bert")
    with pytest.raises(ConfigError, match="a sequence classifier has no family 'keel'"):
        load_guard(str(classifier), family="keel", **CPU)


def test_classifiers(checkpoint):
    folder = checkpoint("bert", labels=("A", "B"), settings={"unsafe_labels": ["A"], "threshold": 0.1})
    for family in (None, "classifier"):
        guard = load_guard(str(folder), family=family, **CPU)
        assert isinstance(guard, ClassifierGuard)
        assert (guard.unsafe, guard.threshold, guard.family) == ([0], 0.1, "classifier")
    assert describe(folder, str(folder)) == (None, folder)


def test_describe(checkpoint):
    folder = checkpoint("llama")
    assert describe(folder, "x") == (None, folder)
    encoder, below = describe(folder, "x", family="keel", max_tokens=99)
    assert encoder.family.name == "keel" and encoder.max_tokens == 99 and below == folder


def test_code_of_a_checkpoint_is_never_run(checkpoint, tmp_path):
    folder = checkpoint("llama", settings={"family": "keel"})
    marker = tmp_path / "ran"
    code = f"open({str(marker)!r}, 'w').close()\nfrom transformers import LlamaConfig as C, LlamaForCausalLM as M\n"
    (folder / "evil.py").write_text(code + "from transformers import PreTrainedTokenizerFast as T\n")
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "evil.T"]})
    guard = load_guard(str(folder), **CPU)  # a known architecture and tokenizer do without it
    assert guard.score(items(("hi",)))
    auto = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}
    edit(folder / "config.json", auto_map=auto, model_type="evil", architectures=["EvilForCausalLM"])
    with pytest.raises(ModelError) as error:
        load_guard(str(folder), **CPU)
    assert error.value.remedy
    assert not marker.exists()
    assert not any("evil" in name for name in sys.modules)


def test_an_adapter_folder_is_loaded_on_its_base(checkpoint, tiny_loaded, tmp_path):
    base = checkpoint("llama", "base", settings={"family": "keel", "threshold": 0.3})
    adapter = make_adapter(tiny_loaded("llama")[0], tmp_path / "tuned", base=base)
    (adapter / "guardkeel.json").write_text('{"threshold": 0.7}')
    guard = load_guard(str(adapter), **CPU)
    assert (guard.family, guard.threshold, guard.name) == ("keel", 0.7, "tuned")
    assert not torch.allclose(logits(guard.model), logits(load_guard(str(base), **CPU).model))
    encoder, below = describe(adapter, str(adapter))
    assert below == base and encoder is not None
    assert guard_settings(adapter, base).family == "keel"


def tiny_guard(loaded, family=None):
    model, tokenizer = loaded
    model = copy.deepcopy(model)
    if hasattr(model, "lm_head"):
        return CausalGuard(model, tokenizer, family or EveryToken(), name="tiny", threshold=0.4)
    return ClassifierGuard(model, tokenizer, name="tiny", threshold=0.4)


def state(guard):
    return (
        guard.name,
        guard.threshold,
        guard.model.training,
        [p.requires_grad for p in guard.model.parameters()],
    )


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "deberta-v2"])
@pytest.mark.parametrize("fails", [False, True])
def test_with_adapter_leaves_no_trace(architecture, fails, tiny_loaded, tmp_path):
    guard = tiny_guard(tiny_loaded(architecture))
    options = {"task_type": "SEQ_CLS"} if architecture == "deberta-v2" else {}
    adapter = make_adapter(guard.model, tmp_path / "tuned", **options)
    (adapter / "guardkeel.json").write_text('{"threshold": 0.9, "name": "better"}')
    before, expected, modules = state(guard), logits(guard.model), [n for n, _ in guard.model.named_modules()]
    scores, model = guard.score(items()), guard.model
    for name in ("", "mine"):
        try:
            with with_adapter(guard, adapter, name=name) as tuned:
                assert tuned is guard
                assert (guard.name, guard.threshold) == (name or "better", 0.9)
                assert not torch.allclose(logits(guard.model), expected)
                assert [v.unsafe for v in guard.score(items())] != [v.unsafe for v in scores]
                if fails:
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            assert fails
        assert guard.model is model and state(guard) == before
        assert torch.equal(logits(guard.model), expected)
        assert [n for n, _ in guard.model.named_modules()] == modules
        assert guard.score(items()) == scores


def test_with_adapter_on_a_guard_that_is_an_adapter_itself(checkpoint, tiny_loaded, tmp_path):
    base = checkpoint("llama", "base", settings={"family": "keel"})
    one, two = (
        make_adapter(tiny_loaded("llama")[0], tmp_path / f"a{seed}", seed=seed, base=base) for seed in (1, 2)
    )
    guard = load_guard(str(one), **CPU)
    expected, before = logits(guard.model), state(guard)
    for _ in range(2):
        with with_adapter(guard, two):
            assert guard.name == "a2"
            assert not torch.allclose(logits(guard.model), expected)
        assert torch.equal(logits(guard.model), expected) and state(guard) == before
        assert list(guard.model.peft_config) == ["default"]


def test_an_adapter_that_fails_half_way_leaves_no_trace(tiny_loaded, tmp_path):
    guard = tiny_guard(tiny_loaded("llama"))
    expected, before = logits(guard.model), state(guard)
    broken = make_adapter(guard.model, tmp_path / "broken")
    edit(broken / "adapter_config.json", r=2)  # found out by peft, after it has put its layers in
    with pytest.raises(ModelError, match="peft could not attach"), with_adapter(guard, broken):
        raise AssertionError("not reached")
    assert state(guard) == before and torch.equal(logits(guard.model), expected)
    assert not any("lora" in name for name, _ in guard.model.named_modules())
    good = make_adapter(guard.model, tmp_path / "good")
    with with_adapter(guard, good):
        assert not torch.allclose(logits(guard.model), expected)
    assert torch.equal(logits(guard.model), expected)


def test_adapters_of_others_are_refused(tiny_loaded, tmp_path):
    guard = tiny_guard(tiny_loaded("llama"))
    before = state(guard)
    other = make_adapter(guard.model, tmp_path / "other")
    (other / "guardkeel.json").write_text('{"family": "llama-guard-3"}')
    with pytest.raises(ConfigError, match="made for family 'llama-guard-3'"), with_adapter(guard, other):
        raise AssertionError("not reached")
    wrong = make_adapter(tiny_loaded("deberta-v2")[0], tmp_path / "wrong", task_type="SEQ_CLS")
    with pytest.raises(ModelError), with_adapter(guard, wrong):
        raise AssertionError("not reached")
    assert state(guard) == before


def test_the_packaged_guard_says_what_it_is():
    said = embedded.packaged_settings()
    assert said["family"] == "keel"
    assert 0 <= said["threshold"] <= 1


@pytest.fixture
def tiny_keel(checkpoint, tiny_loaded, tmp_path, monkeypatch):
    """The embedded guard with a tiny base and adapter in the places of the real ones."""
    base = checkpoint("llama", "base")
    package = tmp_path / "package"
    adapter = make_adapter(tiny_loaded("llama")[0], package / "data" / embedded.NAME, base=base)
    (adapter / "guardkeel.json").write_text('{"family": "keel", "threshold": 0.6, "name": "keel-135m"}')
    asked = []
    monkeypatch.setattr(embedded, "files", lambda package_name: package)
    monkeypatch.setattr(embedded, "base_model_path", lambda progress, offline: asked.append(offline) or base)
    return adapter, base, asked


def test_the_embedded_guard_is_merged_once(tiny_keel, tiny_loaded):
    adapter, _, asked = tiny_keel
    folder = guard_path("keel-135m", offline=True)
    assert guard_path("keel") == folder and asked == [True]
    assert (folder / "tokenizer.json").is_file() and not (folder / "adapter_config.json").exists()
    for name in ("keel", "keel-135m"):
        guard = load_guard(name, **CPU)
        assert (guard.name, guard.family, guard.threshold) == ("keel-135m", "keel", 0.6)
    assert str(next(load_guard("keel", dtype="auto", device="cpu").model.parameters()).dtype) in (
        "torch.float32",
        "torch.bfloat16",
    )
    # Rounded once: bf16 of the fp32 sum.
    from peft import PeftModel

    exact = PeftModel.from_pretrained(copy.deepcopy(tiny_loaded("llama")[0]), str(adapter)).merge_and_unload()
    for name, weight in guard.model.state_dict().items():
        assert torch.equal(weight, exact.state_dict()[name].to(torch.bfloat16).float()), name


def test_an_adapter_on_the_embedded_guard_finds_it(tiny_keel, tmp_path, tiny_loaded):
    tuned = make_adapter(tiny_loaded("llama")[0], tmp_path / "bank", seed=3, base="keel-135m")
    guard = load_guard(str(tuned), **CPU)
    assert (guard.family, guard.threshold, guard.name) == ("keel", 0.6, "keel-135m")
    expected = load_guard("keel", **CPU)
    with with_adapter(expected, tuned):
        assert torch.equal(logits(expected.model), logits(guard.model))


def test_a_merge_that_fails_leaves_nothing(tiny_keel, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(embedded, "write_json", full)
    with pytest.raises(OSError, match="No space left"):
        guard_path("keel")
    assert list((tmp_path / "cache" / "models").iterdir()) == []
    monkeypatch.undo()


def test_a_guard_scores_through_the_public_door(checkpoint):
    guard = load_guard(str(checkpoint("llama", settings={"family": "keel"})), **CPU)
    verdict = guard.score([Judgement("x", Conversation.of("Hello"), "prompt")])[0]
    assert (verdict.unsafe is None) == bool(verdict.unscored)
