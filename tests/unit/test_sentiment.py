"""Classification of texts, from files to batches and back to labels."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from headwise import ConfigError, InputError
from headwise.contracts import settings
from headwise.tasks import encoding
from headwise.tasks.labels import Labels
from headwise.tasks.pieces import TokenizerSettings
from headwise.tasks.sentiment import SentimentSettings, encode, open_texts, prepare
from headwise.tasks.tokenizer import Tokenizer

pytest.importorskip("tokenizers")
pytest.importorskip("pyarrow")


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HEADWISE_CACHE", str(tmp_path / "cache"))


def written(tmp_path, rows, name="a.tsv", columns=("label", "text")):
    path = tmp_path / name
    path.write_text("".join("\t".join(row) + "\n" for row in [columns, *rows]))
    return path


def reviews(count=40):
    return [(("good", "bad")[row % 2], f"{'a ' * (row % 7)}film {row}") for row in range(count)]


def prepared(source, **chosen):
    return prepare(source, SentimentSettings(**chosen), quiet=True)


def test_a_table_becomes_batches(tmp_path):
    held = prepared(written(tmp_path, reviews()), dev=0.2, test=0.1)
    assert held.labels == Labels(("bad", "good"))
    assert {name: len(examples) for name, examples in held.examples.items()} == {"train": 28, "dev": 8, "test": 4}
    train, rows = held.examples["train"], [5, 0, 3]
    batch = train.batch(rows)
    texts = [text for part in held.table.texts("text", held.table.rows("train")) for text in part]
    assert batch.row_B.tolist() == rows
    assert batch.length_B.tolist() == train.length_N[rows].tolist()
    assert batch.tokens_BT.shape == (3, max(batch.length_B.tolist()))
    for row, tokens_T, length in zip(rows, batch.tokens_BT, batch.length_B, strict=True):
        assert tokens_T[length:].eq(0).all()
        assert held.tokenizer.tokens(tokens_T[:length]) == texts[row].split()
    labels = [label for part in held.table.texts("label", held.table.rows("train")) for label in part]
    assert [held.labels.names[class_] for class_ in batch.target] == [labels[row] for row in rows]
    assert (batch.tokens_BT.dtype, batch.target.dtype) == (torch.int64, torch.int64)


def test_the_vocabulary_is_that_of_the_train_split(tmp_path):
    held = prepared(
        {
            "train": written(tmp_path, [("0", "one two"), ("1", "two")]),
            "dev": written(tmp_path, [("1", "two three")], "b.tsv"),
        }
    )
    assert sorted(held.tokenizer.vocabulary[4:]) == ["one", "two"]
    assert held.examples["dev"].batch([0]).tokens_BT.tolist() == [[held.tokenizer.inner.token_to_id("two"), 1]]
    assert held.examples["train"].tokens.counts_V(held.tokenizer.size).tolist() == [0, 1, 0, 0, 3, 1]


@pytest.mark.parametrize(("most", "known"), [(0, 10), (10, 10), (9, 9), (3, 3)])
def test_the_vocabulary_is_learned_from_so_many_texts_at_most(most, known, tmp_path):
    words = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    path = written(tmp_path, [(str(row % 2), word) for row, word in enumerate(words)])
    held = prepared(path, dev=0.0, tokenizer=TokenizerSettings(texts=most))
    assert len(set(held.tokenizer.vocabulary[4:]) & set(words)) == known


def test_the_vocabulary_knows_both_of_two_kinds_of_rows_that_take_turns(tmp_path):
    path = written(tmp_path, [(str(row % 2), f"{('left', 'right')[row % 2]} {row}") for row in range(60)])
    held = prepared(path, dev=0.0, tokenizer=TokenizerSettings(texts=40))
    assert {"left", "right"} <= set(held.tokenizer.vocabulary)


def test_tokens_are_kept_and_mapped(tmp_path, monkeypatch):
    path = written(tmp_path, reviews())
    first = prepared(path, max_tokens=3)
    assert isinstance(first.examples["train"].tokens.ids_N, np.memmap)
    assert first.examples["train"].tokens.ids_N.dtype == np.int32
    assert first.examples["train"].tokens.cut == 28
    assert first.examples["train"].length_N.max() == 3
    monkeypatch.setattr(encoding, "_write", None)
    monkeypatch.setattr(Tokenizer, "train", None)
    again = prepared(path, max_tokens=3)
    assert torch.equal(again.examples["dev"].batch([0, 1]).tokens_BT, first.examples["dev"].batch([0, 1]).tokens_BT)
    with pytest.raises(TypeError):
        prepared(path, max_tokens=4)


def test_numeric_labels_keep_their_order(tmp_path):
    rows = [(label, "text") for label in ("10", "9", "-1", "2.5")]
    assert prepared(written(tmp_path, rows), dev=0).labels.names == ("-1", "2.5", "9", "10")
    rows.append(("x", "text"))
    assert prepared(written(tmp_path, rows), dev=0).labels.names == ("-1", "10", "2.5", "9", "x")


def test_a_text_may_have_several_labels(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [{"text": "one", "label": "b, a"}, {"text": "two", "label": ["c", "a"]}, {"text": "three", "label": ""}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    held = prepared(path, label_separator=",", dev=0)
    assert held.labels == Labels(("a", "b", "c"), ",")
    target_BC = held.examples["train"].batch([0, 1, 2]).target
    assert target_BC.dtype == torch.float32
    assert target_BC.tolist() == [[1, 1, 0], [1, 0, 1], [0, 0, 0]]
    predictions = held.labels.predictions(torch.tensor([[9.0, 9.0, -9.0], [-9.0, -9.0, -9.0]]))
    assert [prediction.label for prediction in predictions] == ["a,b", ""]
    assert predictions[0].probabilities["c"] == pytest.approx(torch.tensor(-9.0).sigmoid().item())


def test_a_label_of_a_list_holds_no_separator(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "one", "label": ["a,b", "c"]}) + "\n")
    with pytest.raises(InputError, match=r"row 1, column `label` .* an item with ',' in it"):
        prepared(path, label_separator=",", dev=0)


def test_predictions_name_the_likeliest_class():
    (prediction,) = Labels(("x", "y", "z")).predictions(torch.tensor([[0.0, 2.0, 1.0]], dtype=torch.bfloat16))
    assert prediction.label == "y"
    assert list(prediction.probabilities) == ["x", "y", "z"]
    assert sum(prediction.probabilities.values()) == pytest.approx(1)


def test_texts_without_labels_are_encoded_in_order(tmp_path):
    held = prepared(written(tmp_path, reviews()))
    table = open_texts(
        written(tmp_path, [("film 3",), ("a film",)], "b.tsv", ("text",)), SentimentSettings(), labelled=False
    )
    batch = encode(table, held.tokenizer, SentimentSettings(ends=True), quiet=True).batch([0, 1])
    assert batch.target is None
    assert [held.tokenizer.tokens(row) for row in batch.tokens_BT] == [
        ["<s>", "film", "3", "</s>"],
        ["<s>", "a", "film", "</s>"],
    ]


def test_one_class_only_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"must name at least two classes; got \['good'\]"):
        prepared(written(tmp_path, [("good", f"text {row}") for row in range(20)]))


def test_a_label_seen_only_in_test_is_refused(tmp_path):
    train, test = written(tmp_path, reviews()), written(tmp_path, [("bad", "x"), ("fair", "y")], "b.tsv")
    with pytest.raises(InputError, match=r"b\.tsv, row 3 must .* \(bad, good\); got 'fair' in `test`"):
        prepared({"train": train, "test": test})


def test_texts_as_labels_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("headwise.tasks.labels._MOST_CLASSES", 7)
    rows = [(f"text {row}", "good") for row in range(20)]
    with pytest.raises(InputError, match=r"at most 7 classes; got more, such as 'text \d+'\. Check `--label-column`"):
        prepared(written(tmp_path, rows), dev=0)


def test_a_split_without_rows_is_refused(tmp_path):
    with pytest.raises(
        InputError, match=r"`dev` must get a row; got a share of 0\.1 of 2 rows with 2 different values of `label`"
    ):
        prepared(written(tmp_path, reviews(2)))
    with pytest.raises(InputError, match="must have a split `train`; got test"):
        prepared({"test": written(tmp_path, reviews())})


def test_broken_rows_are_left_out_when_asked(tmp_path):
    path = written(tmp_path, [*reviews(), ("good",), ("good", " ")])
    with pytest.raises(InputError, match="row 42 must"):
        prepared(path)
    held = prepared(path, on_error="skip")
    assert (len(held.table), held.table.skipped.count) == (40, 2)


@pytest.mark.parametrize(
    ("chosen", "told"),
    [
        ({"dev": 1.0}, "`dev` and `test` must be shares that leave a rest; got 1.0 and 0.0"),
        ({"max_tokens": 2}, "`max_tokens` must be at least 3; got 2"),
        ({"label_separator": ""}, "`label_separator` must be at least one character"),
        (
            {"tokenizer": {"kind": "letters"}},
            "`tokenizer.kind` must be one of 'words', 'subwords', 'unigram'",
        ),
        ({"tokenizer": {"min_frequency": 0}}, r"\[tokenizer\] `min_frequency` must be at least 1; got 0"),
    ],
)
def test_impossible_settings_are_refused(chosen, told):
    with pytest.raises(ConfigError, match=told):
        settings.read(SentimentSettings, chosen)


def test_every_setting_has_its_help():
    assert settings.help_of(SentimentSettings).keys() == SentimentSettings.__dataclass_fields__.keys()


@pytest.mark.skipif("HEADWISE_DATA" not in os.environ, reason="HEADWISE_DATA is not set")
def test_real_data_is_prepared():
    folder = Path(os.environ["HEADWISE_DATA"])
    held = prepared({"train": folder / "trec/trec.train.tsv", "test": folder / "trec/trec.test.tsv"})
    assert held.labels.names == ("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM")
    assert {name: len(examples) for name, examples in held.examples.items()} == {"train": 4906, "test": 500, "dev": 546}
