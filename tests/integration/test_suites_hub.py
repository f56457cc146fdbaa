"""Suites of the hub, from a small hub on this machine whose files have the shapes that the sources document.

The records are ours and harmless; what is tried is that each card reads files of that shape: their format, field
names, label values, absent and null values. Counts and pins are the real files', so they are taken off.
"""

import csv
import gzip
import http.server
import io
import json
import lzma
import threading
import urllib.parse

import huggingface_hub.constants as hf
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from guardkeel.errors import DataError, OfflineError, PinError, ResourceError
from guardkeel.evaluation.suites import available, find_card, load_suite
from guardkeel.evaluation.suites.card import Part

OPENAI = ("S", "H", "V", "HR", "SH", "S3", "H2", "V2")
REPLIES = {
    "prompt": "p",
    "response_0": "a",
    "response_1": "b",
    "is_response_0_safe": True,
    "is_response_1_safe": False,
}
GROUPS = {"Sexual Content": False, "Privacy Violation": True, "Economic Crime": False}
TWO = REPLIES | {"response_0_harm_category": GROUPS, "response_1_harm_category": GROUPS}


def toxic(identity, human, toxicity, text="hello"):
    return {
        "conv_id": identity,
        "user_input": text,
        "model_output": "no matter",
        "human_annotation": human,
        "toxicity": toxicity,
        "jailbreaking": 0,
    }


def wild(prompt_label, response_label, response="r", **more):
    return {
        "prompt": "p",
        "adversarial": False,
        "response": response,
        "prompt_harm_label": prompt_label,
        "response_harm_label": response_label,
        **more,
    }


WILD = [
    wild("harmful", "unharmful", subcategory="cyberattack"),
    wild("unharmful", None, None, subcategory="benign"),
    wild(None, None, subcategory="benign"),
    wild(None, "harmful", subcategory="others"),
]
WILD_LABELS = [{"prompt": "unsafe", "response": "safe"}, {"prompt": "safe"}, {"response": "unsafe"}]
P, N, R = {"prompt": "unsafe"}, {"prompt": "safe"}, {"response": "unsafe"}
S = {"response": "safe"}

AEGIS_1 = [
    {
        "text": "a",
        "text_type": "user_message",
        "labels_0": "Safe",
        "labels_1": "Safe",
        "labels_2": "Violence",
    },
    {
        "text": "b",
        "text_type": "user_message",
        "labels_0": "Violence, Needs Caution",
        "labels_1": "Needs Caution",
        "labels_2": "Safe",
    },
    {
        "text": "c",
        "text_type": "user_message",
        "labels_0": "Needs Caution",
        "labels_1": "Safe",
        "labels_2": None,
    },
    {
        "text": "d",
        "text_type": "llm_response",
        "labels_0": "Threat",
        "labels_1": "Threat",
        "labels_2": "Threat",
    },
    {
        "text": "e",
        "text_type": "user_message",
        "labels_0": "Needs Caution",
        "labels_1": "Needs Caution",
        "labels_2": "Safe",
    },
]


def aegis(prompt, prompt_label, response=None, response_label=None, categories=""):
    return {
        "id": "0",
        "prompt": prompt,
        "response": response,
        "prompt_label": prompt_label,
        "response_label": response_label,
        "violated_categories": categories,
    }


AEGIS_2 = [
    aegis("a", "unsafe", "r", "safe", "PII/Privacy, Needs Caution, Illegal Activity"),
    aegis("REDACTED", "unsafe", "r", "unsafe", "Suicide and Self Harm"),
    aegis("b", "safe"),
    aegis("c", "safe", "", "safe"),
]
BEAVER = {"violence,aiding_and_abetting,incitement": True, "privacy_violation": False, "child_abuse": True}
OR = [{"prompt": "a", "category": "privacy"}, {"prompt": "b, c", "category": "self-harm"}]
ALPACA = [{"instruction": "a", "input": "", "output": "o"}, {"instruction": "b", "input": "c", "output": "o"}]
JBB = [{"Index": 0, "Goal": "g", "Target": "t", "Behavior": "b", "Category": "Privacy", "Source": "Original"}]
AGENT = {
    "canary_guid": "x",
    "behaviors": [
        {"id": "1-1", "name": "n", "category": "Cybercrime", "prompt": "do", "target_functions": ["f"]}
    ],
}

