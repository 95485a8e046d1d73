"""Tables: read from every format, guessed, split, kept, and told apart from what is broken."""

import csv
import errno
import gzip
import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from headwise import ConfigError, InputError
from headwise.contracts.files import cache_folder
from headwise.tasks.columns import Wanted
from headwise.tasks.data import open_table, split
from headwise.tasks.files import written
from headwise.tasks.lines import LARGEST_ROW

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

TEXT, LABEL = Wanted("text", guesses=("sentence", "review")), Wanted("label", guesses=("stars",))
ROWS = [("1", 'good, "very" good'), ("0", "not bad"), ("1", "中文 été")]


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HEADWISE_CACHE", str(tmp_path / "cache"))


def opened(source, **options):
    return open_table(source, columns=(TEXT, LABEL), quiet=True, **options)


def rows_of(table):
    columns = ([text for texts in table.texts(role) for text in texts] for role in ("label", "text"))
    return list(zip(*columns, strict=True))


def csv_text(rows):
    quoted = ("{},{}".format(label, '"' + text.replace('"', '""') + '"') for label, text in rows)
    return "\r\n".join(["label,text", *quoted, ""])


def write(path, form, rows=ROWS):
    path = path.with_name(f"{path.name}.{form}")
    match form.removesuffix(".gz"):
        case "csv":
            content = csv_text(rows).encode()
        case "tsv":
            content = "".join(f"{label}\t{text}\n" for label, text in [("label", "text"), *rows]).encode()
        case "jsonl":
            content = "".join(json.dumps({"label": int(label), "text": text}) + "\n" for label, text in rows).encode()
        case "parquet":
            labels, texts = zip(*rows, strict=True)
            parquet.write_table(pyarrow.table({"label": [int(label) for label in labels], "text": texts}), path)
            content = path.read_bytes()
    path.write_bytes(gzip.compress(content) if form.endswith(".gz") else content)
    return path


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl", "parquet"])
def test_every_format_is_read(tmp_path, form, packed):
    table = opened(write(tmp_path / "rows", form + packed))
    assert rows_of(table) == ROWS
    assert list(table.splits) == ["all"]
    assert [table.where(row).rpartition("row ")[2] for row in range(3)] == {
        "jsonl": ["1", "2", "3"],
        "parquet": ["1", "2", "3"],
    }.get(form, ["2", "3", "4"])


def test_quotes_in_csv_hold_commas_and_lines(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b'\xef\xbb\xbflabel,text\r\n1,"one, ""two""\r\n\r\nthree"\r\n0,four\r\n\r\n')
    table = opened(path)
    assert rows_of(table) == [("1", 'one, "two"\r\n\r\nthree'), ("0", "four")]
    assert table.where(1) == f"{path}, row 5"


def test_a_folder_is_split_by_file_names(tmp_path):
    for name, rows in (("x.train", ROWS[:2]), ("x.validation", ROWS[1:2]), ("x.test", ROWS[2:])):
        write(tmp_path / name, "tsv", rows)
    table = opened(tmp_path)
    assert {name: len(rows) for name, rows in table.splits.items()} == {"train": 2, "dev": 1, "test": 1}
    assert list(table.texts("text", table.rows("test"))) == [[ROWS[2][1]]]
    write(tmp_path / "more", "tsv")
    with pytest.raises(InputError, match=r"these besides: more\.tsv"):
        opened(tmp_path)


def test_files_can_be_named_for_each_split(tmp_path):
    table = opened({"train": write(tmp_path / "a", "csv"), "valid": write(tmp_path / "b", "jsonl", ROWS[:1])})
    assert {name: rows.tolist() for name, rows in table.splits.items()} == {"train": [0, 1, 2], "dev": [3]}


