"""What each guard family may write, told apart from its parser: recognisers of safe verdicts, samples, mutations.

The recognisers are slow and strict and are written from the published formats, character by character. A parser may
be stricter than they are, never laxer.
"""

from __future__ import annotations

import string

from guardkeel.guards.guard_policy import GuardPolicy
from guardkeel.guards.registry import families


def _plain(text):
    """Without white space around it, as `str.strip` sees it."""
    start, end = 0, len(text)
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return text[start:end]


def _lines(text):
    lines, line = [], ""
    for character in _plain(text):
        if character == "\n":
            lines.append(line)
            line = ""
        else:
            line += character
    return [*lines, line]


def _field(line, name):
    """What stands after "name:", or None where the line has another name."""
    head, colon, value = "", False, ""
    for character in line:
        if colon:
            value += character
        elif character == ":":
            colon = True
        else:
            head += character
    return _plain(value) if colon and _plain(head) == name else None


def _same(value, word):
    """Equal but for the case of ASCII letters: look-alikes and other letters that fold to these do not count."""
    return len(value) == len(word) and all(
        a == b or (a in string.ascii_letters and a.lower() == b) for a, b in zip(value, word, strict=True)
    )


def _one_word(family, side, output):
    return _plain(output) == "safe"


def _named_lines(output, grammar):
    """The values of lines that are named and valued as in `grammar`, in its order; None if one is not."""
    lines = _lines(output)
    if len(lines) > len(grammar):
        return None
    values = []
    for line, (name, allowed) in zip(lines, grammar, strict=False):
        value = _field(line, name)
        if value is None or not allowed(value):
            return None
        values.append(value)
    return values


def _any_of(*words):
    return lambda value: any(_same(value, w) for w in words)


def _codes_or(*words):
    def allowed(value):
        if any(_same(value, w) for w in words):
            return True
        return all(
            2 <= len(c) <= 3 and c[0] in "sS" and all(d.isdecimal() for d in c[1:])
            for c in (_plain(part) for part in value.split(","))
        )

    return allowed


WILDGUARD = (
    ("Harmful request", _any_of("yes", "no")),
    ("Response refusal", _any_of("yes", "no", "n/a")),
    ("Harmful response", _any_of("yes", "no", "n/a")),
)
POLYGUARD = (
    ("Harmful request", _any_of("yes", "no")),
    ("Request safety violations", _codes_or("none")),
    ("Response refusal", _any_of("yes", "no", "n/a")),
    ("Harmful response", _any_of("yes", "no", "n/a")),
    ("Response safety violations", _codes_or("none", "n/a")),
)


def _wildguard(family, side, output):
    values = _named_lines(output, WILDGUARD)
    judged = 0 if side == "prompt" else 2
    return values is not None and len(values) > judged and _same(values[judged], "no")


def _polyguard(family, side, output):
    values = _named_lines(output, POLYGUARD)
    judged = 0 if side == "prompt" else 3
    if values is None or len(values) <= judged or not _same(values[judged], "no"):
        return False
    return len(values) == judged + 1 or any(_same(values[judged + 1], w) for w in ("none", "n/a"))


def _qwen(family, side, output):
    def named(value):
        return value == "None" or all(_plain(n) in family.categories for n in value.split(","))

    grammar = (
        ("Safety", lambda v: v in ("Safe", "Unsafe", "Controversial")),
        ("Categories", named),
        ("Refusal", lambda v: v in ("Yes", "No")),
    )
    values = _named_lines(output, grammar[:2] if side == "prompt" else grammar)
    if values is None:
        return False
    if values[0] == "Controversial":
        return family.strictness == "permissive"
    return values[0] == "Safe" and (len(values) == 1 or values[1] == "None")


def _cut(text, *pieces):
    """The text without these pieces at its front, white space before and after each ignored; None if one is missing."""
    for piece in pieces:
        text = _plain(text)
        if not text.startswith(piece):
            return None
        text = text[len(piece) :]
    return _plain(text)


