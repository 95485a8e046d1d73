"""A model that is handed over to CTranslate2 writes the same texts there."""

from pathlib import Path

import pytest
import torch

from headwise import DecoderConfig, EncoderConfig, InputError, Seq2Seq, Seq2SeqConfig
from headwise.integrations.ctranslate2 import export_ctranslate2
from headwise.tasks.decoding import Decoding, decode

ctranslate2 = pytest.importorskip("ctranslate2", reason="ctranslate2 is not installed")

VOCABULARY, UNKNOWN, BEGIN, END = 61, 1, 2, 3
MODELS = {
    "transformer": {"positions": "sinusoidal", "activation": "relu"},
    "marian": {"positions": "halves", "activation": "silu"},
    "bart": {"positions": "learned", "embedding_norm": True, "scale_embedding": False},
    "t5": {
        "positions": "relative",
        "norm": "pre",
        "normalisation": "rms",
        "bias": False,
        "scale_embedding": False,
        "buckets": 8,
        "max_distance": 9,
        "d_head": 5,
    },
    "gated": {"positions": "sinusoidal", "norm": "pre", "activation": "geglu", "norm_eps": 1e-3},
}


class Letters:
    """Have a token for each id but the last two, which a tokenizer may lack."""

    unknown_id = UNKNOWN

    def __init__(self, size=VOCABULARY - 2):
        self.vocabulary = [f"t{i}" for i in range(size)]

    def save(self, path):
        Path(path).write_text("{}")


def built(settings, **others):
    torch.manual_seed(3)
    shape = {"vocabulary": VOCABULARY, "d_model": 24, "layers": 2, "heads": 4, "d_ff": 38, "norm": "post"}
    encoder = EncoderConfig(**(shape | {"scale_embedding": True} | settings))
    ends = {"begin": BEGIN, "end": END}
    model = Seq2Seq(Seq2SeqConfig(encoder, DecoderConfig(layers=3), output_bias=True, **ends, **others)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1) / 4, std=0.4)
    return model


@pytest.mark.parametrize("name", MODELS)
def test_greedy_and_beam_texts_are_the_same(name, tmp_path):
    model = built(MODELS[name])
    export_ctranslate2(model, Letters(), tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    translator = ctranslate2.Translator(str(tmp_path / "out"), compute_type="float32", intra_threads=1)
    torch.manual_seed(4)
    length_B = torch.randint(2, 9, (20,))
    source_BK = torch.randint(4, VOCABULARY - 2, (20, 8))
    source_BK[torch.arange(20), length_B - 1] = END
    texts = [[f"t{i}" for i in row[: n - 1]] for row, n in zip(source_BK.tolist(), length_B.tolist(), strict=True)]
    for beams in (1, 3):
        found = translator.translate_batch(texts, beam_size=beams, max_decoding_length=11, length_penalty=1.0)
        decoding = Decoding(beams=beams, max_length=11, max_ratio=None)
        expected = decode([model], source_BK, length_B, decoding, begin=BEGIN, end=END)
        names = [*Letters().vocabulary, "<unused 59>", "<unused 60>"]
        same = [[names[i] for i in a[0].ids] == b.hypotheses[0] for a, b in zip(expected, found, strict=True)]
        assert sum(same) >= (20 if beams == 1 else 17), "the searches end by other rules, the models are one"


def test_int8_is_smaller(tmp_path):
    model = built(MODELS["transformer"])
    sizes = [
        (export_ctranslate2(model, Letters(), tmp_path / kind, quantization=kind) / "model.bin").stat().st_size
        for kind in ("float32", "int8")
    ]
    assert sizes[1] < sizes[0]
    export_ctranslate2(model, Letters(), tmp_path / "int8", quantization="int8")  # an export may be written anew


@pytest.mark.parametrize(
    ("settings", "others", "told"),
    [
        ({"positions": "rotary"}, {}, "`positions` must be sinusoidal, halves, learned or relative"),
        ({"positions": "sinusoidal", "kv_heads": 2}, {}, "got grouped heads"),
        ({"positions": "sinusoidal"}, {"copy": True}, "`copy` must be false"),
        ({"positions": "sinusoidal", "heads": ((0, 1), (0,)), "d_head": 6}, {}, "as many heads"),
    ],
)
def test_what_it_cannot_compute_is_told(settings, others, told, tmp_path):
    with pytest.raises(InputError, match="CTranslate2") as caught:
        export_ctranslate2(built(settings, **others), Letters(), tmp_path / "out")
    assert told in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_other_files_are_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="must be an empty folder"):
        export_ctranslate2(built(MODELS["marian"]), Letters(), tmp_path)
    with pytest.raises(InputError, match="must be an empty folder"):
        export_ctranslate2(built(MODELS["marian"]), Letters(), tmp_path / "thesis.txt")


def test_an_export_that_broke_off_is_written_over(tmp_path):
    (tmp_path / "shared_vocabulary.json").write_text("")
    export_ctranslate2(built(MODELS["marian"]), Letters(), tmp_path)
    assert (tmp_path / "model.bin").stat().st_size


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    with pytest.raises(InputError, match="must fit the model's 61 tokens; got 62"):
        export_ctranslate2(built(MODELS["marian"]), Letters(VOCABULARY + 1), tmp_path / "out")
