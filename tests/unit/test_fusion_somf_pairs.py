"""Preference pairs: what is read, which rows are refused and where, and that both answers follow one prompt."""

import json

import pytest

from guardkeel.errors import DataError
from guardkeel.fusion.somf.pairs import pair_lessons, pairs_digest, read_pairs
from guardkeel.models.tiny import tiny_tokenizer

ASK = "Please write a short poem about the sea."


def written(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_texts_and_messages_say_the_same(tmp_path):
    texts = {"prompt": ASK, "chosen": "No.", "rejected": "It is two x."}
    messages = {
        "prompt": [{"role": "user", "content": ASK}],
        "chosen": [{"role": "assistant", "content": "No."}],
        "rejected": [{"role": "assistant", "content": "It is two x."}],
    }
    one, two = read_pairs(written(tmp_path / "p.jsonl", texts, messages))
    assert one.chosen.conversation == two.chosen.conversation
    assert one.rejected.conversation == two.rejected.conversation
    assert (one.id, two.id) == ("p/1", "p/2")
    assert pairs_digest([one]) != pairs_digest([two])  # another id


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "a", "chosen": "b"}, "'rejected' is missing"),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "are the same"),
        ({"prompt": " ", "chosen": "b", "rejected": "c"}, "'prompt' holds no text"),
        ({"prompt": 3, "chosen": "b", "rejected": "c"}, "field 'prompt'"),
        ({"prompt": "a", "chosen": [{"role": "user", "content": "b"}], "rejected": "c"}, "must end in an answer"),
        ({"prompt": "a", "chosen": [{"role": "x", "content": "b"}], "rejected": "c"}, "unknown role"),
    ],
)  # fmt: skip
def test_bad_rows_are_refused_by_file_and_line(tmp_path, row, said):
    path = written(tmp_path / "p.jsonl", {"prompt": "a", "chosen": "b", "rejected": "c"}, row)
    with pytest.raises(DataError, match=said) as error:
        read_pairs(path)
    assert f"{path}:2" in str(error.value)


def test_ids_that_come_twice_and_empty_files_are_refused(tmp_path):
    row = {"id": 7, "prompt": "a", "chosen": "b", "rejected": "c"}
    with pytest.raises(DataError, match=r"p\.jsonl:2: the id 'p/7'|p\.jsonl:2: the id 7"):
        read_pairs(written(tmp_path / "p.jsonl", row, row))
    with pytest.raises(DataError, match="no rows"):
        read_pairs(written(tmp_path / "q.jsonl"))


def test_both_answers_follow_the_same_prompt(tmp_path):
    long = {"prompt": ASK * 8, "chosen": "No.", "rejected": "It is two x. " * 9}
    pairs = read_pairs(written(tmp_path / "p.jsonl", long))
    tokenizer = tiny_tokenizer("llama")
    for most in (1024, 96):
        (chosen,), (rejected,) = pair_lessons(pairs, tokenizer, most)
        assert chosen.prompt_ids == rejected.prompt_ids
        assert max(len(x.prompt_ids) + len(x.answer_ids) for x in (chosen, rejected)) <= most
    assert chosen.dropped == rejected.dropped > 0
