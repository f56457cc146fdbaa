"""Requests made from the OpenAPI document, right and wrong ones: answered as it says, never with a fault of ours."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("fastapi", reason="the serve extra is not installed")
pytest.importorskip("sqlalchemy", reason="the serve extra is not installed")
pytest.importorskip("schemathesis", reason="schemathesis is not installed")

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings

from guardkeel.moderation.proxy import Upstream
from moderation_parts import Acting, listening, rules, service_of
from remote_server import Server, chat

EXAMPLES = 20
OPERATIONS = {
    "POST /v1/moderations", "POST /v1/verdicts", "POST /v1/chat/completions", "POST /v1/feedback", "GET /v1/audits",
    "GET /v1/verdicts/{id}", "GET /v1/experts", "GET /v1/policies", "PUT /v1/policies", "PATCH /v1/policies",
    "GET /healthz", "GET /readyz", "GET /metrics",
}  # fmt: skip
TAKE_SOMETHING = [*sorted(o for o in OPERATIONS if not o.startswith("GET")), "GET /v1/audits"]
CASES = [("POSITIVE", o) for o in sorted(OPERATIONS)] + [("NEGATIVE", o) for o in TAKE_SOMETHING]


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("schema")
    with Server(lambda request: chat("calm")) as behind:
        calm = Acting(lambda text: 0.3, name="calm")
        store = {"url": f"sqlite:///{folder}/log.db", "poll": 0.5, "texts": True}
        service = service_of(folder, rules(), calm, proxy={"upstream": f"{behind.url}/v1"}, store=store)
        with listening(service, Upstream(service.config.proxy)) as url:
            yield url


@pytest.fixture(scope="module")
def operations(address):
    schema = schemathesis.openapi.from_url(f"{address}/openapi.json")
    found = (result.ok() for result in schema.get_all_operations())
    return {operation.label: operation for operation in found}


def test_document_has_every_endpoint_and_none_of_the_pages(operations):
    assert set(operations) == OPERATIONS


@pytest.mark.parametrize(("mode", "label"), CASES)
def test_no_request_finds_a_fault(operations, mode, label, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where it would leave what it has found out
    operation, mode = operations[label], schemathesis.GenerationMode[mode]

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case):
        answer = case.call()
        assert answer.status_code < 500, (case.as_curl_command(), answer.text)
        declared = {*operation.definition.raw["responses"], "404", "405"}
        assert str(answer.status_code) in declared, answer.status_code
        if answer.status_code >= 400:
            assert json.loads(answer.content)["error"]["message"]

    ask()
