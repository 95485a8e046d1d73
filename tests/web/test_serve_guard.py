"""What reaches the application, and what every answer carries."""

import asyncio
import json
import logging

import pytest

from headwise.training import start
from headwise.web import served
from headwise.web.config import Limits, ServeConfig
from headwise.web.guard import Guard
from headwise.web.metrics import Metrics
from tests.web.conftest import HERE, PLACE

POST = {"type": "http", "method": "POST", "path": "/v1/predict", "headers": [(b"host", b"localhost")]}
JSON = {"content-type": "application/json"}
ASKED = {"texts": ["a lovely film"]}


@pytest.fixture(scope="module")
def shared(run):
    """Serve for those tests that change nothing."""
    from starlette.testclient import TestClient

    from headwise.training import start
    from headwise.web import Limits, ServeConfig, application, served

    limits = Limits(body=5_000)
    models = {"tiny": served("tiny", run, start("cpu", "float32"), limits)}
    app = application(models, ServeConfig(limits=limits, hosts=("films.example",)))
    with TestClient(app, base_url=HERE, raise_server_exceptions=False) as made:
        yield made


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1:80", "[::1]:8000", "films.example"])
def test_names_of_this_machine_and_given_ones_are_hosts(shared, host):
    assert shared.get("/health", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("host", ["[2001:db8::1]:8000", "[2001:DB8::1]", "[2001:db8::2]:80"])
def test_an_address_of_version_6_is_a_host_in_its_brackets(client, host):
    service = client(host="2001:db8::1", hosts=("2001:DB8::2",))
    assert service.get("/health", headers={"host": host}).status_code == 200
    assert service.get("/health", headers={"host": "[2001:db8::3]"}).status_code == 400


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "localhost:8000:1", "localhost@evil"])
def test_another_host_is_refused(shared, host):
    answer = shared.get("/health", headers={"host": host})
    assert (answer.status_code, "Host must be" in answer.json()["detail"]) == (400, True)


def test_a_page_of_another_origin_cannot_ask(shared):
    for origin in ("https://evil.example", "null", "http://127.0.0.1:9"):
        assert shared.post("/v1/predict", json=ASKED, headers={"origin": origin}).status_code == 403
    own = shared.post("/v1/predict", json=ASKED, headers={"origin": HERE})
    assert own.status_code == 200
    assert not [name for name in own.headers if name.startswith("access-control")]
    assert shared.options("/v1/predict", headers={"origin": HERE}).status_code == 405


def test_a_form_of_another_page_is_no_request(shared):
    sent = {"content": json.dumps(ASKED), "headers": {"content-type": "text/plain"}}
    assert shared.post("/v1/predict", **sent).status_code == 422


@pytest.mark.parametrize("path", ["/", "/health", "/v1/models", "/nothing", "/page/app.js"])
def test_every_answer_carries_the_policy(shared, path):
    headers = shared.get(path).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert "server" not in headers


def test_the_page_holds_no_script_or_style_of_its_own(shared):
    page = shared.get("/").text
    assert "<style" not in page
    assert "style=" not in page
    assert " on" not in page.partition("<body>")[2].replace(" one", "")
    assert page.count("<script") == page.count('<script type="module" src="/page/')


@pytest.mark.parametrize(
    "path",
    ["/page/../app.py", "/page/%2e%2e/app.py", "/page/..%2fapp.py", "/page//etc/passwd", "/docs", "/redoc", "/page/"],
)
def test_no_other_file_is_served(shared, path):
    assert shared.get(path).status_code == 404


def test_a_wrong_method_is_told(shared):
    for answer, allowed in ((shared.get("/v1/predict"), "POST"), (shared.delete("/v1/models"), "GET")):
        assert (answer.status_code, answer.headers["allow"]) == (405, allowed)


def test_a_token_is_asked_for_where_one_is_set(client):
    service = client(token="s3cret")
    for wrong in ({}, {"authorization": "Bearer s3cre"}, {"authorization": "s3cret"}, {"authorization": "Bearer é"}):
        for path in ("/v1/models", "/metrics", "/openapi.json", "/page", "/nothing"):
            headers = {name: value.encode("latin-1") for name, value in wrong.items()}
            answer = service.get(path, headers=headers)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    right = {"authorization": "Bearer s3cret"}
    assert service.post("/v1/predict", json=ASKED, headers=right).status_code == 200
    assert service.get("/health").status_code == service.get("/").status_code == 200