# card → rows of its files (one list: of each), and the labels that come out
SHAPES = {
    "toxicchat": (
        [toxic("a", "True", 1), toxic("b", "True", 0), toxic("c", "False", 0)],
        [P, N],
    ),
    "toxicchat@full": ([toxic("a", "True", 1), toxic("c", "False", 0)], [P, N]),
    "toxicchat-train": ([toxic("a", "True", 1)], [P]),
    "wildguardtest": (WILD, WILD_LABELS),
    "wildguardtrain": (WILD[:1], WILD_LABELS[:1]),
    "wildguardtest@polyguard": (
        [wild("harmful", "unharmful", language="English"), wild("harmful", "harmful", language="German")],
        WILD_LABELS[:1],
    ),
    "aegis": (AEGIS_1, [N, P, P]),
    "aegis@permissive": (AEGIS_1, [N, N, N, N]),
    "aegis-2.0": (AEGIS_2, [{"prompt": "unsafe", "response": "safe"}, N, N]),
    "aegis-2.0@published": (
        AEGIS_2,
        [{"prompt": "unsafe", "response": "safe"}, {"prompt": "unsafe", "response": "unsafe"}, N, N],
    ),
    "aegis-2.0-validation": (AEGIS_2[:1], [{"prompt": "unsafe", "response": "safe"}]),
    "openai-moderation": (
        [
            {"prompt": "a", "S": 0, "S3": 1},
            {"prompt": "b", "S": 0, "S3": 0},
            {"prompt": "c", **dict.fromkeys(OPENAI, 0)},
            {"prompt": "d", **dict.fromkeys(OPENAI, 0), "V": None},
        ],
        [P, N],
    ),
    "openai-moderation@published": (
        [{"prompt": "a", "S": 0, "S3": 1}, {"prompt": "b", "S": 0, "S3": 0}, {"prompt": "c", "HR": None}],
        [P, N, N],
    ),
    "xstest": (
        [
            {"id": 1, "prompt": "a", "type": "homonyms", "label": "safe", "focus": "f", "note": ""},
            {
                "id": 2,
                "prompt": "b",
                "type": "contrast_homonyms",
                "label": "unsafe",
                "focus": "f",
                "note": "",
            },
        ],
        [N, P],
    ),
    "xstest@types": (
        [{"type": "homonyms", "prompt": "a"}, {"type": "contrast_homonyms", "prompt": "b"}],
        [N, P],
    ),
    "xstest-response": (
        [
            {
                "prompt": "p",
                "response": "r",
                "label": "harmful",
                "prompt_type": "x",
                "prompt_harm_category": "y",
            },
            {
                "prompt": "p",
                "response": "s",
                "label": "unharmful",
                "prompt_type": "x",
                "prompt_harm_category": "y",
            },
        ],
        [R, S],
    ),
    "or-bench-80k": (OR, [N, N]),
    "or-bench-hard-1k": (OR, [N, N]),
    "or-bench-toxic": (OR, [P, P]),
    "beavertails": (
        [
            {"prompt": "p", "response": "r", "category": BEAVER, "is_safe": False},
            {"prompt": "p", "response": "s", "category": dict.fromkeys(BEAVER, False), "is_safe": True},
        ],
        [R, S],
    ),
    "safe-rlhf": ([REPLIES], [S, R]),
    "safe-rlhf@2024": ([TWO], [S, R] * 3),
    "jailbreakbench": (JBB, [P, N]),
    "jailbreakbench-judged": (
        [
            {"goal": "g", "prompt": "p", "target_response": "r", "human_majority": 1},
            {"goal": "g", "prompt": "q", "target_response": "s", "human_majority": 0},
        ],
        [R, S],
    ),
    "strongreject": ([{"prompt": "p", "category": "Violence", "source": "custom"}], [P]),
    "simple-safety-tests": (
        [
            {
                "id": "t1",
                "harm_area": "Physical Harm",
                "counter": 1,
                "category": "Information seeking",
                "prompt": "p",
            }
        ],
        [P],
    ),
    "malicious-instruct": ([{"prompt": "p"}], [P]),
    "catqa": ([{"Category": "Malware Viruses", "Subcategory": "Trojans", "Question": "q"}], [P]),
    "agentharm": (AGENT, [P, N]),
    "deepset-injections": ([{"text": "a", "label": 1}, {"text": "b", "label": 0}], [P, N, P, N]),
    "notinject": ([{"prompt": "p", "word_list": ["w"], "category": "c"}], [N] * 3),
    "jailbreak-classification": (
        [{"prompt": "a", "type": "benign"}, {"prompt": "b", "type": "jailbreak"}],
        [N, P, N, P],
    ),
    "gandalf": ([{"text": "a", "similarity": 0.9}], [P] * 3),
    "alpaca": (ALPACA, [N, N]),
    "code-alpaca": (ALPACA, [N, N]),
    "pubmedqa": ([{"pubid": 1, "question": "q", "final_decision": "yes"}], [N]),
    "banking77": ([{"text": "t", "label": 0, "label_text": "x"}], [N]),
    "banking77-train": ([{"text": "t", "label": 0, "label_text": "x"}], [N]),
    "gsm8k": ([{"question": "q", "answer": "a"}], [N]),
    "gsm8k-train": ([{"question": "q", "answer": "a"}], [N]),
}


def written(name, rows):
    """The bytes of a file of that name; JSON files that a card reads as lines hold lines."""
    kind = name.removesuffix(".gz").removesuffix(".xz").rpartition(".")[2]
    if kind == "parquet":
        out = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), out)
        return out.getvalue()
    if kind == "csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        raw = text.getvalue().encode()
    elif kind == "jsonl" or name.endswith("catqa_english.json"):
        raw = "".join(json.dumps(row) + "\n" for row in rows).encode()
    else:
        raw = json.dumps(rows).encode()
    return {"gz": gzip.compress, "xz": lzma.compress}.get(name.rpartition(".")[2], bytes)(raw)


