"""From data to lessons: what a guard reads, what it learns to say, and which rows are refused."""

import csv
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardkeel.conversation import Conversation, Example, ToolCall, Turn, write_jsonl
from guardkeel.errors import ConfigError, DataError, ResourceError
from guardkeel.evaluation.suites import load_suite
from guardkeel.guards.base import Judgement
from guardkeel.guards.classifier import ClassifierGuard
from guardkeel.guards.encoding import Encoder, NotSharedError
from guardkeel.guards.keel import Keel
from guardkeel.guards.llama_guard import LlamaGuard3
from guardkeel.guards.shorten import GAP
from guardkeel.models.tiny import tiny_tokenizer
from guardkeel.taxonomy import AEGIS2, LLAMA_GUARD_3
from guardkeel.tuning.data import read_data, suite_data
from guardkeel.tuning.lessons import classifier_lessons, guard_lessons, instruction_lessons
from guardkeel.tuning.targets import Instruction, Target

FAMILIES = [Keel(), LlamaGuard3()]
ASK = "What is the derivative of x squared?"
SAY = "It is two x."

# As the templates of Gemma (no system turn, messages trimmed), Qwen3 (a thought before the last answer, tool
# calls), reasoning models (a thought opened in the prompt) and models without turn tokens write them.
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}"
    "{% endif %}{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + m.content | trim"
    " + '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
QWEN3 = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' and loop.last %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}{{ m.content }}{% for c in m.tool_calls or [] %}"
    "{{ '\n' + c.function.name + ' ' + c.function.arguments | tojson }}{% endfor %}{{ '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
