"""The TOML file of a guard behind a server: what it may say, and what never leaves it."""

import traceback

import pytest

from guardkeel.errors import ConfigError, OfflineError, ResourceError, UnsafeFileError
from guardkeel.guards.kinds import kind_of
from guardkeel.guards.load import guard_path, load_guard
from guardkeel.guards.remote import is_server, load_remote, read_remote, stated

CHAT = 'url = "http://localhost:8000"\napi = "chat"\nmodel = "m"\nfamily = "llama-guard-3"\n'
COMPLETIONS = CHAT.replace("chat", "completions")
CLASSIFY = 'url = "http://localhost:8000"\napi = "classify"\nmodel = "m"\nlabels = ["SAFE", "INJECTION"]\n'
MODERATIONS = 'url = "http://localhost:8000"\napi = "moderations"\nmodel = "m"\n'
KEY = "sk-sEcReT0123456789"


@pytest.fixture
def write(tmp_path):
    def write(text, name="guard.toml"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize(
    ("api", "url", "endpoint"),
    [
        ("chat", "http://h:1", "http://h:1/v1/chat/completions"),
        ("chat", "http://h:1/", "http://h:1/v1/chat/completions"),
        ("chat", "https://h/api/v2", "https://h/api/v2/chat/completions"),
        (
            "chat",
            "https://h/deployments/d/chat/completions?api-version=1",
            "https://h/deployments/d/chat/completions?api-version=1",
        ),
        ("completions", "http://h:1", "http://h:1/v1/completions"),
        ("completions", "http://h:1/v1/completions", "http://h:1/v1/completions"),
        ("classify", "http://h:1", "http://h:1/classify"),
        ("classify", "http://h:1/v1", "http://h:1/v1/classify"),
        ("moderations", "https://h/v1", "https://h/v1/moderations"),
    ],
)
def test_the_address_that_is_asked(write, api, url, endpoint):
    text = {"chat": CHAT, "completions": COMPLETIONS, "classify": CLASSIFY, "moderations": MODERATIONS}[api]
    assert read_remote(write(text.replace("http://localhost:8000", url))).endpoint == endpoint


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (CHAT + "modle = 1\n", "unknown key 'modle'"),
        (CHAT.replace('family = "llama-guard-3"', ""), "family is missing"),
        (CHAT.replace("http://localhost:8000", "ftp://x"), "url: must be http"),
        (CHAT.replace("http://localhost:8000", "http://me:pw@x"), "url: must hold no user"),
        (CHAT.replace("http://localhost:8000", "http://x/v1?api_key=1"), "url: must hold no user"),
        (CHAT + f'headers = {{Authorization = "Bearer {KEY}"}}\n', "headers: Authorization is secret"),
        (CHAT + f'headers = {{"X-Api-Key" = "{KEY}"}}\n', "headers: X-Api-Key is secret"),
        (CHAT + 'headers = {"X-A" = "b\\nX-C: d"}\n', "headers: X-A is not"),
        (CHAT + f'extra = {{api_key = "{KEY}"}}\n', "extra: api_key looks secret"),
        (CHAT + "extra = {messages = []}\n", "extra: messages is written by guardkeel"),
        (CHAT + "extra = {seed = nan}\n", "extra: has a date, nan or inf"),
        (CHAT + "inputs = 4\n", "inputs must be 1"),
        (CHAT + 'tokenizer = "x"\n', "tokenizer is of no use"),
        (CHAT + "timeout = 0\n", "timeout"),
        (COMPLETIONS + "max_tokens = 512\n", "max_tokens needs tokenizer"),
        (CLASSIFY.replace('labels = ["SAFE", "INJECTION"]', ""), "labels is missing"),
        (CLASSIFY.replace("INJECTION", "SAFE"), "labels has one twice"),
        (CLASSIFY + 'family = "keel"\n', "family and policy are of generative guards"),
        (MODERATIONS + 'labels = ["a"]\n', "are of api 'classify'"),
        (MODERATIONS.replace("moderations", "rerank"), "api"),
        ("url = [", "not TOML"),
        ("\udcff", "not UTF-8"),
    ],
)
def test_what_is_refused_is_named_and_no_value_is_shown(write, tmp_path, text, said):
    path = tmp_path / "guard.toml"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError) as raised:
        read_remote(path)
    assert said in str(raised.value) and str(path) in str(raised.value) and raised.value.remedy
    # The secret is not in what went before either, which a traceback shows.
    assert KEY not in "".join(traceback.format_exception(raised.value))


