"""What models plan and compute for requests, without HTTP between."""

from dataclasses import replace

import pytest
import tokenizers

from headwise.contracts.layout import HeadId
from headwise.tasks.tokenizer import Tokenizer
from headwise.training import start
from headwise.web import Limits, served
from headwise.web.work import HeadView, StoppedError, Writing
from headwise.web.writer import ServedWriter
from tests.web.conftest import TEXTS


def model_of(run):
    return served("tiny", run, start("cpu", "float32"), Limits())


def done(report):
    """Compute what is planned, and give the answer."""
    return report.join(*(work.group.compute([work.payload], lambda: False)[0] for work in report.works))


def works_of(model):
    """Plan everything that a model can be asked."""
    view = HeadView(HeadId(model.about()["layers"][0]["place"], 0))
    reports = (
        model.predict(TEXTS, [], Writing(), cut=False),
        model.predict(TEXTS, [], Writing(align=True), cut=False),
        model.explain(TEXTS[2], []),
        model.view(TEXTS[2], [], view),
    )
    return [work for report in reports for work in report.works]


@pytest.mark.parametrize("name", ["run", "writer"])
def test_what_nobody_waits_for_says_that_it_stopped(request, name):
    for work in works_of(model_of(request.getfixturevalue(name))):
        with pytest.raises(StoppedError):
            work.group.compute([work.payload], lambda: True)


@pytest.mark.parametrize(
    ("first", "second", "mask"),
    [
        ("[UNK]", "[MASK]", "[MASK]"),
        ("[MASK]", "[UNK]", "[MASK]"),
        ("<unk>", "<mask>", "<mask>"),
        ("<mask>", "<unk>", "<mask>"),
        ("<pad>", "<unk>", "<unk>"),
    ],
)
def test_a_word_is_masked_by_the_token_that_the_model_knows_for_that(run, first, second, mask):
    ids = {first: 0, second: 1, "a": 2, "b": 3}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="<unk>" if "<unk>" in ids else "[UNK]"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    model = model_of(replace(run, tokenizer=Tokenizer(inner)))
    planned = model.explain("a b", []).works[0].payload
    assert planned.ids_N == [[2, 3], [ids[mask], 3], [2, ids[mask]]]


def test_links_point_into_the_text_that_is_shown(writer, monkeypatch):
    """Where two texts are all but equally good, the best may be another in company than alone."""
    write = ServedWriter.write

    def differing(self, sources, *others):
        found = write(self, sources, *others)
        if len(sources) == 1:
            return found
        return [[replace(best, ids=best.ids[:1]), *rest] for best, *rest in found]

    monkeypatch.setattr(ServedWriter, "write", differing)
    model = model_of(writer)
    alone = done(model.explain(TEXTS[2], []))["answer"]
    answers = done(model.predict(["", *TEXTS], [], Writing(align=True), cut=False))["answers"]
    assert (answers[0], answers[3]) == ({"texts": []}, alone)
    for answer in answers[1:]:
        assert max(link["target"][1] for link in answer["links"]) <= len(answer["texts"][0]["text"])


def test_as_many_aligned_texts_are_given_as_were_asked_for(writer):
    model = model_of(writer)
    plain, aligned = (
        done(model.predict(TEXTS[:1], [], Writing(4, 3, align), cut=False))["answers"][0] for align in (False, True)
    )
    assert [each["text"] for each in aligned["texts"]] == [each["text"] for each in plain["texts"]]
    assert len(aligned["texts"]) == 3