def test_a_body_that_is_too_long_is_refused(shared):
    answer = shared.post("/v1/predict", content=b" " * 5_001, headers=JSON)
    assert (answer.status_code, "at most 5000 bytes" in answer.json()["detail"]) == (413, True)
    pieces = (b" " * 1000 for _ in range(6))
    assert shared.post("/v1/predict", content=pieces, headers=JSON).status_code == 413


BROKEN = {
    "empty": b"",
    "cut": b'{"texts": ["a"',
    "no UTF-8": b'{"texts": ["\xff\xfe"]}',
    "lone surrogate": b'{"texts": ["\\ud800"]}',
    "surrogate as a name": b'{"texts": ["a"], "\\ud800": 1}',
    "deep": b"[" * 2_000,
    "deep and whole": b'{"texts": ' + b"[" * 2_000 + b"]" * 2_000 + b"}",
    "NaN": b'{"texts": ["a"], "beams": NaN}',
    "infinite": b'{"texts": ["a"], "beams": 1e999}',
    "huge": b'{"texts": ["a"], "beams": ' + b"9" * 4_900 + b"}",
    "large": b'{"texts": ["a"], "beams": 99999999999999999999999}',
    "null": b"null",
    "list": b"[]",
    "zero bytes": b"\0" * 100,
    "head": b'{"texts": ["a"], "off": [{"place": "' + PLACE.encode() + b'", "head": 1e30}]}',
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_body_is_the_client_s_fault(shared, name):
    answer = shared.post("/v1/predict", content=BROKEN[name], headers=JSON)
    assert answer.status_code in (400, 422)
    assert isinstance(answer.json()["detail"], str)


def test_texts_of_any_letters_are_answered(shared):
    for text in ("", " ", "\0", "\u202e abc", "\U0001f600" * 50, "a\r\nb", "</script>", "e\u0301" * 10):
        assert shared.post("/v1/predict", json={"texts": [text]}).status_code == 200
        assert shared.post("/v1/explain", json={"text": text}).status_code == 200
        view = {"text": text, "head": {"place": PLACE, "head": 0}}
        assert shared.post("/v1/view", json=view).status_code == 200


@pytest.mark.parametrize(("deadline", "longest"), [(10.0, 4.0), (2.5, 2.5)])
def test_a_full_service_refuses_at_an_even_pace(monkeypatch, deadline, longest):
    config = ServeConfig(limits=Limits(refusals=1, deadline=deadline))
    guard = Guard(None, config, Metrics(), full=lambda: True)
    waits, statuses = [], []

    async def waiting(seconds):
        waits.append(seconds)

    async def send(message):
        statuses.append(message.get("status"))

    async def crowd():
        for _ in range(5):
            await guard(POST, None, send)

    monkeypatch.setattr(asyncio, "sleep", waiting)
    asyncio.run(crowd())
    assert statuses == [503, None] * 5
    assert waits == pytest.approx([min(second, longest) for second in range(5)], abs=0.5)


def test_a_failure_of_the_service_is_counted_and_logged(client, run, caplog):
    caplog.set_level(logging.INFO, logger="headwise")
    model = served("tiny", run, start("cpu", "float32"), Limits())
    model.explain = lambda *_: 1 / 0
    service = client(models={"tiny": model})
    answer = service.post("/v1/explain", json={"text": "a"})
    assert (answer.status_code, "See its log" in answer.json()["detail"]) == (500, True)
    assert 'headwise_requests_total{path="/v1/explain",status="500"} 1.0' in service.get("/metrics").text
    assert "POST /v1/explain 500" in caplog.text


def test_who_has_waited_for_a_refusal_is_answered_where_there_is_room_by_then():
    async def answering(scope, receive, send):
        await send({"type": "http.response.start", "status": 200})

    full, statuses = [True, False], []
    guard = Guard(answering, ServeConfig(), Metrics(), full=lambda: full.pop(0))

    async def receive():
        return {"type": "http.request", "body": b"{}"}

    async def send(message):
        statuses.append(message["status"])

    asyncio.run(guard(POST, receive, send))
    assert statuses == [200]