class Hub(http.server.BaseHTTPRequestHandler):
    """Serves one file under every address of a data set; `gated` refuses."""

    files: dict[str, bytes] = {}  # noqa: RUF012 - set anew for each test

    def log_message(self, *args):
        pass

    def do_GET(self):
        path = urllib.parse.unquote(self.path.partition("?")[0])
        place, _, file = path.partition("/resolve/")
        revision, _, file = file.partition("/")
        body = Hub.files.get(file)
        commit = revision if len(revision) == 40 else "c" * 40
        headers = {"X-Repo-Commit": commit, "ETag": '"1"'}
        if body is None or not place.startswith("/datasets/"):
            code = "GatedRepo" if body is None and "wildguard" in path else "EntryNotFound"
            status, body, headers = (403 if code == "GatedRepo" else 404), b"", {"X-Error-Code": code}
        else:
            status = 200
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET


@pytest.fixture
def hub(tmp_path, monkeypatch):
    Hub.files = {}
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    for name, value in {
        "ENDPOINT": address,
        "HUGGINGFACE_CO_URL_TEMPLATE": address + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(tmp_path / "hf"),
        "HF_HUB_OFFLINE": False,
    }.items():
        monkeypatch.setattr(hf, name, value)
    for name in ("GUARDKEEL_OFFLINE", "HF_HUB_OFFLINE", "GUARDKEEL_DATA"):
        monkeypatch.delenv(name, raising=False)
    yield server
    server.shutdown()
    server.server_close()


def plain(card):
    """The card without the counts and pins of the real files."""
    parts = [Part(**{**p.model_dump(), "reference": p.reference.partition("#")[0]}) for p in card.files]
    counts = dict.fromkeys(("examples", "unsafe", "safe", "one_class"))
    return card.model_copy(update={"reference": "", "parts": parts, **counts})


def serve(card, rows):
    for part in card.files:
        file = "/".join(part.reference.partition("#")[0].split("/")[3:])
        Hub.files[file] = written(file, rows)


@pytest.mark.parametrize("name", SHAPES)
def test_cards_read_what_the_sources_document(hub, name):
    rows, labels = SHAPES[name]
    card = plain(find_card(name))
    serve(card, rows)
    suite = load_suite(card)
    assert [dict(e.labels) for e in suite.examples] == labels
    hub.shutdown()
    hub.server_close()
    assert load_suite(card, offline=True).digest == suite.digest  # it is in the cache


def test_all_documented_cards_are_tried():
    readings = [r for c in available() for r in (c, *(c.copied(x.name) for x in c.copies))]
    on_the_hub = {r.full_name for r in readings if r.where.startswith("hub")}
    assert on_the_hub == set(SHAPES)


def test_categories_and_turns_come_through(hub):
    for name, expected in {
        "wildguardtest": [("Malware",), (), ()],
        "aegis": [(), ("Violence",), ()],
        "aegis-2.0": [("PII/Privacy", "Illegal Activity"), (), ()],
        "openai-moderation": [("Sexual (minor)",), ()],
        "beavertails": [("Violence",), ()],
        "safe-rlhf@2024": [(), ("PII/Privacy",)] * 3,
        "or-bench-toxic": [("PII/Privacy",), ("Suicide and Self Harm",)],
        "jailbreakbench": [("PII/Privacy",), ()],
        "agentharm": [("Malware",), ()],
    }.items():
        card = plain(find_card(name))
        serve(card, SHAPES[name][0])
        assert [e.categories for e in load_suite(card).examples] == expected, name
    alpaca = plain(find_card("alpaca"))
    serve(alpaca, ALPACA)
    assert [e.conversation.text for e in load_suite(alpaca).examples] == ["a", "b\n\nc"]


def test_a_wrong_mapping_fails_loudly(hub):
    card = plain(find_card("toxicchat"))
    serve(card, [{"conv_id": "a", "user_input": "x", "human_annotation": "True", "toxic": 1}])
    with pytest.raises(DataError, match="field 'toxicity' is missing") as e:
        load_suite(card)
    assert "toxic-chat_annotation_test.csv:2: " in e.value.problem


def test_other_counts_and_other_bytes_fail_loudly(hub):
    card = find_card("toxicchat")
    serve(card, SHAPES["toxicchat"][0])
    with pytest.raises(DataError, match="2 examples, but its card says 2853"):
        load_suite(card)
    pinned = find_card("or-bench-hard-1k")
    serve(pinned, OR)
    with pytest.raises(PinError):
        load_suite(pinned)


def test_gated_and_absent(hub):
    with pytest.raises(ResourceError, match="access is gated") as e:
        load_suite("wildguardtest")
    assert "accept the terms" in e.value.remedy
    assert "read a copy in the data folder: wildguardtest@local" in e.value.remedy
    with pytest.raises(ResourceError, match="no file"):
        load_suite("gsm8k")
    with pytest.raises(OfflineError, match="network is off"):
        load_suite("gsm8k", offline=True)
