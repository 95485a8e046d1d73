"""A saved model comes back bit for bit, and a file that is not right is told by name."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from headwise import Classifier, ClassifierConfig, Encoder, EncoderConfig, InputError, load, save
from headwise.models import checkpoint

CONFIG = EncoderConfig(
    vocabulary=41,
    d_model=20,
    layers=2,
    heads=((0, 2, 4), (1, 4)),
    kv_heads=(1, 2),
    d_head=6,
    positions="alibi",
    embedding_width=7,
)


def classifier(config: EncoderConfig = CONFIG) -> Classifier:
    return Classifier(ClassifierConfig(config, ("schlecht", "gut, 好"), pooling="attention")).eval()


@pytest.mark.parametrize("positions", ["none", "sinusoidal", "learned", "rotary", "alibi", "relative"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_model_comes_back_bit_for_bit(tmp_path, positions, dtype):
    model = classifier(replace(CONFIG, positions=positions)).to(dtype)
    save(model, tmp_path / "run" / "best")
    before = torch.get_rng_state()
    again = load(tmp_path / "run" / "best")
    assert torch.equal(torch.get_rng_state(), before), "loading draws no random number"
    assert isinstance(again, Classifier)
    assert not again.training
    assert again.config == model.config
    assert again.encoder.layers[1].attention.heads == (1, 4), "head names come back"
    for (name, tensor), (other, read) in zip(model.state_dict().items(), again.state_dict().items(), strict=True):
        assert name == other
        assert tensor.dtype == read.dtype == dtype
        assert torch.equal(tensor, read)
    tokens, length = torch.randint(41, (2, 5)), torch.tensor([5, 3])
    assert torch.equal(again(tokens, length), model(tokens, length))
    assert sorted(path.name for path in (tmp_path / "run" / "best").iterdir()) == ["config.json", "model.safetensors"]


def test_a_cut_slope_is_kept(tmp_path):
    encoder = Encoder(CONFIG)
    encoder.bias.slopes_H.copy_(torch.arange(5.0))
    save(encoder, tmp_path)
    assert load(tmp_path).bias.slopes_H.tolist() == [0, 1, 2, 3, 4]


def test_a_tensor_with_two_names_is_written_once_and_tied_again(tmp_path):
    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = torch.nn.Linear(3, 3, bias=False), torch.nn.Linear(3, 3, bias=False)
            self.b.weight = self.a.weight

    tensors = checkpoint.own_tensors(Tied())
    assert list(tensors) == ["a.weight"]
    tied = Tied()
    checkpoint.fill(tied, tensors, tmp_path)
    assert torch.equal(tied.b.weight, tensors["a.weight"])


def test_the_config_is_for_people(tmp_path):
    save(classifier(), tmp_path)
    table = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert (table["format"], table["kind"]) == (1, "classifier")
    assert table["settings"]["classes"] == ["schlecht", "gut, 好"]
    assert table["settings"]["encoder"]["heads"] == [[0, 2, 4], [1, 4]]
    assert "好" in (tmp_path / "config.json").read_text(encoding="utf-8")


def test_wrappers_are_refused(tmp_path):
    for wrapped in (torch.nn.Sequential(classifier()), torch.compile(classifier(), backend="eager")):
        with pytest.raises(InputError, match=f"got {type(wrapped).__name__}. Pass the model inside"):
            save(wrapped, tmp_path)


def edit(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_tensors(folder: Path, change: dict[str, torch.Tensor | None]) -> None:
    path = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(path) | change
    safetensors.torch.save_file({name: x for name, x in tensors.items() if x is not None}, path)


def cut(folder: Path, name: str, size: int) -> None:
    (folder / name).write_bytes((folder / name).read_bytes()[:size])


BROKEN = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "got no config.json in it"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors` must be a file"),
    "config cut": (lambda folder: cut(folder, "config.json", 40), "config.json` must be JSON"),
    "config binary": (lambda folder: (folder / "config.json").write_bytes(b"\xff\x00"), "must be JSON"),
    "config list": (lambda folder: (folder / "config.json").write_text("[]"), "must hold a table; got list"),
    "weights empty": (lambda folder: cut(folder, "model.safetensors", 0), "must be a whole safetensors file; got 0 b"),
    "header cut": (lambda folder: cut(folder, "model.safetensors", 100), "must be a whole safetensors file; got 100"),
    "weights cut": (lambda folder: cut(folder, "model.safetensors", -1), "must be a whole safetensors file"),
    "version": (lambda folder: edit(folder, format=2), "must be of format 1; got 2. Update headwise"),
    "no version": (lambda folder: edit(folder, format=None), "must be of format 1; got None"),
    "kind": (lambda folder: edit(folder, kind="seq3seq"), "encoder, classifier, seq2seq; got 'seq3seq'"),
    "Hugging Face": (lambda folder: edit(folder, format=None, model_type="bert"), "Use load_encoder or load_seq2seq"),
    "setting": (lambda folder: edit(folder, settings={"poling": "mean"}), "did you mean `pooling`?"),
    "kind list": (lambda folder: edit(folder, kind=[]), r"encoder, classifier, seq2seq; got \[\]"),
    "settings list": (lambda folder: edit(folder, settings=[]), r"must hold a table `settings`; got \[\]"),
    "no settings": (lambda folder: edit(folder, settings={}), "`vocabulary` must be known|`classes` must be known"),
    "missing": (lambda folder: edit_tensors(folder, {"output.bias": None}), "missing: output.bias"),
    "unexpected": (lambda folder: edit_tensors(folder, {"x": torch.ones(1)}), "not expected: x"),
    "misshapen": (
        lambda folder: edit_tensors(folder, {"output.bias": torch.ones(3)}),
        r"output.bias: \(3,\) in place of \(2,\)",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_checkpoint_is_told_by_file(tmp_path, name):
    spoil, told = BROKEN[name]
    save(classifier(), tmp_path)
    spoil(tmp_path)
    with pytest.raises(InputError, match=told) as raised:
        load(tmp_path)
    assert str(tmp_path) in str(raised.value)


def test_a_missing_folder_is_told(tmp_path):
    with pytest.raises(InputError, match="got no such folder"):
        load(tmp_path / "none")


def test_a_failed_save_leaves_the_last_model_whole(tmp_path, monkeypatch):
    model = classifier()
    save(model, tmp_path)

    def full(path: Path, contents: bytes) -> int:
        with path.open("wb") as file:
            file.write(contents[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        save(classifier(), tmp_path)
    monkeypatch.undo()
    assert torch.equal(load(tmp_path).output.weight, model.output.weight)
    assert len(list(tmp_path.iterdir())) == 2
