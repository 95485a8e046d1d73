"""Every route and every limit, by its door over HTTP."""

import logging
import threading

import pytest
import torch

from headwise import recipes
from headwise.heads import gated, observe
from headwise.training import start
from headwise.web import Limits, served
from headwise.web.batching import Batcher
from tests.web.conftest import PLACE, TEXTS


def predicted(client, texts, **more):
    answer = client.post("/v1/predict", json={"texts": texts, **more})
    assert answer.status_code == 200, answer.text
    return answer.json()["answers"]


def near(found, expected):
    assert found == pytest.approx(expected, abs=1e-5)


def test_predict_answers_as_the_recipe_does(client, run):
    answers = predicted(client(), TEXTS)
    expected = recipes.predict_texts(run, TEXTS, start("cpu", "float32"))
    assert [answer["label"] for answer in answers] == [answer.label for answer in expected]
    for answer, other in zip(answers, expected, strict=True):
        near(answer["probabilities"], other.probabilities)


def test_a_head_that_is_off_is_gated(client, run):
    off = [{"place": PLACE, "head": 1}]
    (answer,) = predicted(client(), TEXTS[:1], off=off)
    with gated(run.model, {PLACE: torch.tensor([1.0, 0.0])}):
        (expected,) = recipes.predict_texts(run, TEXTS[:1], start("cpu", "float32"))
    near(answer["probabilities"], expected.probabilities)
    (whole,) = recipes.predict_texts(run, TEXTS[:1], start("cpu", "float32"))
    assert abs(answer["probabilities"]["good"] - whole.probabilities["good"]) > 1e-4


def test_explain_drops_words_one_by_one(client, run):
    text = "a lovely film"
    told = client().post("/v1/explain", json={"text": text}).json()
    assert [text[word["begin"] : word["end"]] for word in told["words"]] == ["a", "lovely", "film"]
    runtime = start("cpu", "float32")
    whole, without = recipes.predict_texts(run, [text, "a zzz film"], runtime)  # an unknown word is what masks
    near(told["answer"]["probabilities"], whole.probabilities)
    near(told["words"][1]["drop"], whole.probabilities[whole.label] - without.probabilities[whole.label])
    assert all(0 < word["head"]["share"] <= 1 for word in told["words"])


def test_explain_counts_characters_of_chinese(client):
    told = client().post("/v1/explain", json={"text": "等了两个小时"}).json()
    assert [(word["begin"], word["end"]) for word in told["words"]] == [(i, i + 1) for i in range(6)]


def test_explain_joins_the_words_of_a_long_text(client):
    told = client(limits={"occlusions": 4}).post("/v1/explain", json={"text": "lovely film " * 5}).json()
    assert len(told["words"]) == 4
    assert told["words"][0]["end"] == len("lovely film lovely")


def test_explain_tells_what_every_head_does(client, run):
    told = client().post("/v1/explain", json={"text": TEXTS[2]}).json()
    with observe(run.model) as observer:
        recipes.predict_texts(run, [TEXTS[2]], start("cpu", "float32"))
    rows = list(observer.table().rows())
    assert [(row["layer"], row["head"]) for row in told["heads"]] == [(row["layer"], row["head"]) for row in rows]
    near([row["entropy"] for row in told["heads"]], [row["entropy"] for row in rows])


def test_view_gives_links_and_a_tile(client):
    asked = {"text": TEXTS[2], "head": {"place": PLACE, "head": 0}}
    told = client().post("/v1/view", json=asked).json()
    assert len(told["links"]) == len(told["queries"]) == 9
    assert [len(told["map"]), len(told["map"][0])] == [16, 16]
    near(sum(map(sum, told["map"])), 9)
    assert all(0 < sum(link["weight"] for link in links) <= 1 + 1e-5 for links in told["links"])


def test_tiles_of_a_zoomed_map_add_up(client):
    service = client()
    asked = {"text": TEXTS[2], "head": {"place": PLACE, "head": 0}, "zoom": 1}
    tiles = [service.post("/v1/view", json=asked | {"row": i, "column": j}).json() for i in (0, 1) for j in (0, 1)]
    near(sum(sum(map(sum, tile["map"])) for tile in tiles), 9)


def test_models_lists_heads_and_limits(client):
    told = client(limits={"texts": 7}).get("/v1/models").json()
    (model,) = told["models"]
    assert (model["name"], model["task"], model["labels"]) == ("tiny", "sentiment", ["bad", "good"])
    assert model["layers"][0] == {"place": PLACE, "kind": "encoder", "heads": [0, 1]}
    assert told["limits"]["texts"] == 7


def test_health_readiness_and_metrics(client):
    service = client(limits={})
    assert service.get("/health").json() == {"status": "ok"}
    assert service.get("/ready").json() == {"status": "ready"}
    predicted(service, TEXTS)
    counters = service.get("/metrics").text
    assert 'headwise_requests_total{path="/v1/predict",status="200"} 1.0' in counters
    assert "headwise_batch_rows_sum 4.0" in counters


