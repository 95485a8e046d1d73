"""Pretrained encoder-decoders come with their tokenizers, and write what transformers writes with them."""

import io
import json

import pytest
import torch

from headwise import InputError
from headwise.data import pairs
from headwise.tasks.decoding import Decoding, decode
from headwise.tasks.pretrained_pairs import load_pretrained_pairs, pair_tokenizer, usual_decoding
from headwise.tasks.sentence_pieces import read_pieces

sentencepiece = pytest.importorskip("sentencepiece", reason="sentencepiece is not installed")
tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

pytestmark = pytest.mark.filterwarnings("ignore:Recommended:UserWarning")  # sacremoses is not among our packages
ODD = ["  two  spaces\tand a tab ", "Ｆｕｌｌ width, naïve café", "日本 is unknown", "x" * 40]  # noqa: RUF001


def texts(column):
    rows = [line.split("\t") for line in pairs("en-fr").read_text(encoding="utf-8").splitlines()]
    return [row[rows[0].index(column)] for row in rows[1:]]


def learned(lines, path, **settings):
    """Train a SentencePiece model."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=written, minloglevel=2, hard_vocab_limit=False, **settings
    )
    path.write_bytes(written.getvalue())
    return sentencepiece.SentencePieceProcessor(model_file=str(path))


@pytest.fixture(scope="module")
def marian(tmp_path_factory):
    """Save a small random Marian with the files that OPUS-MT has."""
    folder = tmp_path_factory.mktemp("marian")
    source = learned(texts("en"), folder / "source.spm", vocab_size=300)
    target = learned(texts("fr"), folder / "target.spm", vocab_size=280)
    pieces = [model.id_to_piece(i) for model in (target, source) for i in range(model.get_piece_size())]
    names = list(dict.fromkeys(["</s>", "<unk>", ">>fra<<", *(p for p in pieces if p not in ("<s>", "</s>", "<unk>"))]))
    ids = {name: i for i, name in enumerate([*names, "<pad>"])}
    (folder / "vocab.json").write_text(json.dumps(ids), encoding="utf-8")
    torch.manual_seed(0)
    config = transformers.MarianConfig(
        vocab_size=len(ids),
        d_model=24,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=50,
        decoder_ffn_dim=50,
        max_position_embeddings=80,
        pad_token_id=ids["<pad>"],
        decoder_start_token_id=ids["<pad>"],
        eos_token_id=0,
        forced_eos_token_id=None,
        init_std=0.3,
    )
    model = transformers.MarianMTModel(config).eval()
    model.generation_config.update(num_beams=3, max_length=17, no_repeat_ngram_size=2, bad_words_ids=[[ids["<pad>"]]])
    model.save_pretrained(folder)
    theirs = transformers.MarianTokenizer(
        str(folder / "source.spm"), str(folder / "target.spm"), str(folder / "vocab.json")
    )
    return folder, model, theirs


def test_marian_cuts_texts_as_sentencepiece_does(marian):
    folder, _, theirs = marian
    ours = pair_tokenizer(folder)
    lines = [*texts("en"), *ODD, ">>fra<< Hello there"]
    found = ours.encode(lines, max_tokens=500).ids
    for line, ids, expected in zip(lines, found, theirs(lines).input_ids, strict=True):
        assert [*ids, 0] == expected, line
    assert ours.unknown_id == 1
    assert ours.tokens(found[-1])[0] == ">>fra<<"


def test_marian_puts_texts_together(marian):
    folder, _, theirs = marian
    lines = texts("fr")[:50]
    written = theirs(text_target=lines).input_ids
    found = [pair_tokenizer(folder).decode(ids) for ids in written]
    assert found == [theirs.decode(ids, skip_special_tokens=True) for ids in written]
    assert found[0] == lines[0]


@torch.no_grad()
def test_marian_translates_as_transformers_does(marian):
    folder, model, theirs = marian
    held = load_pretrained_pairs(folder)
    assert (held.decoding.beams, held.decoding.max_length, held.decoding.no_repeat) == (3, 16, 2)
    assert (held.decoding.prefix, held.purpose.task) == ((), "translation")
    lines = texts("en")[:20]
    expected = model.generate(**theirs(lines, return_tensors="pt", padding=True))
    rows = [[*ids, held.model.config.end] for ids in held.tokenizer.encode(lines, max_tokens=80).ids]
    length_B = torch.tensor([len(row) for row in rows])
    source_BK = torch.zeros(len(rows), int(length_B.max()), dtype=torch.long)
    for b, row in enumerate(rows):
        source_BK[b, : len(row)] = torch.tensor(row)
    ends = {"begin": held.model.config.begin, "end": held.model.config.end}
    found = decode([held.model], source_BK, length_B, held.decoding, **ends)
    said = [held.tokenizer.decode(best[0].ids) for best in found]
    assert len(set(said)) > 10, "texts that are all alike would hide what is wrong"
    assert said == [theirs.decode(row, skip_special_tokens=True) for row in expected]


def test_t5_reads_its_sentencepiece_model(tmp_path):
    model = learned(texts("en"), tmp_path / "spiece.model", vocab_size=300, pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    ours = pair_tokenizer(tmp_path)
    lines = [*texts("en"), *ODD]
    assert ours.encode(lines, max_tokens=500).ids == model.encode(lines)
    known = [line for line in texts("en") if 2 not in model.encode(line)]
    assert len(known) > 400
    assert [ours.decode(ids) for ids in model.encode(known)] == known


def test_bart_keeps_its_begin_and_leaves_the_end_to_us(tmp_path):
    inner = tokenizers.ByteLevelBPETokenizer()
    inner.train_from_iterator(texts("en"), 400, special_tokens=["<s>", "<pad>", "</s>", "<unk>"], show_progress=False)
    inner._tokenizer.post_processor = tokenizers.processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    inner._tokenizer.save(str(tmp_path / "tokenizer.json"))
    ours, lines = pair_tokenizer(tmp_path), texts("en")[:50]
    expected = [inner._tokenizer.encode(line).ids for line in lines]
    found = ours.encode(lines, max_tokens=500).ids
    assert [[*ids, 2] for ids in found] == expected
    assert [ours.decode(ids) for ids in found] == lines


def test_older_folders_tell_how_to_write_in_their_config(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"num_beams": 4, "max_length": 142, "min_length": 56}))
    assert usual_decoding(tmp_path, pad=1) == Decoding(
        beams=4, max_length=141, min_length=55, max_ratio=None, suppress=(1,), stop="early", method="beam"
    )
    told = {"num_beams": 1, "forced_bos_token_id": 7, "bad_words_ids": [[5], [6, 7]], "max_new_tokens": 9}
    (tmp_path / "generation_config.json").write_text(json.dumps(told))
    decoding = usual_decoding(tmp_path, pad=1)
    assert (decoding.method, decoding.max_length, decoding.suppress, decoding.prefix) == ("greedy", 9, (5, 1), (7,))


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({}, "must hold tokenizer.json, or source.spm and vocab.json, or spiece.model; got none"),
        ({"source.spm": b"\x0a\xff", "vocab.json": b'{"<unk>": 0}'}, "must be a SentencePiece model"),
        ({"source.spm": b"", "vocab.json": b'{"<unk>": 0}'}, "must be a unigram model of SentencePiece; got 0 pieces"),
        ({"spiece.model": b"\x0a\x04\x0a\x02ab\x12\x02\x18\x02"}, "got 1 pieces, type 2"),
        ({"source.spm": b"", "vocab.json": b"["}, "must be a JSON file"),
        ({"target_vocab.json": b"{}"}, "must have one vocabulary"),
    ],
)
def test_what_cannot_be_read_is_told(files, told, tmp_path):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        pair_tokenizer(tmp_path)
    assert told in str(caught.value)


def test_how_to_write_must_be_possible(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"num_beams": 4, "length_penalty": "long"}))
    with pytest.raises(InputError, match="length_penalty"):
        usual_decoding(tmp_path, pad=0)


def test_a_piece_has_its_score(marian):
    folder, _, theirs = marian
    scores = read_pieces(folder / "source.spm").scores
    model = theirs.spm_source
    assert [scores[model.id_to_piece(i)] for i in range(50)] == [model.get_score(i) for i in range(50)]