def _granite(family, side, output):
    rest = _cut(output, "No")
    if rest == "":
        return True
    if rest is None or not rest.startswith("<confidence>"):
        return False
    return any(_cut(rest, "<confidence>", word, "</confidence>") == "" for word in ("High", "Low"))


def _granite_scored(family, side, output):
    text = _plain(output)
    if text.startswith("<think>"):
        end = text.find("</think>")
        if end < 0 or "<think>" in text[len("<think>") : end]:
            return False
        text = text[end + len("</think>") :]
    return _cut(text, "<score>", "no", "</score>") == ""


def _shieldgemma(family, side, output):
    text = _plain(output)
    return text[:2] == "No" and (len(text) == 2 or text[2] in ".,:;\r\n")


def _json_pairs(text):
    """The pairs of one flat JSON object whose values are strings; None for anything else."""
    at = 0

    def skip():
        nonlocal at
        while at < len(text) and text[at] in " \t\n\r":
            at += 1

    def take(character):
        nonlocal at
        skip()
        if at >= len(text) or text[at] != character:
            raise ValueError
        at += 1

    def word():
        nonlocal at
        take('"')
        said = ""
        while True:
            if at >= len(text) or ord(text[at]) < 32:
                raise ValueError
            character = text[at]
            at += 1
            if character == '"':
                return said
            if character == "\\":
                escaped = text[at : at + 1]
                at += 1
                if escaped == "u":
                    digits = text[at : at + 4]
                    if len(digits) < 4 or any(d not in string.hexdigits for d in digits):
                        raise ValueError
                    at += 4
                    character = chr(int(digits, 16))
                elif escaped and escaped in '"\\/bfnrt':
                    character = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}.get(escaped, escaped)
                else:
                    raise ValueError
            said += character

    try:
        pairs = []
        take("{")
        while True:
            key = word()
            take(":")
            skip()
            pairs.append((key, word()))
            skip()
            if at < len(text) and text[at] == "}":
                at += 1
                skip()
                return pairs if at == len(text) else None
            take(",")
            skip()
    except ValueError:
        return None


def _nemoguard(family, side, output):
    pairs = _json_pairs(output)
    if pairs is None or len({k for k, _ in pairs}) < len(pairs):
        return False
    said = dict(pairs)
    verdicts = ("User Safety", "Response Safety")
    if set(said) - {*verdicts, "Safety Categories"} or "User Safety" not in said:
        return False
    if any(said[k] not in ("safe", "unsafe") for k in verdicts if k in said):
        return False
    listed = [_plain(n) for n in said.get("Safety Categories", "").split(",")]
    known = {n.lower() for n in family.categories}
    if any(n and n.lower() not in known for n in listed):
        return False
    if any(listed) and "unsafe" not in [said.get(k) for k in verdicts]:
        return False
    return said.get("User Safety" if side == "prompt" else "Response Safety") == "safe"


_WORDS = (
    "safe",
    "unsafe\nS1",
    "unsafe\nS1, S2",
    "\n\nsafe",
    "unsafe",
    "unsafe\nO3",
    "unsafe\nThreat, Malware",
)
_WILD = tuple(
    f"Harmful request: {a}\nResponse refusal: {b}\nHarmful response: {c}"
    for a in ("yes", "no")
    for b, c in (("yes", "no"), ("no", "yes"), ("N/A", "N/A"), ("no", "no"))
)
_POLY = tuple(
    f"Harmful request: {a}\nRequest safety violations: {b}\nResponse refusal: no\nHarmful response: {c}\n"
    f"Response safety violations: {d}"
    for a, b in (("yes", "S1, S12"), ("no", "None"))
    for c, d in (("yes", "S3"), ("no", "None"))
)
_QWEN = (
    "Safety: Safe\nCategories: None",
    "Safety: Unsafe\nCategories: Violent",
    "Safety: Controversial\nCategories: Unethical Acts",
    "Safety: Safe\nCategories: None\nRefusal: Yes",
    "Safety: Safe\nCategories: None\nRefusal: No",
    "Safety: Unsafe\nCategories: Violent, PII\nRefusal: No",
)
_NEMO = (
    '{"User Safety": "safe"}',
    '{"User Safety": "unsafe", "Safety Categories": "Violence, Threat"}',
    '{"User Safety": "safe", "Response Safety": "safe"}',
    '{"User Safety": "unsafe", "Response Safety": "safe", "Safety Categories": "Violence"}',
    '{"User Safety": "unsafe", "Response Safety": "unsafe", "Safety Categories": "Violence"}',
)
_YES_NO = ("Yes", "No", "No\n<confidence> High </confidence>", "Yes\n<confidence> Low </confidence>")
_SCORES = (
    "<think>\n</think>\n<score> no </score>",
    "<think>\n</think>\n<score> yes </score>",
    "<think>It asks for bread.</think>\n<score> no </score>",
    "<score> no </score>",
)
_REASONS = ("No", "Yes", "No. The text asks for a recipe.", "Yes\nIt asks for harm.", "No, it does not.")

