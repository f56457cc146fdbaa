import copy

import numpy as np
import pytest
import torch

from guard_doubles import TEXTS, items, poison
from guardkeel.conversation import Conversation, ToolCall, Turn
from guardkeel.errors import ModelError, RunError
from guardkeel.guards.base import Judgement
from guardkeel.guards.classifier import ClassifierGuard, unsafe_labels
from guardkeel.guards.shorten import GAP

TOXIC = ("toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate")
UNBIASED = (
    *("toxicity", "severe_toxicity", "obscene", "identity_attack", "insult", "threat", "sexual_explicit"),
    *("male", "female", "homosexual_gay_or_lesbian", "christian", "jewish", "muslim", "black", "white"),
    "psychiatric_or_mental_illness",
)


def prompts(*texts):
    return [Judgement(str(i), Conversation.of(text), "prompt") for i, text in enumerate(texts)]


@pytest.mark.parametrize(
    ("labels", "unsafe"),
    [
        (("LABEL_0", "LABEL_1"), ["LABEL_1"]),
        (("0", "1"), ["1"]),
        (("safe", "unsafe"), ["unsafe"]),
        (("unsafe", "safe"), ["unsafe"]),
        (("BENIGN", "MALICIOUS"), ["MALICIOUS"]),
        (("SAFE", "INJECTION"), ["INJECTION"]),
        (("LEGIT", "INJECTION"), ["INJECTION"]),
        (("benign", "injection", "jailbreak"), ["injection", "jailbreak"]),
        (("benign", "jailbreak"), ["jailbreak"]),
        (("neutral", "toxic"), ["toxic"]),
        (("Non-Toxic", "Toxic"), ["Toxic"]),
        (("nothate", "hate"), ["hate"]),
        (("NOT-HATE", "HATE"), ["HATE"]),
        (("non-offensive", "offensive"), ["offensive"]),
        (("hate speech", "normal", "offensive"), ["hate speech", "offensive"]),
        (("safe", "unsafe", "controversial"), ["unsafe", "controversial"]),
        (("SFW", "NSFW"), ["NSFW"]),
        (("OK", "H", "V", "SH"), ["H", "V", "SH"]),
        (("no attack", "attack"), ["attack"]),
    ],
)
def test_labels_that_tell(labels, unsafe):
    names = dict(enumerate(labels))
    assert [names[i] for i in unsafe_labels(names)] == unsafe


def test_multi_label_models_of_harms():
    assert unsafe_labels(dict(enumerate(TOXIC)), multi_label=True) == list(range(6))
    assert unsafe_labels(dict(enumerate(UNBIASED)), multi_label=True) == list(range(7))
    assert unsafe_labels({0: "non-toxic", 1: "toxic", 2: "insult"}, multi_label=True) == [1, 2]
    assert unsafe_labels({0: "toxic"}, multi_label=True) == [0]


@pytest.mark.parametrize(
    ("labels", "multi_label"),
    [
        (("LABEL_0", "LABEL_1", "LABEL_2"), False),
        (("negative", "neutral", "positive"), False),  # moods are not harms
        (("joy", "anger"), True),
        (("toxic", "hate"), False),  # one of them always wins
        (("LABEL_0",), True),
        (("safe",), False),
        (TOXIC, False),
    ],
)
def test_labels_that_do_not_tell(labels, multi_label):
    with pytest.raises(ModelError, match="do not say which of them are unsafe") as error:
        unsafe_labels(dict(enumerate(labels)), multi_label=multi_label)
    assert "guardkeel.json" in error.value.remedy


def guard(loaded, **options):
    return ClassifierGuard(*loaded, name="tiny", **options)


def plain_logits(loaded, *texts):
    model, tokenizer = loaded
    with torch.no_grad():
        return model(**tokenizer(*texts, return_tensors="pt")).logits[0]


@pytest.fixture
def pair_trained(tiny_loaded):
    """A BERT whose tokenizer says, as BERT's own does, that the model wants segment ids."""
    model, tokenizer = tiny_loaded("bert")
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    return model, tokenizer


def test_segments_reach_the_models_that_want_them(pair_trained, tiny_loaded):
    item = Judgement("x", Conversation.of("one", "two"), "response")
    found = guard(pair_trained).score([item])[0].unsafe
    assert found == pytest.approx(float(plain_logits(pair_trained, "one", "two").softmax(-1)[1]), abs=1e-5)
    assert found != pytest.approx(guard(tiny_loaded("bert")).score([item])[0].unsafe, abs=1e-5)


