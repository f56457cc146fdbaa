import tomllib

import pytest

from guardkeel.errors import ConfigError
from guardkeel.evaluation.policy import (
    Absolute,
    Policy,
    default_policy,
    default_policy_text,
    load_policy,
    parse_policy,
)


def test_the_default_file_says_what_the_models_default_to():
    assert default_policy() == Policy()
    assert load_policy() == Policy()
    assert default_policy().digest == Policy().digest


def test_the_default_file_names_every_key():
    written = tomllib.loads(default_policy_text())
    assert set(written) == set(Policy.model_fields)
    for table in ("non_inferiority", "geometry", "completeness"):
        assert set(written[table]) == set(type(getattr(Policy(), table)).model_fields)
    assert all(key in default_policy_text() for key in Absolute.model_fields)


def test_defaults_are_those_agreed():
    margins = Policy().non_inferiority.margins
    assert (margins.recall, margins.fpr, margins.unscored) == (0.05, 0.05, 0.01)
    assert not Policy().geometry.binding


def test_a_file_is_read_and_the_rest_defaults(tmp_path):
    path = tmp_path / "p.toml"
    margins = "[non_inferiority.margins]\nrecall = 0.02\n"
    path.write_text(f'name = "mine"\n{margins}[[absolute]]\nsuites = ["a"]\nmax_fpr = 0.3\n')
    policy = load_policy(path)
    margins = policy.non_inferiority.margins
    assert (policy.name, margins.recall, margins.fpr) == ("mine", 0.02, 0.05)
    assert policy.absolute == [Absolute(suites=["a"], max_fpr=0.3)]


def test_the_digest_is_of_what_is_said_not_how():
    one = parse_policy("[geometry]\nbinding = true\nmin_cka = 0.5", "a")
    two = parse_policy("# why\n[geometry]\nmin_cka = 0.50\nbinding = true", "b")
    assert one.digest == two.digest != Policy().digest


@pytest.mark.parametrize(
    ("text", "problem", "remedy"),
    [
        ("alpha = 0.1", "p.toml: unknown key 'alpha'", "remove 'alpha'; known keys here: name, description"),
        (
            "[non_inferiority]\nalhpa = 0.1",
            "unknown key 'non_inferiority.alhpa'",
            "write 'alpha' for 'alhpa'",
        ),
        (
            "[non_inferiority.margins]\nrecal = 0.1",
            "'non_inferiority.margins.recal'",
            "write 'recall' for 'recal'",
        ),
        ("[[absolute]]\nmin_recal = 0.1", "unknown key 'absolute.0.min_recal'", "write 'min_recall'"),
        ("[geometry]\nx = 1\ny = 2", "'geometry.x'; unknown key 'geometry.y'", "known keys here: binding"),
        ("[non_inferiority]\nalpha = 0.9", "key 'non_inferiority.alpha' is 0.9", "correct the value"),
        ("[non_inferiority]\nsuites = []", "'non_inferiority.suites' is []", "correct"),
        ("[non_inferiority.margins]\nfpr = 0.0", "'non_inferiority.margins.fpr' is 0.0", "correct"),
        ("[geometry]\nbinding = 1", "'geometry.binding' is 1", "correct"),
        ("[completeness]\nmin_safe = -1", "'completeness.min_safe' is -1", "correct"),
        ("name = ", "p.toml: not TOML", "mend the line"),
    ],
)
def test_what_is_wrong_is_named_with_its_remedy(text, problem, remedy):
    with pytest.raises(ConfigError) as caught:
        parse_policy(text, "p.toml")
    assert problem in caught.value.problem
    assert remedy in caught.value.remedy


def test_toml_errors_name_the_line():
    with pytest.raises(ConfigError, match="line 3"):
        parse_policy("name = 'a'\nb = [\n= ", "p.toml")


def test_unreadable_files_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"missing\.toml: cannot be read"):
        load_policy(tmp_path / "missing.toml")
    path = tmp_path / "latin.toml"
    path.write_bytes(b'name = "\xe9"')
    with pytest.raises(ConfigError, match=r"latin\.toml: not UTF-8"):
        load_policy(path)