GRAMMARS = {
    "keel": (_one_word, _WORDS),
    "llama-guard": (_one_word, _WORDS),
    "aegis": (_one_word, _WORDS),
    "wildguard": (_wildguard, _WILD),
    "polyguard": (_polyguard, _POLY),
    "qwen3guard": (_qwen, _QWEN),
    "granite-guardian-3.3": (_granite_scored, _SCORES),
    "granite-guardian-4": (_granite_scored, _SCORES),
    "granite-guardian": (_granite, _YES_NO),
    "shieldgemma": (_shieldgemma, _REASONS),
    "nemoguard": (_nemoguard, _NEMO),
    "md-judge": (_one_word, _WORDS),
}
"""By the beginning of the family's name, the longest that fits: a recogniser of safe verdicts and samples."""


def grammar(family):
    """(recogniser, samples) of a family; KeyError for one that nobody has written down here."""
    fitting = [name for name in GRAMMARS if family.name == name or family.name.startswith(f"{name}-")]
    if not fitting:
        raise KeyError(
            f"no grammar of family {family.name!r} in {__name__}: write one from its published format"
        )
    return GRAMMARS[max(fitting, key=len)]


def variants():
    """Every registered family, and again under a permissive policy where that changes it."""
    found = {}
    for name, family in sorted(families().items()):
        found[name] = family
        other = family.under(GuardPolicy(name="permissive", strictness="permissive"))
        if other is not family:
            found[f"{name}, permissive"] = other
    return found


TOKENS = (
    *(
        "safe",
        "unsafe",
        "Safe",
        "Unsafe",
        "Controversial",
        "Yes",
        "No",
        "yes",
        "no",
        "N/A",
        "None",
        "un",
        "not ",
    ),
    *(
        "\n",
        "\n\n",
        " ",
        "\t",
        "\r",
        "\r\n",
        "\x0b",
        "\x1c",
        "\x85",
        "\u2028",
        "\u00a0",
        "\ufeff",
        "\u200b",
        "\0",
    ),
    *(
        ",",
        ".",
        ":",
        "```",
        "```json\n",
        "**",
        '"',
        "{",
        "}",
        "[",
        "\\u0073afe",
        "null",
        "true",
        "0",
        "S1",
        "S99",
        "O1",
    ),
    *(
        "<think>",
        "</think>",
        "<score>",
        "</score>",
        " no </score>",
        "<confidence> High </confidence>",
        "<|eot_id|>",
    ),
    *(
        "Harmful request: no\n",
        "Harmful response: no",
        "Response refusal: no\n",
        "Safety: Safe",
        "Categories: None",
    ),
    *(
        "Refusal: No",
        '"User Safety": "safe"',
        '"Response Safety": "safe", ',
        '{"User Safety": "safe"}',
        "Violence",
    ),
    *(
        "I cannot help with that.",
        "Sorry, ",
        "The answer is ",
        "As an AI model, ",
        "</s>",
        "<|im_end|>",
        "ſafe",
    ),
)
LOOKALIKES = dict(zip('aeosSnNfYy :,"\n<>ki', "аеоѕЅոΝſΥу\u00a0：，”\u2028＜＞\u212aı", strict=True))


