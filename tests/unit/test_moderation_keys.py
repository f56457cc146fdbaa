"""API keys and logs: what is kept, what is shown, what is never."""

from __future__ import annotations

import io
import json
import logging
import threading

import pytest

from guardkeel.errors import ConfigError, DataError
from guardkeel.moderation.keys import Keys, new_key, read_keys, revoke_key
from guardkeel.moderation.logs import Lines


def test_key_is_kept_as_a_hash(tmp_path):
    path = tmp_path / "keys.json"
    secret = new_key(path, "shop", ("moderate",), 30)
    assert secret not in path.read_text() and secret.split("_", 2)[2] not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    key = Keys(path).find(secret)
    assert key is not None and (key.name, key.requests_per_minute) == ("shop", 30)
    assert key.may("moderate") and not key.may("feedback") and not key.may("admin")


def test_wrong_keys_are_nobody(tmp_path):
    path = tmp_path / "keys.json"
    secret = new_key(path, "shop", ("admin",))
    keys = Keys(path)
    assert keys.find(secret).may("feedback")  # admin may everything
    for wrong in (
        "",
        "gk",
        secret[:-1],
        secret + "x",
        secret.replace("gk_", "sk_"),
        secret.upper(),
        "gk_00000000_x",
        "gk_é_ü",
    ):
        assert keys.find(wrong) is None


def test_running_service_sees_new_and_revoked_keys(tmp_path):
    path = tmp_path / "keys.json"
    first = new_key(path, "a", ("moderate",))
    keys = Keys(path)
    second = new_key(path, "b", ("moderate",))
    assert keys.find(second) is not None
    revoke_key(path, keys.find(first).id)
    assert keys.find(first) is None and keys.find(second) is not None
    path.write_text("{half a file")  # kept as it was until it can be read
    assert keys.find(second) is not None
    path.unlink()
    assert keys.find(second) is not None
    new_key(tmp_path / "other.json", "c", ("admin",))
    with pytest.raises(ConfigError, match="no key 'nobody'"):
        revoke_key(tmp_path / "other.json", "nobody")


def test_keys_made_at_once_are_all_kept(tmp_path):
    path = tmp_path / "keys.json"
    threads = [threading.Thread(target=new_key, args=(path, f"k{i}", ("moderate",))) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(k.name for k in read_keys(path).keys) == [f"k{i}" for i in range(8)]


def test_file_that_is_none(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        Keys(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text('{"keys": [{"id": "secret-thing"}]}')
    with pytest.raises(DataError, match="no file of API keys") as refused:
        Keys(tmp_path / "bad.json")
    assert "secret-thing" not in str(refused.value)


def logged(act, **options):
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(Lines(**{"plain": False, "texts": False, **options}))
    logger = logging.Logger("test")
    logger.addHandler(handler)
    act(logger)
    return out.getvalue()


def failing(logger):
    try:
        try:
            raise ValueError("the text is: secret")
        except ValueError as e:
            raise RuntimeError("secret too") from e
    except RuntimeError:
        logger.exception("it failed")


def test_log_lines_are_json_without_messages_of_exceptions():
    line = logged(failing)
    row = json.loads(line)
    assert "secret" not in line
    assert (row["message"], row["level"]) == ("it failed", "error")
    assert row["exception"]["type"] == "RuntimeError" and row["exception"]["from"] == "ValueError"
    assert any("failing" in at for at in row["exception"]["at"])
    assert "secret too" in logged(failing, texts=True)


def test_log_lines_cannot_be_forged():
    line = logged(lambda logger: logger.warning("a\nb\u2028", extra={"fields": {"route": "x\ny"}}))
    assert line.count("\n") == 1 and "\u2028" not in line
    assert json.loads(line)["route"] == "x\ny"