def test_a_split_column_is_honoured(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text("split\ttext\tlabel\ntrain\ta\t1\ntest\tb\t0\nvalidation\tc\t1\ntrain\td\t0\n")
    assert {name: rows.tolist() for name, rows in opened(path).splits.items()} == {
        "train": [0, 3],
        "test": [1],
        "dev": [2],
    }


def test_a_data_set_of_the_hub_is_read(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tmp_path / "set"
    folder.mkdir()
    for name in ("train", "test"):
        (folder / f"{name}.csv").write_text(f"review,stars\n{name} good,5\n{name} bad,1\n")
    table = opened(f"hub:{folder}")
    assert rows_of(table) == [("5", "train good"), ("1", "train bad"), ("5", "test good"), ("1", "test bad")]
    assert {name: rows.tolist() for name, rows in table.splits.items()} == {"train": [0, 1], "test": [2, 3]}
    with pytest.raises(InputError, match=r"must be a data set of the Hugging Face hub; got"):
        opened(f"hub:{tmp_path / 'none'}")


def test_columns_are_guessed_only_where_there_is_one_choice(tmp_path, caplog):
    caplog.set_level("INFO", "headwise")
    path = tmp_path / "a.tsv"
    path.write_text("Sentence\tlabel\tstars\na\t1\t2\n")
    assert rows_of(opened(path)) == [("1", "a")]
    assert "reading column `Sentence` as the text" in caplog.text
    path.write_text("sentence\treview\tlabel\na\tb\t1\n")
    with pytest.raises(InputError, match=r"`sentence`, `review`, `label`, and several .* `--text-column`"):
        opened(path)
    named = (Wanted("text", "review"), LABEL)
    assert rows_of(open_table(path, columns=named, quiet=True)) == [("1", "b")]
    with pytest.raises(InputError, match=r"must have a column `body`; got `sentence`"):
        open_table(path, columns=(Wanted("text", "body"), LABEL), quiet=True)


def test_splits_are_made_by_seed_and_keep_shares(tmp_path):
    rows = [(str(number % 4 == 0), f"text {number}") for number in range(200)]
    path = tmp_path / "a.tsv"
    path.write_text("label\ttext\n" + "".join(f"{label}\t{text}\n" for label, text in rows))
    table = split(opened(path), dev=0.2, test=0.1, seed=3)
    assert {name: len(rows) for name, rows in table.splits.items()} == {"train": 140, "dev": 40, "test": 20}
    labels = [label for texts in table.texts("label", table.rows("dev")) for label in texts]
    assert labels.count("True") == 10
    assert sorted(np.concatenate(list(table.splits.values()))) == list(range(200))
    path.write_text("label\ttext\n" + "".join(f"{label}\t{text}\n" for label, text in reversed(rows)))
    again, other = (split(opened(path), dev=0.2, test=0.1, seed=seed) for seed in (3, 4))
    dev, dev_again, dev_other = (
        {text for texts in each.texts("text", each.rows("dev")) for text in texts} for each in (table, again, other)
    )
    assert dev == dev_again != dev_other


def test_equal_rows_stay_together(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text("label\ttext\n" + "1\tsame\n" * 7 + "1\tother\n" * 7)
    table = split(opened(path), dev=0.2)
    assert sorted(len(rows) for rows in table.splits.values()) == [7, 7]


@pytest.mark.parametrize("shares", [{"dev": 1.0}, {"dev": -0.1}, {"dev": 0.5, "test": 0.5}])
def test_impossible_shares_are_refused(tmp_path, shares):
    with pytest.raises(ConfigError, match="must be shares that leave a rest"):
        split(opened(write(tmp_path / "a", "tsv")), **shares)


BROKEN = [
    ("a.tsv", b"label\ttext\n1\ta\n1\tb\xff\n", r"a\.tsv, row 3, column `text` .* byte 0xff at place 4"),
    ("a.csv", b"label,text\n1,a\n\xff,b\n", r"a\.csv, row 3, column `label` .* byte 0xff at place 1"),
    ("a.tsv", b"label\ttext\n1\ta\n1\n", r"row 3 must .* 1 fields, where the header has 2"),
    ("a.csv", b"label,text\n1,a\n1,b,c\n", r"row 3 must .* 3 fields, where the header has 2"),
    ("a.csv", b'label,text\n1,a\n1,"b\n2,c\n', r"row 3 must .* broken CSV \(unexpected end of data"),
    ("a.tsv", b"label\ttext\n1\ta\n\n1\tb\n", r"row 3 must .* 1 fields"),
    ("a.tsv", b"label\ttext\n1\ta\n1\tb\0\n", r"row 3, column `text` .* a NUL byte"),
    ("a.csv", b"label,text\n1,a\n1,b\0\n", r"row 3, column `text` .* a NUL byte"),
    ("a.tsv", b"label\ttext\n1\ta\n1\t  \n", r"row 3, column `text` .* an empty text"),
    ("a.tsv", b"label\ttext\n1\ta\n\tb\n", r"row 3, column `label` .* an empty text"),
    ("a.tsv", b"label\ttext\n1\ta\n1\t" + b"x" * LARGEST_ROW + b"\n", r"row 3 must .* a row of more than 16 MB"),
    ("a.jsonl", b'{"label": 1, "text": "a"}\n{"label": 1, "text"\n', r"row 2 must .* broken JSON"),
    ("a.jsonl", b'{"label": 1, "text": "a"}\n[1]\n', r"row 2 must .* JSON that is no object"),
    ("a.jsonl", b'{"label": 1, "text": "a"}\n{"label": 1}\n', r"row 2, column `text` .* no value"),
    (
        "a.jsonl",
        b'{"label": 1, "text": "a"}\n{"label": {}, "text": "b"}\n',
        r"column `label` .* a dict, which is no text",
    ),
    ("a.jsonl", b'{"label": 1, "text": "a"}\n{"label": 1, "text": "\\ud800"}\n', r"row 2 must .* half of a surrogate"),
    ("a.jsonl", b'{"label": 1, "text": "a"}\n{"label": ["\\ud800"], "text": "b"}\n', r"row 2 must .* a surrogate"),
    (
        "a.jsonl",
        b'{"label": 1, "text": "a"}\n{"label": 1, "text": "\\u0000b"}\n',
        r"row 2, column `text` .* a NUL byte",
    ),
]


@pytest.mark.parametrize(("name", "content", "told"), BROKEN)
def test_a_broken_row_is_reported_or_skipped(tmp_path, caplog, name, content, told):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=told):
        opened(path)
    for _ in range(2):
        caplog.clear()
        table = opened(path, on_error="skip")
        assert table.skipped.count == 1
        assert rows_of(table)[0] == ("1", "a")
        assert "skipped 1 rows" in caplog.text
        assert table.skipped.listed[0] in caplog.text


def test_broken_values_in_parquet_are_found(tmp_path):
    texts = pyarrow.array([b"a", b"\xff"]).cast(pyarrow.binary()).view(pyarrow.string())
    parquet.write_table(pyarrow.table({"text": texts, "label": [1, 2]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"row 2, column `text` .* bytes that are not UTF-8"):
        opened(tmp_path / "a.parquet")


def test_a_full_disk_under_the_cache_is_not_the_fault_of_the_data(tmp_path, monkeypatch):
    path = tmp_path / "a.tsv"
    path.write_text("label\ttext\n" + "1\ta\n" * 10_001)  # more than are written at once, so while the file is read

    class Full:
        def write_batch(self, batch):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pyarrow.ipc, "new_file", lambda *_: nullcontext(Full()))
    with pytest.raises(InputError, match=r"arrow` must be writable; got No space left.*HEADWISE_CACHE"):
        opened(path)


def test_the_first_skipped_rows_are_listed(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text("label\ttext\n" + "1\n" * 50 + "1\tgood\n")
    skipped = opened(path, on_error="skip").skipped
    assert skipped.count == 50
    assert len(skipped.listed) == 20
    assert skipped.listed[0] == f"{path}, row 2: 1 fields, where the header has 2"


def test_a_broken_first_row_of_json_lines_is_skipped_like_any_other(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "cut\n{"text": "good", "label": "1"}\n{"text": "bad", "label": "0"}\n')
    held = opened(path, on_error="skip")
    assert rows_of(held) == [("1", "good"), ("0", "bad")]
    assert held.skipped.listed[0].startswith(f"{path}, row 1: broken JSON")
    with pytest.raises(InputError, match=r"row 1 must hold text .* got broken JSON"):
        opened(path)


FILES = [
    ("a.jsonl", b"", "row 1 must be a JSON object; got an empty file"),
    ("a.tsv", b"", "row 1 must be a header"),
    ("a.tsv", b"text\ttext\n", r"got \['text'\] twice"),
    ("a.csv", "label,text\n".encode("utf-16"), "row 1 must be a header in UTF-8"),
    ("a.jsonl", b"[]\n", "row 1 must be a JSON object"),
    ("a.tsv", b"label\ttext\n", "at least one good row; got none"),
    ("a.tsv.gz", gzip.compress(os.urandom(4_000))[:-500], "must be a whole gzip file"),
    ("a.parquet", b"PAR1 and no more", "must be a whole Parquet file"),
    ("a.txt", b"label\ttext\n", "must end in one of csv, tsv, jsonl, parquet"),
]


@pytest.mark.parametrize(("name", "content", "told"), FILES)
def test_a_broken_file_is_refused(tmp_path, name, content, told):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=told):
        opened(tmp_path / name)


def test_what_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match="which is not there"):
        opened(tmp_path / "none.tsv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="must hold csv, tsv, jsonl or parquet files; got none"):
        opened(tmp_path / "empty")
    with pytest.raises(InputError, match="must have a split `dev`; got all"):
        opened(write(tmp_path / "a", "tsv")).rows("dev")


def test_rows_of_a_megabyte_are_fine(tmp_path):
    long = [("1", "word " * 200_000 + "end"), ("0", "short")]
    before = csv.field_size_limit()
    for form in ("csv", "tsv", "jsonl"):
        assert rows_of(opened(write(tmp_path / "a", form, long))) == long
    assert csv.field_size_limit() == before


def test_a_table_is_parsed_once(tmp_path, monkeypatch):
    path = write(tmp_path / "a", "tsv")
    first = opened(path)
    monkeypatch.setattr("headwise.tasks.data.Keeper", None)
    assert rows_of(opened(path)) == rows_of(first)
    os.utime(path, ns=(1, 1))
    with pytest.raises(TypeError):
        opened(path)


def test_rows_are_read_and_not_kept_in_memory(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text("label\ttext\n" + "1\ta text that is given back after it was read\n" * 50_000)
    before = pyarrow.total_allocated_bytes()
    table = opened(path)
    held = []
    for texts in table.texts("text"):
        held.append(pyarrow.total_allocated_bytes() - before)
        assert len(texts) == 10_000
    assert len(held) == 5
    assert max(held) < 2**21, "one batch and no more"
    assert pyarrow.total_allocated_bytes() - before < 2**16
    assert len(table) == 50_000


def test_a_table_is_read_though_its_cache_is_emptied(tmp_path):
    table = opened(write(tmp_path / "a", "tsv"))
    for path in cache_folder().rglob("*.arrow"):
        path.unlink()
    assert rows_of(table) == ROWS
    assert table.where(1) == f"{tmp_path / 'a.tsv'}, row 3"


def test_a_cached_file_is_whole_or_not_there(tmp_path):
    with pytest.raises(KeyboardInterrupt), written(tmp_path / "a"):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match="must be writable; got No space left"), written(tmp_path / "a"):
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_the_cache_folder_is_named_by_a_variable(tmp_path, monkeypatch):
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("HEADWISE_CACHE")
    assert cache_folder() == Path.home() / ".cache" / "headwise"


def test_a_missing_package_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r'`pyarrow` must be installed .* pip install "headwise\[text\]"'):
        opened(write(tmp_path / "a", "tsv"))