@pytest.mark.parametrize("architecture", ["deberta-v2", "bert"])
def test_chances_are_those_of_the_plain_model(architecture, tiny_loaded):
    loaded = tiny_loaded(architecture)
    judged = [item for text in TEXTS[:5] for item in items((text,))]
    verdicts = guard(loaded).score(judged)
    for item, verdict in zip(judged, verdicts, strict=True):
        texts = {
            "prompt": [item.conversation.turns[0].content],
            "response": [t.content for t in item.conversation.turns],
            "trajectory": ["\n".join(f"{t.role.title()}: {t.content}" for t in item.conversation.turns)],
        }[item.side]
        expected = plain_logits(loaded, *texts).softmax(-1)[1]
        assert verdict.unsafe == pytest.approx(float(expected), abs=1e-5), item.id
        assert verdict.dropped == 0
    alone = [guard(loaded).score([item])[0].unsafe for item in judged]
    assert [v.unsafe for v in verdicts] == pytest.approx(alone, abs=1e-5)
    assert np.std(alone) > 1e-3


def test_the_answer_is_paired_with_what_it_answers(tiny_loaded):
    loaded = tiny_loaded("bert")
    turns = (Turn("user", "one"), Turn("assistant", "two", (ToolCall("f", "{}"),)), Turn("user", "three"))
    found = guard(loaded).score(
        [Judgement("x", Conversation(turns), side) for side in ("response", "prompt")]
    )
    chances = [plain_logits(loaded, *t).softmax(-1)[1] for t in (("one", "two\nTool call f({})"), ("three",))]
    assert [v.unsafe for v in found] == pytest.approx([float(c) for c in chances], abs=1e-5)
    unasked = Conversation((Turn("assistant", "two"),))
    assert guard(loaded).score([Judgement("x", unasked, "response")])[0].unsafe == pytest.approx(
        float(plain_logits(loaded, "two").softmax(-1)[1]), abs=1e-5
    )


def test_a_message_cannot_pose_as_a_separator(tiny_loaded):
    model, tokenizer = tiny_loaded("deberta-v2")
    seen = []
    handle = model.get_input_embeddings().register_forward_hook(lambda m, i, o: seen.extend(i[0].tolist()))
    text = "bad [SEP] safe [CLS] </s> [MASK]<pad>"
    guard((model, tokenizer)).score([Judgement("x", Conversation.of(text, text), "response")])
    handle.remove()
    added = set(tokenizer.added_tokens_decoder)
    assert [tokenizer.decode([i]) for i in seen[0] if i in added] == ["[CLS]", "[SEP]", "[SEP]"]


@pytest.mark.parametrize("side", ["prompt", "response", "trajectory"])
def test_long_texts_are_cut_in_the_middle_and_counted(side, tiny_loaded):
    model, tokenizer = tiny_loaded("deberta-v2")
    seen = []
    handle = model.get_input_embeddings().register_forward_hook(lambda m, i, o: seen.extend(i[0].tolist()))
    text = " ".join(f"w{i}" for i in range(400))
    item = Judgement("x", Conversation.of(text, "the answer"), side)
    verdict = guard((model, tokenizer), max_tokens=100).score([item])[0]
    handle.remove()
    assert 90 <= len(seen[0]) <= 100
    read = tokenizer.decode(seen[0])
    assert "w0 w1" in read and "w398 w399" in read and GAP in read
    assert ("the answer" in read) == (side != "prompt")
    count = len(tokenizer(text)["input_ids"]) - 2
    extra = len(tokenizer(read.replace(text, ""), add_special_tokens=False)["input_ids"])
    assert verdict.dropped == pytest.approx(count - extra, abs=25)
    assert verdict.dropped > count - 100


def test_limits(tiny_loaded):
    model, tokenizer = tiny_loaded("bert")
    assert guard((model, tokenizer)).max_tokens == 512
    assert guard((model, tokenizer), max_tokens=10**6).max_tokens == 2048
    verdict = guard((model, tokenizer), max_tokens=3).score(prompts("a b c d e f g h"))[0]
    assert verdict.unsafe is None and "needs more than max_tokens=3" in verdict.unscored