def mutate(random, text, samples):
    """The text after one to four changes; `random` is a random.Random."""
    for _ in range(random.randint(1, 4)):
        text = _CHANGES[random.randrange(len(_CHANGES))](random, text, samples)
    return text


def _at(random, text):
    return random.randint(0, len(text))


def _truncate(random, text, samples):
    at = _at(random, text)
    return text[:at] if random.random() < 0.7 else text[at:]


def _insert(random, text, samples):
    at = _at(random, text)
    return text[:at] + random.choice(TOKENS) + text[at:]


def _delete(random, text, samples):
    at = _at(random, text)
    return text[:at] + text[at + random.randint(1, 6) :]


def _double(random, text, samples):
    lines = text.split("\n")
    at = random.randrange(len(lines))
    return "\n".join([*lines[: at + 1], *lines[at:]]) if random.random() < 0.7 else text + text


def _shuffle(random, text, samples):
    lines = text.split("\n")
    random.shuffle(lines)
    return "\n".join(lines)


def _case(random, text, samples):
    return random.choice((str.upper, str.lower, str.title, str.swapcase, str.casefold))(text)


def _lookalike(random, text, samples):
    places = [i for i, c in enumerate(text) if c in LOOKALIKES]
    if not places:
        return text
    at = random.choice(places)
    return text[:at] + LOOKALIKES[text[at]] + text[at + 1 :]


def _fence(random, text, samples):
    return random.choice(
        ("```\n{}\n```", "```json\n{}\n```", "`{}`", "**{}**", '"{}"', "<b>{}</b>", "[{}]")
    ).replace("{}", text)


def _prose(random, text, samples):
    prose = random.choice(
        ("I think: ", "Sure! ", "I cannot judge this.\n", "Answer:\n", "It is not ", "Assistant: ")
    )
    return prose + text if random.random() < 0.6 else f"{text}\n{prose}"


def _both(random, text, samples):
    other = random.choice(samples)
    return (
        random.choice(("{}{}", "{}\n{}", "{} or {}", "{}, {}"))
        .replace("{}", "\x01", 1)
        .replace("{}", other)
        .replace("\x01", text)
    )


def _keys(random, text, samples):
    """A JSON object with a key again, or the fields of another sample."""
    extra = random.choice(
        ('"User Safety": "safe"', '"Response Safety": "safe"', '"safe": true', '"User Safety": 0')
    )
    return text.replace("}", f", {extra}}}", 1) if "}" in text else f"{text}\n{extra}"


def _value(random, text, samples):
    """One verdict word for another."""
    word = random.choice(("safe", "unsafe", "yes", "no", "Yes", "No", "None", "Safe", "Unsafe"))
    return text.replace(word, random.choice(TOKENS), 1)


_CHANGES = (
    *(
        _truncate,
        _insert,
        _insert,
        _delete,
        _double,
        _shuffle,
        _case,
        _lookalike,
        _fence,
        _prose,
        _both,
        _keys,
        _value,
    ),
)


def wrong(family, side, output):
    """What is wrong with the parser's answer to an output: "" for nothing."""
    recognise, _ = grammar(family)
    try:
        found = family.parse(output, side)
    except Exception as e:
        return f"raised {type(e).__name__}: {e}"
    if found.unsafe is None:
        return (
            ""
            if found.unscored and not found.categories
            else "an unscored verdict has a reason and no categories"
        )
    if found.unsafe not in (0.0, 1.0):
        return f"a parsed verdict is 0 or 1, not {found.unsafe}"
    if not set(found.categories) <= set(family.categories):
        return f"unknown categories {found.categories}"
    if found.unsafe == 0.0 and not recognise(family, side, output):
        return "safe, but its grammar has no such safe verdict"
    return ""
