"""A server that judges as NemoGuard does, by words: a chat model asked for JSON."""

from __future__ import annotations

import json
from pathlib import Path

from remote_server import chat

BAD = ("bomb", "ships")


def conversation(request):
    """What was to be judged."""
    text = request["body"]["messages"][-1]["content"]
    return text.split("<BEGIN CONVERSATION>")[1].split("<END CONVERSATION>")[0]


def judge(request, bad=BAD):
    """Unsafe where one of the words is there."""
    said = conversation(request)
    word = "unsafe" if any(w in said for w in bad) else "safe"
    answer = {"User Safety": word}
    if "response: agent:" in said:
        answer["Response Safety"] = word
    if word == "unsafe":
        answer["Safety Categories"] = "Violence"
    made = chat(json.dumps(answer))
    made["usage"] = {"prompt_tokens": len(said), "completion_tokens": 10}
    return made


def juror_file(path: Path, url: str, **options) -> Path:
    """The server's TOML file."""
    lines = {"url": url, "api": "chat", "model": "m", "family": "nemoguard", "top_logprobs": 0} | options
    path.write_text("".join(f"{k} = {json.dumps(v)}\n" for k, v in lines.items()))
    return path


def rules_file(path: Path, *words: str, name: str = "words") -> Path:
    """A rule list's TOML file."""
    path.write_text(
        f'kind = "rules"\nname = "{name}"\n[[rules]]\ncategory = "Violence"\nwords = {json.dumps(list(words))}\n'
    )
    return path