def test_a_service_that_computes_no_more_is_not_ready(client, monkeypatch):
    async def ended(_):
        return None

    monkeypatch.setattr(Batcher, "_serve", ended)
    service = client(limits={})
    assert service.get("/health").status_code == 200
    assert service.get("/ready").status_code == 503
    assert service.post("/v1/predict", json={"texts": TEXTS}).status_code == 503


class Held:
    """A model that plans nothing before its gate is open, and remembers who planned."""

    def __init__(self, run):
        self.model = served("tiny", run, start("cpu", "float32"), Limits())
        self.plan, self.model.explain = self.model.explain, self
        self.began, self.gate, self.threads = threading.Event(), threading.Event(), {}

    def __call__(self, *asked):
        self.threads[threading.current_thread().name] = True  # in their order
        self.began.set()
        assert self.gate.wait(5)
        return self.plan(*asked)


LONG = "a" * 3_000


def test_a_short_text_is_read_at_once_unless_somebody_reads(client, run):
    held = Held(run)
    service = client(models={"tiny": held.model})
    held.gate.set()
    assert service.post("/v1/explain", json={"text": "a"}).status_code == 200
    assert service.post("/v1/explain", json={"text": LONG}).status_code == 200
    assert [name.startswith("headwise-reader") for name in held.threads] == [False, True]


def test_texts_are_read_beside_the_event_loop_one_by_one(client, run):
    held, statuses = Held(run), []
    service = client(models={"tiny": held.model})
    asking = [
        threading.Thread(target=lambda: statuses.append(service.post("/v1/explain", json={"text": LONG}).status_code))
        for _ in range(4)
    ]
    for thread in asking:
        thread.start()
    assert held.began.wait(5)
    assert service.get("/health").status_code == 200
    assert not statuses
    held.gate.set()
    for thread in asking:
        thread.join()
    assert statuses == [200] * 4
    assert len(held.threads) == 1


def test_a_text_that_is_not_read_in_time_is_given_up(client, run):
    held = Held(run)
    service = client(models={"tiny": held.model}, limits={"deadline": 0.2})
    answer = service.post("/v1/explain", json={"text": LONG})
    held.gate.set()
    assert (answer.status_code, "deadline" in answer.json()["detail"]) == (504, True)


@pytest.mark.parametrize(
    ("path", "body", "told"),
    [
        ("/v1/predict", {"texts": []}, "`texts` must be 1 to 64; got 0"),
        ("/v1/predict", {"texts": ["a"] * 65}, "got 65"),
        ("/v1/predict", {"texts": ["a" * 20_001]}, "at most 20000 characters; got 20001"),
        ("/v1/predict", {"texts": ["a b " * 100]}, "at most 64 tokens"),
        ("/v1/predict", {"texts": ["a"], "beams": 9}, "`beams` and `n_best` must be 1 to 8; got 9"),
        ("/v1/predict", {"texts": ["a"], "beams": 0}, "must be 1 to 8; got 0"),
        ("/v1/predict", {"texts": ["a"], "n_best": -1}, "must be 1 to 8"),
        ("/v1/predict", {"texts": ["a"], "model": "no"}, "`model` must be one of tiny; got 'no'"),
        ("/v1/predict", {"texts": ["a"], "off": [{"place": PLACE, "head": 7}]}, "heads must be the model's own"),
        ("/v1/predict", {"texts": ["a"], "off": [{"place": "x", "head": 0}]}, "heads must be the model's own"),
        ("/v1/predict", {"texts": "a"}, "body.texts: Input should be a valid list"),
        ("/v1/predict", {"texts": ["a"], "cut": "yes"}, "body.cut: Input should be a valid boolean"),
        ("/v1/predict", {"texts": ["a"], "model": 1}, "body.model: Input should be a valid string"),
        ("/v1/predict", {"texts": ["a"], "colour": 1}, "body.colour: Unexpected keyword argument"),
        ("/v1/explain", {}, "body.text: Field required"),
        ("/v1/explain", {"text": "a" * 20_001}, "at most 20000 characters"),
        ("/v1/view", {"text": "a", "head": {"place": PLACE, "head": 9}}, "heads must be the model's own"),
        ("/v1/view", {"text": "a", "head": {"place": PLACE, "head": 0}, "zoom": 5}, "at most 256 cells a side"),
        ("/v1/view", {"text": "a", "head": {"place": PLACE, "head": 0}, "row": 1}, "must be 0 to 0"),
    ],
)
def test_what_cannot_be_is_refused_with_its_reason(client, path, body, told):
    answer = client().post(path, json=body)
    assert answer.status_code == 422
    assert told in answer.json()["detail"]


def test_a_text_that_is_too_long_is_cut_where_that_is_allowed(client):
    answer = client().post("/v1/predict", json={"texts": ["a b " * 100, "a"], "cut": True})
    assert (answer.status_code, answer.json()["cut"]) == (200, 1)


def test_texts_stay_out_of_the_log_unless_asked_for(client, caplog):
    caplog.set_level(logging.DEBUG, logger="headwise")
    for quiet in (client(), client()):
        predicted(quiet, ["a secret film"])
        quiet.post("/v1/predict", json={"texts": ["a secret film"], "secret": "secret"})
    assert "secret" not in caplog.text
    predicted(client(log_texts=True), ["a secret film"])
    assert "a secret film" in caplog.text
