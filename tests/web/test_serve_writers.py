"""Models that write: translations and summaries by the same doors."""

import pytest
import torch

from headwise import recipes
from headwise.heads import gated
from headwise.training import start
from headwise.web import Limits, ServeConfig, served
from tests.web.conftest import TEXTS, serving, tiny_writer

CROSS = "decoder.layers.0.cross_attention.attend"


@pytest.fixture(scope="module")
def service(writer):
    with serving({"tiny": served("tiny", writer, start("cpu", "float32"), Limits())}, ServeConfig()) as made:
        yield made


def predicted(service, texts, **more):
    answer = service.post("/v1/predict", json={"texts": texts, **more})
    assert answer.status_code == 200, answer.text
    return answer.json()["answers"]


def test_texts_are_those_of_the_recipe(service, writer):
    answers = predicted(service, ["", *TEXTS])
    expected = recipes.predict_texts(writer, TEXTS, start("cpu", "float32"))
    assert answers[0]["texts"] == []
    for answer, other in zip(answers[1:], expected, strict=True):
        assert [each["text"] for each in answer["texts"]] == [each.text for each in other]
        assert answer["texts"][0]["score"] == pytest.approx(other[0].score, abs=1e-5)


def test_beams_and_n_best(service):
    (answer,) = predicted(service, TEXTS[:1], beams=4, n_best=3)
    scores = [each["score"] for each in answer["texts"]]
    assert len(scores) == 3
    assert scores == sorted(scores, reverse=True)
    refused = service.post("/v1/predict", json={"texts": ["a"], "beams": 2, "n_best": 3})
    assert (refused.status_code, "at most `beams`" in refused.json()["detail"]) == (422, True)


def test_a_head_that_is_off_is_gated(service, writer):
    (answer,) = predicted(service, TEXTS[2:3], off=[{"place": CROSS, "head": 0}])
    with gated(writer.model, {CROSS: torch.tensor([0.0, 1.0])}):
        (expected,) = recipes.predict_texts(writer, TEXTS[2:3], start("cpu", "float32"))
    assert answer["texts"][0]["text"] == expected[0].text
    assert answer["texts"][0]["score"] == pytest.approx(expected[0].score, abs=1e-5)
    assert answer["texts"][0]["score"] != pytest.approx(predicted(service, TEXTS[2:3])[0]["texts"][0]["score"])


def test_links_join_words_of_both_texts(service):
    (answer,) = predicted(service, TEXTS[2:3], align=True)
    text, source = answer["texts"][0]["text"], TEXTS[2]
    assert answer["links"]
    for link in answer["links"]:
        (begin, end), (first, last) = link["source"], link["target"]
        assert source[begin:end] in source.split()
        assert text[first:last] in text.split()
        assert link["drop"] >= 0.05


def test_explain_masks_the_source_word_by_word(service, writer):
    told = service.post("/v1/explain", json={"text": TEXTS[2]}).json()
    assert [TEXTS[2][word["begin"] : word["end"]] for word in told["words"]] == TEXTS[2].split()
    ids = writer.tokenizer.encode([TEXTS[2]], max_tokens=31).ids[0]
    found = recipes.predict_texts(writer, [TEXTS[2]], start("cpu", "float32"))[0][0]
    target = writer.tokenizer.encode([found.text], max_tokens=31).ids[0]
    base = log_probability(writer.model, ids, target)
    masked = log_probability(writer.model, [writer.tokenizer.unknown_id, *ids[1:]], target)
    assert told["words"][0]["drop"] == pytest.approx(base - masked, abs=1e-3)
    assert {word["head"]["place"].split(".")[0] for word in told["words"]} <= {"encoder", "decoder"}
    assert {row["kind"] for row in told["heads"]} == {"self", "cross"}


@torch.inference_mode()
def log_probability(model, source, target):
    """Score a text by the model's own forward."""
    config = model.config
    ids = torch.tensor([[*source, config.end]])
    given = torch.tensor([[config.begin, *target]])
    hidden = model(ids, torch.tensor([ids.shape[1]]), given, torch.tensor([given.shape[1]]))
    log_p = model.logits(hidden)[0].log_softmax(-1)
    wanted = torch.tensor([*target, config.end])
    return float(log_p.gather(1, wanted[:, None]).sum())


@pytest.mark.parametrize(
    ("place", "queries", "keys"),
    [
        ("encoder.layers.0.attention.attend", False, False),
        ("decoder.layers.0.attention.attend", True, True),
        (CROSS, True, False),
    ],
)
def test_view_says_which_text_is_looked_at_from_which(service, place, queries, keys):
    told = service.post("/v1/view", json={"text": TEXTS[2], "head": {"place": place, "head": 1}}).json()
    assert (told["queries_written"], told["keys_written"]) == (queries, keys)
    assert len(told["queries"]) == len(told["links"])
    assert max(link["key"] for links in told["links"] for link in links) < len(told["keys"])


def test_a_source_that_is_too_long_is_refused_or_cut(service):
    long = "a lovely film " * 20
    assert service.post("/v1/predict", json={"texts": [long]}).status_code == 422
    cut = service.post("/v1/predict", json={"texts": [long], "cut": True})
    assert (cut.status_code, cut.json()["cut"]) == (200, 1)
    assert service.post("/v1/explain", json={"text": long}).json()["cut"] == 1


def test_empty_texts_are_explained_too(service):
    for text in ("", " ", "\0"):
        explained = service.post("/v1/explain", json={"text": text})
        assert explained.status_code == 200
        answered = service.post("/v1/predict", json={"texts": [text]}).json()["answers"][0]
        assert explained.json()["answer"]["texts"] == answered["texts"]
        view = {"text": text, "head": {"place": CROSS, "head": 0}}
        assert service.post("/v1/view", json=view).status_code == 200


def test_what_is_late_stops_between_two_words(client, writer):
    slow = served("tiny", writer, start("cpu", "float32"), Limits())
    service = client(models={"tiny": slow}, limits={"deadline": 0.001})
    answer = service.post("/v1/predict", json={"texts": ["a b c d e f g h"] * 60, "beams": 8})
    assert (answer.status_code, "deadline" in answer.json()["detail"]) == (504, True)


def test_a_summary_has_the_same_doors(client):
    model = served("tiny", tiny_writer("summarization"), start("cpu", "float32"), Limits())
    service = client(models={"tiny": model})
    assert service.get("/v1/models").json()["models"][0]["task"] == "summarization"
    assert predicted(service, TEXTS[:1])[0]["texts"]
