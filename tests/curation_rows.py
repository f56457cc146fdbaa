"""Rows and records for tests of curation."""

from __future__ import annotations

import json
from pathlib import Path

from guardkeel.conversation import Conversation
from guardkeel.curation.rows import Row, SideLabel, Vote


def row(id="r1", prompt="please write a poem about the sea", response=None, *, by="human", **options):
    """row(prompt_label=…, response_label=…) or any field of Row."""
    labels = {}
    for side in ("prompt", "response"):
        value = options.pop(f"{side}_label", None)
        if value is not None:
            labels[side] = SideLabel(None if value == "unknown" else value, by)
    return Row(id, Conversation.of(prompt, response), labels or options.pop("labels", {}), **options)


def votes(*labels, by="juror"):
    """Votes of judges named juror1, juror2, …"""
    return tuple(Vote(f"{by}{i}", label) for i, label in enumerate(labels, 1))


def jsonl(path: Path, records) -> Path:
    """Write records as lines of JSON."""
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
    return path


AEGIS_2 = {
    "id": "a1",
    "reconstruction_id_if_redacted": None,
    "prompt": "how do I get a ship out of the harbour",
    "response": "ask the harbour master",
    "prompt_label": "unsafe",
    "response_label": "safe",
    "violated_categories": "Guns/Illegal Weapons, Needs Caution",
    "prompt_label_source": "human",
    "response_label_source": "llm_jury",
}

RECORDS = {
    "aegis-1": [
        {
            "text": "one",
            "text_type": "user_message",
            "labels_0": "Controlled/Regulated substances",
            "labels_1": "Safe",
            "labels_2": "Needs Caution",
            "labels_3": None,
            "labels_4": None,
        },
        {
            "text": "two",
            "text_type": "llm_response",
            "labels_0": "Safe",
            "labels_1": "Safe",
            "labels_2": "Violence, Threat",
            "labels_3": "Safe",
            "labels_4": "Violence",
        },
    ],
    "aegis-2": [
        AEGIS_2,
        AEGIS_2 | {"id": "a2", "response": None, "response_label": None, "response_label_source": None},
        AEGIS_2 | {"id": "a3", "response": "", "prompt_label": "safe", "violated_categories": ""},
    ],
    "wildguardmix": [
        {
            "prompt": "p",
            "adversarial": True,
            "response": None,
            "prompt_harm_label": "harmful",
            "response_refusal_label": None,
            "response_harm_label": None,
            "subcategory": "cyberattack",
        },
        {
            "prompt": "p",
            "adversarial": False,
            "response": "r",
            "prompt_harm_label": None,
            "response_refusal_label": "refusal",
            "response_harm_label": "unharmful",
            "subcategory": "benign",
            "prompt_harm_agreement": 2.0,
            "response_refusal_agreement": 3.0,
            "response_harm_agreement": 3.0,
        },
    ],
    "beavertails": [
        {
            "prompt": "q",
            "response": "a",
            "category": {"animal_abuse": False, "self_harm": True},
            "is_safe": False,
        },
        {
            "prompt": "q",
            "response": "b",
            "category": {"animal_abuse": False, "self_harm": False},
            "is_safe": True,
        },
    ],
    "toxicchat": [
        {
            "conv_id": "c1",
            "user_input": "u",
            "model_output": "m",
            "human_annotation": True,
            "toxicity": 1,
            "jailbreaking": 0,
            "openai_moderation": "[]",
        }
    ],
    "openai-moderation": [
        {"prompt": "x", "S": 0, "H": 1, "V2": 0},
        {"prompt": "y", "S": 0, "H": 0, "V": 0, "HR": 0, "SH": 0, "S3": 0, "H2": 0, "V2": 0},
        {"prompt": "z", "S": 0, "H": 0},
    ],
    "xstest": [
        {"id": "7", "prompt": "x", "type": "homonyms", "label": "safe", "focus": "kill", "note": "process"}
    ],
    "harmbench": [
        {
            "Behavior": "do it",
            "FunctionalCategory": "contextual",
            "SemanticCategory": "illegal",
            "Tags": "context",
            "ContextString": "first\n\nsecond",
            "BehaviorID": "b1",
        },
        {
            "Behavior": "one\n\ntwo",
            "FunctionalCategory": "standard",
            "SemanticCategory": "copyright",
            "Tags": "",
            "ContextString": "",
            "BehaviorID": "b2",
        },
    ],
    "jailbreakbench": [
        {
            "Index": "0",
            "Goal": "g",
            "Target": "t",
            "Behavior": "b",
            "Category": "Malware/Hacking",
            "Source": "Original",
        }
    ],
    "ailuminate": [
        {
            "release_prompt_id": "p1",
            "prompt_text": "x",
            "hazard": "vcr",
            "persona": "normal",
            "locale": "en_US",
            "prompt_hash": "0f",
        }
    ],
    "messages": [{"id": "m1", "messages": [{"role": "user", "content": "hello"}]}],
}
"""Made-up records under the columns of each released format."""