def test_the_key_is_nowhere(write, monkeypatch, capsys):
    path = write(CHAT + 'api_key_env = "GUARD_KEY"\nheaders = {"X-Team" = "blue-7"}\n')
    with pytest.raises(ConfigError, match="GUARD_KEY is not set"):
        load_remote(path)
    with pytest.raises(ConfigError, match="GUARD_KEY is not set"):
        stated(path)
    monkeypatch.setenv("GUARD_KEY", "two words\nX-Evil: 1")
    with pytest.raises(ConfigError) as raised:
        load_remote(path)
    assert "Evil" not in str(raised.value)
    monkeypatch.setenv("GUARD_KEY", KEY + "\n")
    guard = load_remote(path)
    shown = f"{guard!r} {guard.facts} {guard.config!r} {vars(guard.config)} {guard._client!r}"
    assert KEY not in shown and "blue-7" not in str(guard.facts)
    assert guard.facts["headers"] == ["X-Team"]
    assert guard.facts["parameters"] == 0 and guard.facts["dtype"] == "" == guard.facts["device"]


def test_what_a_file_says_of_its_guard(write):
    guard = load_guard(str(write(CHAT + "threshold = 0.3\n", "my-guard.toml")))
    assert (guard.name, guard.family, guard.threshold) == ("my-guard", "llama-guard-3", 0.3)
    assert load_guard(str(write(CLASSIFY + 'name = "injections"\n'))).name == "injections"
    assert load_guard(str(write(CLASSIFY))).family == "classifier"
    over = load_guard(str(write(COMPLETIONS)), family="keel", threshold=0.9)
    assert (over.family, over.threshold) == ("keel", 0.9)
    with pytest.raises(ConfigError, match="has no family 'keel'"):
        load_guard(str(write(CLASSIFY)), family="keel")
    with pytest.raises(ConfigError, match="unknown guard family 'nobody'"):
        load_guard(str(write(CHAT)), family="nobody")


def test_its_digest_is_of_what_verdicts_depend_on(write):
    first = stated(write(CHAT))
    assert stated(write(CHAT + "concurrency = 3\nretries = 0\nrequests_per_minute = 9\n")) == first
    others = (CHAT.replace('"m"', '"n"'), CHAT + "extra = {seed = 1}\n", CHAT + "threshold = 0.4\n")
    assert len({first, *(stated(write(text)) for text in others)}) == 4


def test_a_policy_beside_the_file(write):
    write('name = "bank"\nstrictness = "permissive"\n', "policy.toml")
    guard = load_guard(str(write(COMPLETIONS + 'policy = "policy.toml"\n')))
    assert guard.facts["policy"]["name"] == "bank"
    write('name = "bank"\n[[categories]]\nname = "Account takeover"\n', "policy.toml")
    asked = load_guard(str(write(COMPLETIONS + 'policy = "policy.toml"\n')))
    assert asked.facts["policy"]["categories"][0]["name"] == "Account takeover"
    with pytest.raises(ConfigError, match="writes its prompt itself"):
        load_guard(str(write(CHAT + 'policy = "policy.toml"\n')))
    with pytest.raises(ConfigError, match=r"nowhere\.toml"):
        load_guard(str(write(CHAT + 'policy = "nowhere.toml"\n')))


def test_only_a_file_that_was_named_is_opened(write, tmp_path):
    path = write(CHAT)
    assert is_server(str(path)) and is_server(f"path:{path}") and not is_server(str(tmp_path))
    assert kind_of(f"path:{path}") == "server"
    for downloaded in ("hub:org/name/guard.toml", "pypi:package==1.0/guard.toml"):
        with pytest.raises(UnsafeFileError, match="anywhere"):
            is_server(downloaded)
    with pytest.raises(ResourceError, match="no such file"):
        load_guard("guards/absent.toml")
    with pytest.raises(ResourceError, match="no such file"):
        load_guard(str(tmp_path / "absent.toml"))
    # A folder that has one, and an adapter that says that it is one's.
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    assert kind_of(str(tmp_path)) == "checkpoint"
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(
        f'{{"peft_type": "LORA", "base_model_name_or_path": "{path}"}}'
    )
    with pytest.raises(Exception, match="not a model folder"):
        load_guard(str(adapter))


def test_what_needs_weights_says_so(write):
    with pytest.raises(ConfigError, match="a server runs this guard"):
        guard_path(str(write(CHAT)))


def test_offline_only_this_machine_is_asked(write, monkeypatch):
    load_remote(write(CHAT), offline=True)
    with pytest.raises(OfflineError, match=r"guards\.example"):
        load_remote(write(CHAT.replace("localhost:8000", "guards.example")), offline=True)
    monkeypatch.setenv("GUARDKEEL_OFFLINE", "1")
    with pytest.raises(OfflineError):
        load_remote(write(CHAT.replace("localhost", "127.evil.example")))


def test_a_family_whose_prompt_a_server_cannot_be_given(write):
    with pytest.raises(ConfigError, match="writes its prompt itself"):
        load_remote(write(CHAT.replace("llama-guard-3", "keel")))
    assert load_remote(write(CHAT.replace("llama-guard-3", "nemoguard"))).family == "nemoguard"