def test_nan_is_unscored_and_stays_in_its_row(tiny_loaded):
    model, tokenizer = tiny_loaded("bert")
    model = copy.deepcopy(model)
    before = guard((model, tokenizer)).score(prompts("hello", "a 😀", "third"))
    poison(model, tokenizer, "😀")
    verdicts = guard((model, tokenizer)).score(prompts("hello", "a 😀", "third"))
    assert verdicts[1].unsafe is None and verdicts[1].unscored == "logits are not finite"
    assert [verdicts[0].unsafe, verdicts[2].unsafe] == pytest.approx([before[0].unsafe, before[2].unsafe])


def test_multi_label_takes_the_worst_and_names_it(tiny_folder, tiny_loaded):
    model, tokenizer = tiny_loaded("bert", labels=TOXIC)
    model.config.problem_type = "multi_label_classification"
    found = guard((model, tokenizer), threshold=0.0).score(prompts("hello", "other"))
    for text, verdict in zip(("hello", "other"), found, strict=True):
        chances = plain_logits((model, tokenizer), text).sigmoid()
        assert verdict.unsafe == pytest.approx(float(chances.max()), abs=1e-5)
        assert verdict.categories == (TOXIC[int(chances.argmax())],)
    assert guard((model, tokenizer), threshold=1.0).score(prompts("hello"))[0].categories == ()
    silent = guard((model, tokenizer), threshold=0.0)
    assert [b.verdicts[0].categories for b in silent.batches(prompts("hello"), categories=False)] == [()]


def test_one_output_is_one_sigmoid(tiny_loaded):
    model, tokenizer = tiny_loaded("bert", labels=("toxic",))
    verdict = guard((model, tokenizer)).score(prompts("hello"))[0]
    chance = float(plain_logits((model, tokenizer), "hello").sigmoid()[0])
    assert verdict.unsafe == pytest.approx(chance, abs=1e-5) and 0 < chance < 1


def test_unsafe_labels_by_name(tiny_loaded):
    loaded = tiny_loaded("bert", labels=("A", "B", "C"))
    chances = plain_logits(loaded, "hello").softmax(-1)
    verdict = guard(loaded, unsafe=["A", "C"]).score(prompts("hello"))[0]
    assert verdict.unsafe == pytest.approx(float(chances[0] + chances[2]), abs=1e-5)
    for wrong, said in ((["D"], "names 'D'"), (["A", "B", "C"], "names all of"), ([], "names none of")):
        with pytest.raises(ModelError, match=said) as error:
            guard(loaded, unsafe=wrong)
        assert error.value.remedy
    with pytest.raises(ModelError, match="do not say"):
        guard(loaded)


def test_out_of_memory_halves_once(tiny_loaded):
    model, tokenizer = tiny_loaded("bert")
    model = copy.deepcopy(model)
    rows, most = [], 4

    def memory(module, args, kwargs):
        rows.append(len(kwargs["input_ids"]))
        if rows[-1] > most:
            raise torch.OutOfMemoryError("out of memory")

    model.register_forward_pre_hook(memory, with_kwargs=True)
    judged = prompts(*("hello",) * 8)
    assert len({v.unsafe for v in guard((model, tokenizer)).score(judged)}) == 1
    assert rows == [8, 4, 4]
    most = 3
    with pytest.raises(RunError, match="again on half"):
        guard((model, tokenizer)).score(judged)


def test_batches_skip_and_mark_what_was_not_run(tiny_loaded):
    from guardkeel.models.tiny import tiny_tokenizer

    model, _ = tiny_loaded("bert")
    tokenizer = tiny_tokenizer("llama")  # adds no tokens of its own, so an empty message has none at all
    tiny = guard((model, tokenizer), token_budget=40)
    judged = prompts("hello " * 10, "", "short", "a longer one")
    every = list(tiny.batches(judged, layers=(1, 2)))
    assert len(every) > 1
    verdicts = {i: v for b in every for i, v in zip(b.indices, b.verdicts, strict=True)}
    hidden = {i: b.hidden[:, k] for b in every for k, i in enumerate(b.indices)}
    assert verdicts[1].unscored == "the text is empty" and np.isnan(hidden[1]).all()
    assert hidden[1].shape == hidden[0].shape == (2, 32) and np.isfinite(hidden[0]).all()
    assert all(verdicts[i].unsafe is not None for i in (0, 2, 3))
    assert [b.number for b in tiny.batches(judged, skip={0})] == [b.number for b in every][1:]
    assert tiny.score([]) == []
    assert tiny.score(prompts("", ""))[0].unsafe is None
    run = tiny.batches(judged)
    next(run)
    assert not torch.is_inference_mode_enabled()
