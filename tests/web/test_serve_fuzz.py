"""Requests drawn from the service's own OpenAPI document: none fails it, and every answer is as the document says."""

import json

import hypothesis
import pytest
import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi import checks
from starlette.testclient import TestClient

from headwise.training import start
from headwise.web import Limits, ServeConfig, application, served
from tests.web.conftest import HERE

CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
]


@pytest.fixture(scope="session")
def serving(run):
    """Serve, and give the client with the document."""
    limits = Limits(characters=200, texts=4)
    models = {"tiny": served("tiny", run, start("cpu", "float32"), limits)}
    app = application(models, ServeConfig(limits=limits))
    with TestClient(app, base_url=HERE, raise_server_exceptions=False) as client:
        yield client, schemathesis.openapi.from_dict(client.get("/openapi.json").json())


OPERATIONS = [
    ("/v1/predict", "POST"),
    ("/v1/explain", "POST"),
    ("/v1/view", "POST"),
    ("/v1/models", "GET"),
    ("/health", "GET"),
    ("/ready", "GET"),
]


def sent(client, case):
    """Send a request that was drawn, and give the answer."""
    given = case.as_transport_kwargs(base_url=HERE)
    content = json.dumps(given["json"]).encode() if "json" in given else given.get("data")
    return client.request(case.method, given["url"], headers=given["headers"], params=given["params"], content=content)


def check(serving, path, method, examples):
    """Draw requests that the document allows, then such as it does not; some of the former must be answered."""
    client, document = serving
    operation, found = document[path][method], set()
    modes = [GenerationMode.POSITIVE, GenerationMode.NEGATIVE] if method == "POST" else [GenerationMode.POSITIVE]
    for mode in modes:

        @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
        @hypothesis.settings(max_examples=examples, suppress_health_check=list(hypothesis.HealthCheck))
        def drawn(case):
            response = sent(client, case)
            found.add(response.status_code)
            case.validate_response(response, checks=CHECKS)

        drawn()
    assert 200 in found


def test_every_operation_of_the_document_is_tried(serving):
    _, document = serving
    found = {(path, method.upper()) for path, item in document.raw_schema["paths"].items() for method in item}
    assert found == set(OPERATIONS)


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_drawn_requests_are_answered_as_the_document_says(serving, path, method):
    check(serving, path, method, 25)


@pytest.mark.slow
@pytest.mark.parametrize(("path", "method"), OPERATIONS[:3])
def test_many_drawn_requests_are_answered_as_the_document_says(serving, path, method):
    check(serving, path, method, 1_000)