THINKING = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)
PLAIN = (
    "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)
GUARD = "{{ 'Judge the ' + messages[-1].role + ': ' + messages[-1].content + '<|eot_id|>' }}"
TEMPLATES = {
    "chatml": None,
    "llama3": None,
    "gemma": GEMMA,
    "qwen3": QWEN3,
    "thinking": THINKING,
    "plain": PLAIN,
}


def templated(name):
    tokenizer = tiny_tokenizer("llama" if name == "llama3" else "qwen3")
    tokenizer.chat_template = TEMPLATES.get(name, name) or tokenizer.chat_template
    return tokenizer


@pytest.fixture(scope="module")
def smollm():
    """The tokenizer of the embedded guard."""
    from guardkeel.models.base import base_model_path
    from guardkeel.models.loading import load_tokenizer

    try:
        return load_tokenizer(base_model_path())
    except ResourceError as e:
        pytest.skip(f"the embedded guard's base cannot be had: {e.problem.splitlines()[0]}")


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def chat(*texts, system=""):
    """Alternating turns from the user's on, as an instruction."""
    turns = [Turn(("user", "assistant")[i % 2], text) for i, text in enumerate(texts)]
    return Instruction("x", Conversation(tuple([Turn("system", system)] * bool(system) + turns)))


def item(text=ASK, label="safe", side="prompt", categories=(), **options):
    return Target(Judgement("a#x", Conversation.of(text, "Go away."), side), label, categories, **options)


# Answers of families


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
@given(
    label=st.sampled_from(["safe", "unsafe"]),
    names=st.lists(st.sampled_from([*AEGIS2, *LLAMA_GUARD_3, "Other", "a, b", ""]), max_size=5),
)
@settings(max_examples=200, deadline=None)
def test_an_answer_is_read_back(family, label, names):
    found = family.parse(family.answer(label, tuple(names)))
    assert found.unsafe == (label == "unsafe")
    assert len(set(found.categories)) == len(found.categories) <= len(names)
    known = [n for n in dict.fromkeys(names) if n in family.categories]
    if label == "unsafe" and set(names) <= set(family.categories):
        assert list(found.categories) == known


def test_answers_in_words():
    keel, llama = FAMILIES
    assert keel.answer("safe", ("Threat",)) == llama.answer("safe", ("Threat",)) == "safe"
    assert keel.answer("unsafe", ("Harassment", "Threat")) == "unsafe\nHarassment, Threat"
    assert keel.answer("unsafe") == keel.answer("unsafe", ("Other",)) == "unsafe\n"
    assert keel.answer("unsafe", ("Violent Crimes", "Violence")) == "unsafe\nViolence"
    assert llama.answer("unsafe") == llama.answer("unsafe", ("Threat",)) == "unsafe"
    assert llama.answer("unsafe", ("Violence", "Hate", "Threat", "Sexual")) == "unsafe\nS1,S10,S12"
    assert llama.answer("unsafe", ("Sex-Related Crimes",)) == "unsafe\nS3"


# Guard lessons


@pytest.mark.parametrize("sharing", [True, False])
@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_a_guard_lesson_is_the_rendered_text(family, sharing):
    tokenizer = tiny_tokenizer("llama")
    items = [item(), item("I will find you.", "unsafe", categories=("Violence",), weight=2.0)]
    encoder = Encoder(family, tokenizer, max_tokens=1024)
    if sharing:
        encoder.share([t.judgement for t in items])
    lessons = guard_lessons(items, encoder, tokenizer)
    for t, lesson in zip(items, lessons, strict=True):
        text = family.render(t.judgement.conversation, "prompt", tokenizer).text
        said = family.answer(t.label, t.categories)
        whole = encoder.prefix_ids + lesson.prompt_ids + lesson.answer_ids
        assert whole == [*ids(tokenizer, text + said), tokenizer.eos_token_id]
        assert (lesson.id, lesson.label, lesson.weight) == ("a#x", t.label, t.weight)
        assert lesson.verdict and lesson.shared is sharing is bool(encoder.prefix_ids)
        step = encoder.form("prompt").only()
        assert lesson.answer_ids[0] in (step.unsafe if t.label == "unsafe" else step.safe)
    assert lessons[0].asked().answer_ids == [] and lessons[0].asked().prompt_ids == lessons[0].prompt_ids


@pytest.mark.model
def test_a_lesson_of_the_embedded_guard_is_the_rendered_text(smollm):
    items = [item(), item("I will find you.", "unsafe", "response", ("Threat", "Harassment"))]
    encoder = Encoder(Keel(), smollm, max_tokens=512).share([t.judgement for t in items])
    for t, lesson in zip(items, guard_lessons(items, encoder, smollm), strict=True):
        text = Keel().render(t.judgement.conversation, t.judgement.side, smollm).text
        whole = encoder.prefix_ids + lesson.prompt_ids + lesson.answer_ids
        assert lesson.shared and whole == ids(
            smollm, text + Keel().answer(t.label, t.categories) + "<|im_end|>"
        )


def test_a_long_guard_lesson_keeps_its_answer():
    tokenizer = tiny_tokenizer("llama")
    encoder = Encoder(Keel(), tokenizer, max_tokens=700)
    short, long = guard_lessons([item(), item("ships that sail " * 500)], encoder, tokenizer)
    assert long.answer_ids == short.answer_ids and len(long.prompt_ids) <= 700
    assert long.dropped > 500 and short.dropped == 0
    with pytest.raises(ConfigError, match="item 'a#x': needs more than max_tokens=64"):
        guard_lessons([item()], Encoder(Keel(), tokenizer, max_tokens=64), tokenizer)


def test_a_guard_lesson_outside_the_shared_prefix():
    tokenizer = tiny_tokenizer("llama")
    encoder = Encoder(LlamaGuard3(), tokenizer).share([item().judgement])
    with pytest.raises(NotSharedError, match="'a#x' does not begin with the prefix"):
        guard_lessons([item(side="response")], encoder, tokenizer)


def test_no_end_token():
    tokenizer = tiny_tokenizer("llama")
    tokenizer.eos_token = None
    with pytest.raises(ConfigError, match="no end token") as e:
        guard_lessons([item()], Encoder(Keel(), tokenizer), tokenizer)
    assert "set eos_token" in e.value.remedy


@pytest.mark.parametrize("architecture", ["bert", "deberta-v2"])
def test_classifier_lessons(architecture, tiny_loaded):
    guard = ClassifierGuard(*tiny_loaded(architecture), name="tiny")
    asked, answered = classifier_lessons([item(label="unsafe"), item(side="response", weight=3.0)], guard)
    assert asked.prompt_ids == guard.tokenizer(ASK)["input_ids"] and asked.answer_ids == []
    assert answered.prompt_ids == guard.tokenizer(ASK, "Go away.")["input_ids"]
    assert (asked.label, answered.label, answered.weight) == ("unsafe", "safe", 3.0)
    assert len(answered.segments) == len(answered.prompt_ids)
    assert not asked.shared


# Instruction lessons


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("texts", [(ASK, SAY), ("hi", "Hello.", ASK, f" {SAY}\nIndeed.")])
def test_an_instruction_lesson_is_the_rendered_text(name, texts):
    tokenizer, example = templated(name), chat(*texts)
    (lesson,) = instruction_lessons([example], tokenizer, 512)
    messages = example.conversation.to_messages()
    whole = ids(tokenizer, tokenizer.apply_chat_template(messages, tokenize=False).rstrip())
    if name == "plain":
        whole.append(tokenizer.eos_token_id)
    assert lesson.prompt_ids + lesson.answer_ids == whole
    said = tokenizer.decode(lesson.answer_ids)
    end = {"llama3": "<|eot_id|>", "gemma": "<end_of_turn>"}.get(name, "<|im_end|>")
    thought = "<think>\n\n</think>\n\n" if name == "qwen3" else ""
    assert said.replace(" ", "") == f"{thought}{texts[-1]}{end}".replace(" ", "")
    prompt = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
    assert tokenizer.decode(lesson.prompt_ids) == prompt.removesuffix("<think>\n")
    assert lesson.label is None and not lesson.verdict and not lesson.shared
    assert (lesson.id, lesson.weight, lesson.dropped, lesson.cut) == ("x", 1.0, 0, 0)


@pytest.mark.model
def test_an_instruction_lesson_of_the_embedded_guard(smollm):
    examples = [chat(ASK, SAY), chat(ASK, SAY, system="Be brief.")]
    for example, lesson in zip(examples, instruction_lessons(examples, smollm, 256), strict=True):
        text = smollm.apply_chat_template(example.conversation.to_messages(), tokenize=False)
        assert lesson.prompt_ids + lesson.answer_ids == ids(smollm, text.rstrip())
        assert smollm.decode(lesson.answer_ids) == f"{SAY}<|im_end|>"
        assert smollm.decode(lesson.prompt_ids).endswith(f"{ASK}<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "qwen3"])
def test_checkpoints_from_folders(architecture, tiny_loaded):
    _, tokenizer = tiny_loaded(architecture)
    (lesson,) = instruction_lessons([chat(ASK, SAY, system="rules")], tokenizer, 256)
    assert lesson.answer_ids == [*ids(tokenizer, SAY), tokenizer.eos_token_id]
    assert "rules" in tokenizer.decode(lesson.prompt_ids)


def test_a_message_cannot_end_a_turn():
    tokenizer = templated("chatml")
    (lesson,) = instruction_lessons([chat("a<|im_end|>b", "c<|im_end|>d")], tokenizer, 256)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert (lesson.prompt_ids.count(end), lesson.answer_ids.count(end)) == (1, 1)


def test_long_prompts_are_shortened_and_the_answer_is_kept():
    tokenizer = templated("chatml")
    long = chat("ships that sail " * 300, SAY, system="rules " * 4)
    (lesson,) = instruction_lessons([long], tokenizer, 128)
    text = tokenizer.decode(lesson.prompt_ids)
    assert len(lesson.prompt_ids) + len(lesson.answer_ids) <= 128
    assert tokenizer.decode(lesson.answer_ids) == f"{SAY}<|im_end|>"
    assert GAP in text and "rules rules" in text and text.startswith("<|im_start|>system")
    assert text.endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert lesson.dropped > 500 and lesson.cut == 0


def test_long_answers_are_cut_at_their_end():
    tokenizer = templated("chatml")
    said = "the ships sail on the sea " * 100
    alone, both, kept = instruction_lessons(
        [chat("hi", said), chat("ships that sail " * 300, said), chat("ships that sail " * 300, SAY)],
        tokenizer,
        128,
    )
    answer = ids(tokenizer, f"{said}<|im_end|>")
    for lesson, most in ((alone, 128 - len(alone.prompt_ids)), (both, 64)):
        assert lesson.answer_ids == answer[:most]  # without the end: the answer does not end there
        assert lesson.cut == len(answer) - most
        assert len(lesson.prompt_ids) + len(lesson.answer_ids) <= 128
    assert alone.dropped == 0 < both.dropped
    assert [bool(lesson.cut) for lesson in (alone, both, kept)] == [True, True, False]


def test_what_does_not_fit_at_all():
    with pytest.raises(ConfigError, match="instruction 'x': needs more than max_tokens=16"):
        instruction_lessons([chat(*["hi", "Hello."] * 8)], templated("chatml"), 16)


def test_tool_calls_are_never_lost():
    calls = Turn("assistant", "Let me see.", (ToolCall("look", '{"at": "sea"}', "1"),))
    talk = Conversation((Turn("user", "Any ships?"), calls, Turn("tool", "two"), Turn("assistant", "Two.")))
    asking = Instruction("y", Conversation((Turn("user", "Any ships?"), calls)))
    for name, written in (("qwen3", 'look {"at": "sea"}'), ("chatml", 'look({"at": "sea"})')):
        tokenizer = templated(name)
        said, called = instruction_lessons([Instruction("x", talk), asking], tokenizer, 256)
        assert written in tokenizer.decode(said.prompt_ids)
        assert f"Let me see.\n{written}<|im_end|>" in tokenizer.decode(called.answer_ids)


def test_no_chat_template():
    tokenizer = tiny_tokenizer("llama")
    tokenizer.chat_template = None
    with pytest.raises(ConfigError, match="no chat template") as e:
        instruction_lessons([chat(ASK, SAY)], tokenizer, 256)
    assert "tune on guard conversations" in e.value.remedy


def test_a_template_that_refuses_a_role():
    with pytest.raises(
        ConfigError, match=r"instruction 'x': .*system, user, assistant \(no system role\)"
    ) as e:
        instruction_lessons([chat(ASK, SAY, system="rules")], templated("gemma"), 256)
    assert "leave out the roles" in e.value.remedy


def test_a_template_that_judges_and_does_not_answer():
    with pytest.raises(ConfigError, match="'x': the chat template does not go on"):
        instruction_lessons([chat(ASK, SAY)], templated(GUARD), 256)


# Reading


def lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def refused(path, says, remedy, **options):
    with pytest.raises(DataError) as e:
        read_data(path, **options)
    assert says in e.value.problem.replace(f"{path.parent}/", "")
    assert remedy in e.value.remedy


TALK = [{"role": "user", "content": ASK}, {"role": "assistant", "content": SAY}]
LABELLED = {
    "id": "a",
    "messages": TALK,
    "labels": {"prompt": "safe", "response": "unsafe"},
    "categories": ["Threat"],
}
PAIRED = [
    ({"instruction": ASK, "input": "", "output": SAY, "text": "all of it"}, ASK),
    ({"instruction": "Solve.", "input": ASK, "output": SAY}, f"Solve.\n\n{ASK}"),
    ({"instruction": ASK, "output": SAY}, ASK),
    ({"prompt": ASK, "response": SAY}, ASK),
    ({"prompt": ASK, "completion": SAY}, ASK),
    ({"question": ASK, "answer": SAY, "level": 3}, ASK),
    ({"messages": TALK, "prompt": "hi", "prompt_id": "7"}, ASK),
]


def test_guard_conversations(tmp_path):
    found = read_data(lines(tmp_path / "a.jsonl", LABELLED, {"id": "b", "messages": TALK, "labels": {}}))
    assert (found.kind, found.split, len(found), found.instructions) == ("guard", "", 2, ())
    talk = Conversation.of(ASK, SAY)
    assert found.targets == (
        Target(Judgement("a/a#prompt", talk, "prompt"), "safe"),
        Target(Judgement("a/a#response", talk, "response"), "unsafe", ("Threat",)),
    )


@pytest.mark.parametrize(("row", "asked"), PAIRED, ids=lambda v: "-".join(v) if isinstance(v, dict) else "")
def test_instructions(tmp_path, row, asked):
    found = read_data(lines(tmp_path / "a.jsonl", row, {"id": "b", **row}))
    assert (found.kind, len(found), found.targets) == ("instructions", 2, ())
    assert found.instructions == tuple(Instruction(f"a/{i}", Conversation.of(asked, SAY)) for i in "1b")


def test_the_kind_can_be_said(tmp_path):
    path = lines(tmp_path / "a.jsonl", LABELLED, {"messages": TALK})
    found = read_data(path, kind="instructions")
    assert [i.id for i in found.instructions] == ["a/a", "a/2"]
    refused(path, "a.jsonl:2: field 'labels' is missing", "write labels like", kind="guard")
    with pytest.raises(ConfigError, match="unknown kind of data 'chat'"):
        read_data(path, kind="chat")


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_tables(tmp_path, ending):
    guard, asked = tmp_path / f"guard.{ending}", tmp_path / f"asked.{ending}"
    if ending == "csv":
        for path, head, *rows in (
            (guard, LABELLED, [json.dumps(v) if k != "id" else v for k, v in LABELLED.items()]),
            (asked, ["id", "question", "answer", "labels"], ["", ASK, SAY, ""], ["7", ASK, "2x", ""]),
        ):
            with path.open("w", newline="") as out:
                csv.writer(out).writerows([list(head), *rows])
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        other = {"id": "b", "messages": TALK, "labels": {"trajectory": "safe"}, "categories": None}
        pq.write_table(pa.Table.from_pylist([LABELLED, other]), guard)
        rows = [{"id": None, "question": ASK, "answer": SAY}, {"id": 7, "question": ASK, "answer": "2x"}]
        pq.write_table(pa.Table.from_pylist(rows), asked)
    found = read_data(guard).targets
    assert [t.label for t in found][:2] == ["safe", "unsafe"] and found[1].categories == ("Threat",)
    assert len(found) == (2 if ending == "csv" else 3)
    assert [(i.id, i.conversation) for i in read_data(asked).instructions] == [
        ("asked/1", Conversation.of(ASK, SAY)),
        ("asked/7", Conversation.of(ASK, "2x")),
    ]


@pytest.mark.parametrize(
    ("rows", "says", "remedy"),
    [
        ([LABELLED, PAIRED[0][0]], "a.jsonl:2: an instruction, but a.jsonl:1 is a guard conv", "files of their own"),
        ([PAIRED[0][0], LABELLED], "a.jsonl:2: a guard conversation, but a.jsonl:1 is an ins", "files of their own"),
        ([{"text": "hi"}], "a.jsonl:1: neither a guard conversation nor an instruction: the fields are text", "give"),
        ([PAIRED[3][0], {"prompt": ASK}], "a.jsonl:2: neither", "instruction and output or prompt and response"),
        ([{"messages": TALK[:1]}], "a.jsonl:1: messages must end in an answer of the assistant, but", "end with"),
        ([{"messages": TALK[1:]}], "but their roles are assistant", "end with"),
        ([{"messages": []}], "a.jsonl:1: messages must be a non-empty list, not []", "OpenAI-style"),
        ([{"messages": "hi"}], "a.jsonl:1: field 'messages' must be JSON, not 'hi'", "as JSON"),
        ([{"messages": [{"role": "bot", "content": ""}]}], "a.jsonl:1: message 0: unknown role 'bot'", "roles are"),
        ([{"prompt": ASK, "response": " "}], "a.jsonl:1: the assistant's last message is ' '", "fill it"),
        ([{"prompt": "", "response": SAY}], "a.jsonl:1: field 'prompt' holds no text", "fill it"),
        ([{"prompt": ASK, "response": 5}], "a.jsonl:1: field 'response' must be text, not 5", "as messages"),
        ([{"prompt": TALK[:1], "completion": TALK[1:]}], "field 'prompt' must be text, not [{", "as messages"),
        ([{**PAIRED[3][0], "completion": "b"}], "There are prompt/response and prompt/completion", "leave one pair"),
        ([{**LABELLED, "labels": {"prompt": "bad"}}], "a.jsonl:1: unknown label 'bad' for side 'prompt'", "labels are"),
        ([{**LABELLED, "labels": "safe"}], "a.jsonl:1: field 'labels' must be JSON, not 'safe'", "as JSON"),
        ([{**LABELLED, "extra": 1}], "a.jsonl:1: unknown field 'extra'", "fields are id"),
        ([{"messages": TALK[:1], "labels": {"response": "safe"}}], "on side 'response', but there is", "needs"),
        ([LABELLED, {**LABELLED, "labels": {}}], "a.jsonl:2: the id 'a' is at a.jsonl:1 too", "make ids unique"),
        ([PAIRED[0][0], {**PAIRED[0][0], "id": "1"}], "a.jsonl:2: the id '1' is at a.jsonl:1 too", "unique"),
        ([{"messages": TALK, "labels": {}}], "a.jsonl: no row has a label", "label a side"),
        ([], "a.jsonl: no rows", "at least one row"),
        ([[1]], "a.jsonl:1: a record must be an object", ""),
    ],
)  # fmt: skip
def test_bad_rows(tmp_path, rows, says, remedy):
    refused(lines(tmp_path / "a.jsonl", *rows), says, remedy)


def test_fields_of_the_wrong_kind(tmp_path):
    refused(
        lines(tmp_path / "a.jsonl", {"text": "hi"}),
        "which fields are the request",
        "leave one",
        kind="instructions",
    )
    (tmp_path / "b.jsonl").write_text('{"prompt": "a"\n')
    refused(tmp_path / "b.jsonl", "b.jsonl:1: not JSON", "one JSON object")
    (tmp_path / "c.data").write_text("")
    refused(tmp_path / "c.data", "the ending '.data' names no known format", "say format")


def test_not_a_file(tmp_path):
    refused(tmp_path / "none.jsonl", "no such file", "give the path")
    refused(tmp_path, "is a folder", "give the path")
    for what, says in (("keel-domian", "unknown suite"), (f"path:{tmp_path}", "is a folder")):
        with pytest.raises(DataError, match=says):
            read_data(what)


def test_suites_give_their_fit_split(tmp_path):
    suite = load_suite("keel-domain")
    found = read_data("keel-domain")
    assert (found.kind, found.split) == ("guard", "fit")
    assert [t.judgement for t in found.targets] == [i.judgement for i in suite.items("fit")]
    banks = read_data("keel-domain", source="bank")
    assert 0 < len(banks) < len(found) and {t.judgement.id[:16] for t in banks.targets} == {
        "keel-domain/bank"
    }
    assert banks == suite_data(suite, source="bank")
    with pytest.raises(DataError, match=r"suite 'keel-domain': no row .* has the source 'shop'") as e:
        read_data("keel-domain", source="shop")
    assert "bank, clinic, code, maths" in e.value.remedy
    with pytest.raises(DataError, match="keel-domain is a suite, whose rows are guard conversations"):
        read_data("keel-domain", kind="instructions")


def test_cards_and_references(tmp_path):
    rows = [
        Example(str(i), Conversation.of(f"message {i}"), {"prompt": "safe"}, source="ab"[i % 2])
        for i in range(40)
    ]
    path = tmp_path / "a.jsonl"
    write_jsonl(path, rows)
    card = tmp_path / "card.toml"
    card.write_text('[suite]\nname = "mine"\nreference = "a.jsonl"\n')
    for reference in (card, str(card), f"path:{card}"):
        found = read_data(reference)
        assert found.split == "fit" and 0 < len(found) < 40
        assert all(t.judgement.id.startswith("mine/") for t in found.targets)
    assert len(read_data(path)) == len(read_data(f"path:{path}")) == 40
    assert [t.judgement.id for t in read_data(path, source="b").targets][:2] == ["a/1#prompt", "a/3#prompt"]
    with pytest.raises(DataError, match=r"a\.jsonl: no row .* has the source 'c'") as e:
        read_data(path, source="c")
    assert "sources are a, b" in e.value.remedy
    card.write_text('[suite]\nname = "mine"\nreference = "a.jsonl"\n[splits]\nfixed = "test"\n')
    with pytest.raises(DataError, match="the fit split has no items"):
        read_data(card)


def test_the_digest_is_that_of_what_is_learned(tmp_path):
    def digest(*rows):
        return read_data(lines(tmp_path / "a.jsonl", *rows)).digest

    asked = [{"id": i, "question": ASK, "answer": SAY} for i in "ab"]
    assert digest(*asked) == digest(*({**row, "level": 3} for row in asked))
    assert digest(*asked) != digest(*reversed(asked))
    assert digest(*asked) != digest(asked[0], {**asked[1], "answer": "2x"})
    unsafe = {**LABELLED, "labels": {"prompt": "unsafe", "response": "unsafe"}}
    assert len({digest(LABELLED), digest(unsafe), digest({**unsafe, "categories": []})}) == 3
