"""What goes wrong is told in a line a problem, ends with the right code, and harms nothing."""

import json
import shutil

import pytest

from headwise.cli import main
from tests.cli.conftest import rows_of, trained


def refused(capsys, code, *arguments):
    """Run a command that must fail, and give what it told."""
    assert main([str(each) for each in arguments]) == code
    told = capsys.readouterr().err
    assert "Traceback" not in told
    lines = [line for line in told.splitlines() if line.startswith("headwise: ")]
    assert lines
    return "\n".join(lines)


def written(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


GOOD = "".join(f"{label}\t{text}\n" for label, text in rows_of(20))
TABLES = {
    "no label column": ("a\ttext\n1\tx\n", "--label-column"),
    "one class only": ("label\ttext\n" + "good\tx y\n" * 20, "at least two classes"),
    "an empty text": ("label\ttext\n" + GOOD + "good\t\n", "row 22"),
    "a NUL byte": ("label\ttext\n" + GOOD + "good\ta\0b\n", "row 22"),
    "another encoding": (b"label\ttext\n" + GOOD.encode() + "good\tcaf\xe9\n".encode("latin-1"), "row 22"),
    "a missing field": ("label\ttext\n" + GOOD + "good\n", "row 22"),
    "nothing": ("", "empty file"),
    "a header alone": ("label\ttext\n", "at least one"),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_broken_table_is_told_with_its_place(tmp_path, capsys, name):
    text, told = TABLES[name]
    path = written(tmp_path / "broken.tsv", text)
    assert trained(path, tmp_path / "out") == 2
    shown = capsys.readouterr().err
    assert "broken.tsv" in shown or name == "one class only"
    assert told in shown
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_broken_rows_are_skipped_where_asked(tmp_path):
    path = written(tmp_path / "broken.tsv", "label\ttext\n" + GOOD + "good\t\nbad\n")
    assert trained(path, tmp_path / "out", "--on-error", "skip", "--set", "training.passes=1") == 0


def test_a_skipped_row_keeps_its_line_among_the_answers(run, tmp_path, capsys):
    texts = ["", "a fine, warm thing", "", "", "dull and cold", "lovely bright thing", ""]
    path = written(tmp_path / "broken.tsv", "text\tnote\n" + "".join(f"{text}\tx\n" for text in texts))
    given = ["predict", str(run), "--data", str(path), "--on-error", "skip", "--quiet"]
    for more, read in (
        ((), lambda line: line.split("\t")[0] if line != "\tskipped" else None),
        (("--json",), lambda line: None if json.loads(line).get("skipped") else json.loads(line)["label"]),
    ):
        assert main([*given, *more]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [read(line) for line in lines] == [None, "good", None, None, "bad", "good", None]


def test_a_row_of_a_megabyte_is_read(tmp_path):
    path = written(tmp_path / "long.tsv", "label\ttext\n" + GOOD + "good\t" + "long " * 200_000 + "\n")
    assert trained(path, tmp_path / "out", "--set", "training.passes=1") == 0


def test_labels_that_training_has_not_seen_are_refused(run, tmp_path, capsys):
    path = written(tmp_path / "test.tsv", "label\ttext\nmiddling\tso so\n")
    told = refused(capsys, 2, "evaluate", run, "--data", path)
    assert "'middling'" in told
    assert "row 2" in told


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--set", "training.setps=5"), "did you mean `training.steps`"),
        (("--set", "training"), "section.name=value"),
        (("--init", "pretrained"), "pretrained:minilm"),
        (("--vectors", "none.txt"), "none.txt"),
        (("--config", "none.toml"), "none.toml"),
        (("--dev", "none.tsv"), "none.tsv"),
        (("--device", "warp"), "`device` must be one that PyTorch knows"),
        (("--set", "training.keep_best=bleu"), "`keep_best`"),
        (("--set", "model.encoder.vocabulary=7"), "`model.encoder.vocabulary` must be what the data gives"),
        (("--set", 'model.classes=["a", "b"]'), "`model.classes` must be what the data gives, ('bad', 'good')"),
    ],
)
def test_wrong_flags_are_told(table, tmp_path, capsys, flags, told):
    assert trained(table, tmp_path / "out", *flags) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("vectors", ["fine 1 2 3\ndull 1 2\n", "3 4\nfine 1 2 3 4\ndull 1"])
def test_torn_vectors_are_told(table, tmp_path, capsys, vectors):
    path = written(tmp_path / "vectors.txt", vectors)
    assert trained(table, tmp_path / "out", "--vectors", path) == 2
    assert "vectors.txt" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "run.json"])
@pytest.mark.parametrize("way", ["missing", "cut short", "empty"])
def test_a_torn_run_is_told_with_the_file(run, tmp_path, capsys, name, way):
    torn = shutil.copytree(run, tmp_path / "torn")
    path = torn / name
    held = path.read_bytes()
    path.unlink()
    if way != "missing":
        path.write_bytes(held[: len(held) // 2] if way == "cut short" else b"")
    assert name in refused(capsys, 2, "predict", torn, "--text", "a fine thing")


@pytest.mark.parametrize("name", ["config.json", "run.json"])
def test_a_run_of_another_version_is_told(run, tmp_path, capsys, name):
    other = shutil.copytree(run, tmp_path / "other")
    path = other / name
    path.write_text(path.read_text().replace('"format": 1', '"format": 9'))
    assert name in refused(capsys, 2, "predict", other, "--text", "a fine thing")


def test_a_folder_with_a_run_is_not_trained_over(table, run, tmp_path, capsys):
    copy = shutil.copytree(run, tmp_path / "copy")
    before = (copy / "model.safetensors").read_bytes()
    assert trained(table, copy) == 2
    assert "--resume" in capsys.readouterr().err
    assert (copy / "model.safetensors").read_bytes() == before
    assert trained(written(tmp_path / "other.tsv", "label\ttext\n" + GOOD), copy, "--resume") == 2
    assert "other data" in capsys.readouterr().err


def test_out_must_be_a_folder(table, tmp_path, capsys):
    path = written(tmp_path / "file", "x")
    assert trained(table, path) == 2
    assert "must be a folder" in capsys.readouterr().err


def test_what_cannot_be_written_is_told(run, table, tmp_path, capsys):
    told = refused(capsys, 2, "predict", run, "--data", table, "--output", tmp_path / "none" / "answers.tsv")
    assert "answers.tsv" in told
    assert "is a folder" in refused(capsys, 2, "observe", run, "--data", table, "--page", tmp_path)


def test_debug_shows_where(tmp_path, capsys):
    assert main(["predict", str(tmp_path), "--text", "x", "--debug"]) == 2
    told = capsys.readouterr().err
    assert "Traceback" in told
    assert told.splitlines()[-1].startswith("headwise: ")


@pytest.mark.parametrize("flags", [("--threads", "-1"), ("--threads", "many"), ("--size", "huge"), ("--nonsense",)])
def test_what_the_grammar_does_not_know_is_refused(flags, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["train", "sentiment", "--data", "x", "--out", "y", *flags])
    assert ended.value.code == 2
    assert flags[0] in capsys.readouterr().err
