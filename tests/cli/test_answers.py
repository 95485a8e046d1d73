"""Answers that are written to files, and models that are handed on, from the shell."""

import importlib.util
import json
import shutil
import signal
import subprocess
import sys

import pytest
from safetensors.torch import load_file, save_file

from headwise.cli import main
from headwise.contracts.files import going_on
from headwise.recipes import classify, streaming
from tests.cli.test_faults import told_by
from tests.cli.test_pairs import numbers, said, trained, translator, write_lines  # noqa: F401, fixture

DYING = """
import os, signal, sys
from headwise.cli import main
from headwise.recipes import rewrite, streaming

streaming._WINDOW = 7
told, line = [], rewrite.line

def dying(*given, **named):
    told.append(1)
    if len(told) == 31:
        os.kill(os.getpid(), signal.SIGKILL)
    return line(*given, **named)

rewrite.line = dying
main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def writer(tmp_path_factory):
    """Train a translator that has learned little, and so writes all kinds of things."""
    folder = tmp_path_factory.mktemp("writer")
    data = write_lines(folder, numbers(60))
    given = (
        "data.tokenizer.kind=words",
        "training.average=0",
        "decoding.beams=1",
        "decoding.max_length=11",
        "sample=0",
    )
    assert trained(folder / "run", "translation", data, *given) == 0
    return folder / "run"


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Write 60 texts, one of them empty, which are answered in windows of 7."""
    monkeypatch.setattr(streaming, "_WINDOW", 7)
    rows = [source for source, _ in numbers(59, 2)]
    path = tmp_path / "new.txt"
    path.write_text("".join(f"{text}\n" for text in [*rows[:20], "", *rows[20:]]), encoding="utf-8")
    return path


@pytest.mark.parametrize("before", [[], ["--resume"]], ids=["begun as ever", "begun to be resumed"])
def test_a_killed_prediction_goes_on(before, writer, data, tmp_path, capsys):
    whole, out = tmp_path / "whole.txt", tmp_path / "out.txt"
    said(capsys, "predict", writer, "--data", data, "--output", whole, "--json")
    given = ["predict", str(writer), "--data", str(data), "--output", str(out), "--json", "--quiet", "--threads", "1"]
    done = subprocess.run([sys.executable, "-c", DYING, *given, *before], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    (left,) = [path for path in tmp_path.iterdir() if "out.txt" in path.name]
    assert left.read_text(encoding="utf-8").splitlines() == whole.read_text(encoding="utf-8").splitlines()[:30]
    with left.open("a", encoding="utf-8") as file:
        file.write('{"text": "a torn')
    said(capsys, *given[:-3], "--resume")
    assert out.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.txt", "out.txt", "whole.txt"]


def cut_off(monkeypatch, after, *given):
    """Let a command of a classifier fail after so many answers."""
    left, line = iter(range(after)), classify.line

    def failing(answer, *, as_json):
        if next(left, None) is None:
            raise RuntimeError("a bug")
        return line(answer, as_json=as_json)

    with monkeypatch.context() as patch:
        patch.setattr(classify, "line", failing)
        with pytest.raises(RuntimeError, match="a bug"):
            main([str(each) for each in given])


def test_a_finished_file_stays_as_it_is(run, table, tmp_path, capsys):
    out = tmp_path / "out.txt"
    given = ("predict", run, "--data", table, "--output", out, "--resume")
    said(capsys, *given)
    before, state = out.read_bytes(), out.stat()
    assert before.count(b"\n") == 60
    said(capsys, *given)
    assert out.read_bytes() == before
    assert out.stat().st_mtime_ns == state.st_mtime_ns


def test_rows_that_are_left_out_count(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(streaming, "_WINDOW", 2)
    table, out = tmp_path / "new.csv", tmp_path / "out.txt"
    table.write_text("text,label\na fine thing,good\nbroken\ncold,bad\ndull,bad\nwarm,good\nbroken\n", encoding="utf-8")
    given = ("predict", run, "--data", table, "--output", out, "--on-error", "skip")
    said(capsys, *given)
    whole = out.read_bytes()
    for kept in range(6):
        out.unlink()
        cut_off(monkeypatch, kept, *given)
        assert not out.exists()
        said(capsys, *given, "--resume")
        assert out.read_bytes() == whole


def test_more_answers_than_rows_are_refused(run, table, tmp_path, capsys):
    out = tmp_path / "out.txt"
    out.write_text("good\n" * 61)
    given = ("predict", run, "--data", table, "--output", out, "--resume")
    assert "a line for each of 60 texts, or be unfinished; got 61" in told_by(capsys, 2, *given)
    assert out.read_text() == "good\n" * 61
    out.write_text("good\n" * 31)
    assert "or be unfinished; got 31" in told_by(capsys, 2, *given)


def test_answers_of_another_run_data_or_settings_are_not_gone_on_with(run, table, tmp_path, capsys, monkeypatch):
    out, shorter, other = tmp_path / "out.txt", tmp_path / "shorter.tsv", tmp_path / "other"
    given = ("predict", run, "--data", table, "--output", out)
    cut_off(monkeypatch, 31, *given)
    (begun,) = tmp_path.iterdir()
    text = begun.read_text()
    lines = table.read_text().splitlines(keepends=True)
    shorter.write_text("".join(lines[:50]))
    shutil.copytree(run, other)
    weights = load_file(other / "model.safetensors")
    save_file(weights | {name: tensor * 1.5 for name, tensor in weights.items()}, other / "model.safetensors")
    for changed, told in (
        (("predict", run, "--data", shorter, "--output", out), "data"),
        (("predict", other, "--data", table, "--output", out), "run"),
        ((*given, "--json"), "settings"),
        (("predict", other, "--data", shorter, "--output", out, "--json"), "run and data and settings"),
    ):
        assert f"as it was begun; got another {told}." in told_by(capsys, 2, *changed, "--resume")
        assert begun.read_text() == text
    moved = tmp_path / "moved.tsv"
    moved.write_text("".join(lines))
    said(capsys, "predict", run, "--data", moved, "--output", out, "--resume")
    whole = out.read_bytes()
    assert whole.startswith(text.encode())
    said(capsys, *given)
    assert out.read_bytes() == whole


def test_beginning_anew_removes_what_was_left(run, table, tmp_path, capsys, monkeypatch):
    given = ("predict", run, "--data", table, "--output", tmp_path / "out.txt")
    cut_off(monkeypatch, 5, *given, "--json")
    said(capsys, *given)
    assert [path.name for path in tmp_path.iterdir()] == ["out.txt"]


@pytest.mark.parametrize("given", [["--text", "a", "--output", "out.txt"], ["--data", "new.txt"], []])
def test_resuming_needs_data_and_a_file(given, run, capsys):
    assert "`--resume` must have" in told_by(capsys, 2, "predict", run, "--resume", *given)


def test_two_do_not_go_on_with_one_file(run, table, tmp_path, capsys):
    with going_on(tmp_path / "out.txt", {"run": "1"}, resume=False):
        given = ("predict", run, "--data", table, "--output", tmp_path / "out.txt", "--resume")
        assert "is being written" in told_by(capsys, 2, *given)


def test_an_exported_translator_writes_the_same(translator, data, tmp_path, capsys):  # noqa: F811
    ctranslate2 = pytest.importorskip("ctranslate2", reason="ctranslate2 is not installed")
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    sizes = {}
    for kind in ("float32", "int8"):
        told = said(capsys, "export", translator, "--to", "ctranslate2", "--out", tmp_path / kind, "--type", kind)
        assert f"{tmp_path / kind}: " in told
        sizes[kind] = (tmp_path / kind / "model.bin").stat().st_size
    assert sizes["int8"] < sizes["float32"]
    engine = ctranslate2.Translator(str(tmp_path / "float32"), compute_type="float32", intra_threads=1)
    tokenizer = tokenizers.Tokenizer.from_file(str(tmp_path / "float32" / "tokenizer.json"))
    texts = [text for text in data.read_text(encoding="utf-8").splitlines() if text][:20]
    cut = [tokenizer.encode(text, add_special_tokens=False).tokens for text in texts]
    found = engine.translate_batch(cut, beam_size=2)
    ours = said(capsys, "predict", translator, *(word for text in texts for word in ("--text", text))).splitlines()
    same = [" ".join(each.hypotheses[0]) == text for each, text in zip(found, ours, strict=True)]
    assert sum(same) >= 17, "the searches end by other rules, the models are one"
    assert len(set(ours)) > 10, "texts that are all alike would hide what is wrong"


def test_an_engine_that_is_not_there_is_told(writer, tmp_path, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ctranslate2" else find(name))
    assert 'pip install "headwise[ctranslate2]"' in told_by(capsys, 2, "export", writer, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_classifier_is_not_exported(run, tmp_path, capsys):
    assert "got sentiment" in told_by(capsys, 2, "export", run, "--out", tmp_path / "out")


def test_two_runs_are_told_apart(translator, writer, tmp_path, capsys):  # noqa: F811
    pairs = write_lines(tmp_path, numbers(40, 5))
    told = json.loads(said(capsys, "evaluate", translator, "--data", *pairs, "--against", writer, "--json"))
    alone = [json.loads(said(capsys, "evaluate", run, "--data", *pairs, "--json")) for run in (translator, writer)]
    for name in ("bleu", "chrf"):
        assert [told[name], told[f"{name}_of_other"]] == [each[name] for each in alone]
        assert told[f"{name}_difference"] == pytest.approx(alone[0][name] - alone[1][name])
        assert told[f"{name}_difference_low"] <= told[f"{name}_difference"] <= told[f"{name}_difference_high"]
        assert 0 < told[f"{name}_p"] < 0.01
        assert told[f"{name}_signature"] == alone[0][f"{name}_signature"]
    lines = said(capsys, "evaluate", translator, "--data", *pairs, "--against", writer).splitlines()
    assert f"bleu_difference {told['bleu_difference']:.4f}" in lines


def test_a_file_of_its_own_texts_differs_in_nothing(translator, tmp_path, capsys):  # noqa: F811
    pairs, out = write_lines(tmp_path, numbers(20, 5)), tmp_path / "out.txt"
    said(capsys, "predict", translator, "--data", pairs[0], "--output", out)
    told = json.loads(said(capsys, "evaluate", translator, "--data", *pairs, "--against", out, "--json"))
    assert (told["bleu_difference"], told["bleu_p"], told["count"]) == (0, 1, 20)
    with out.open("a", encoding="utf-8") as file:
        file.write("un\n")
    given = ("evaluate", translator, "--data", *pairs, "--against", out)
    assert "a line for each of the 20 pairs; got 21" in told_by(capsys, 2, *given)


def test_a_classifier_is_not_held_against_a_translator(translator, run, tmp_path, capsys):  # noqa: F811
    pairs = write_lines(tmp_path, numbers(20, 5))
    given = ("evaluate", translator, "--data", *pairs, "--against")
    assert "got translation and sentiment" in told_by(capsys, 2, *given, run)
    assert "no run.json" in told_by(capsys, 2, *given, tmp_path / "nothing")
