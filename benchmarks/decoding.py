"""Write texts with the same weights in transformers, CTranslate2 and headwise: tokens a second.

python benchmarks/decoding.py --write

The model has Marian's shape, 6 + 6 layers of width 512 and 8,000 tokens, and random weights, saved by transformers and
read by `load_seq2seq`; ours is packed by `for_inference`, CTranslate2's comes from `export_ctranslate2`. 32 sources of
20 tokens are one batch, every text is forced to 20 tokens. All have the same threads; CTranslate2 is measured
with all of them on one batch (1 x n), and with n batches of a part of the sources at once (n x 1).

"x transformers" is tokens a second over those of transformers in the same type of numbers (int8: in float32). "equal"
counts the texts that are those of transformers in float32, token by token; a search may take the other of two equally
good ways.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.pop(0)  # this folder, whose statistics.py would stand before Python's own
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import ctranslate2
import torch
import transformers
from torch import Tensor

from benchmarks.common import Contestant, Report, begin, options, side_by_side
from headwise import Seq2Seq, load_seq2seq
from headwise.integrations.ctranslate2 import export_ctranslate2
from headwise.models import for_inference
from headwise.tasks.decoding import Decoding, decode

TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Size(NamedTuple):
    """Hold the sizes of a model and of its texts."""

    vocabulary: int
    d_model: int
    layers: int
    heads: int
    d_ff: int
    batch: int
    tokens: int


FULL, QUICK = Size(8_000, 512, 6, 8, 2048, 32, 20), Size(50, 16, 1, 2, 24, 3, 5)
Texts = list[tuple[int, ...]]


class Names:
    """Have a name for each id, as CTranslate2 wants."""

    unknown_id = 1

    def __init__(self, size: int) -> None:
        self.vocabulary = [str(i) for i in range(size)]

    def save(self, path: Path | str) -> None:
        """Need no file."""


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 4], help="numbers of beams (default: 1 4)")
    chosen = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    report = begin("Decoding beside transformers and CTranslate2", chosen)
    size = QUICK if chosen.quick else FULL
    with tempfile.TemporaryDirectory() as folder:
        ways = contestants(size, Path(folder), chosen.threads)
        for beams in chosen.beams:
            measure(report, size, ways, beams, chosen.rounds)


def contestants(size: Size, folder: Path, threads: int) -> dict[str, Callable[[Tensor, int], Texts]]:
    """Build every way of writing: sources and beams in, tokens out."""
    save(size, folder / "marian")
    model = load_seq2seq(folder / "marian")
    found: dict[str, Callable[[Tensor, int], Texts]] = {}
    for name, dtype in TYPES.items():
        theirs = transformers.MarianMTModel.from_pretrained(folder / "marian", dtype=dtype).eval()
        found[f"transformers {name}"] = peer(theirs, size)
        found[f"headwise {name}"] = ours(for_inference(model, dtype=dtype), size)
    export_ctranslate2(model, Names(size.vocabulary), folder / "ctranslate2")
    for kind in ("float32", "int8"):
        for workers in dict.fromkeys((1, threads)):
            setting = {"inter_threads": workers, "intra_threads": threads // workers}
            translator = ctranslate2.Translator(str(folder / "ctranslate2"), compute_type=kind, **setting)
            found[f"CTranslate2 {kind} {workers} x {threads // workers}"] = engine(translator, size, workers)
    return found


def save(size: Size, folder: Path) -> None:
    settings = {f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in sizes(size).items()}
    config = transformers.MarianConfig(
        vocab_size=size.vocabulary,
        d_model=size.d_model,
        scale_embedding=True,
        activation_function="swish",
        pad_token_id=size.vocabulary - 1,
        decoder_start_token_id=size.vocabulary - 1,
        eos_token_id=0,
        forced_eos_token_id=None,
        init_std=0.05,
        **settings,
    )
    transformers.MarianMTModel(config).save_pretrained(folder)


def sizes(size: Size) -> dict[str, int]:
    return {"layers": size.layers, "attention_heads": size.heads, "ffn_dim": size.d_ff}


def peer(model: Any, size: Size) -> Callable[[Tensor, int], Texts]:
    def write(source_BK: Tensor, beams: int) -> Texts:
        written_BT = model.generate(
            source_BK,
            attention_mask=torch.ones_like(source_BK),
            num_beams=beams,
            do_sample=False,
            min_new_tokens=size.tokens,
            max_new_tokens=size.tokens,
            suppress_tokens=[size.vocabulary - 1],
        )
        return [tuple(row) for row in written_BT[:, 1:].tolist()]

    return write


def ours(model: Seq2Seq, size: Size) -> Callable[[Tensor, int], Texts]:
    ends = {"begin": model.config.begin, "end": model.config.end}

    def write(source_BK: Tensor, beams: int) -> Texts:
        forced = {"min_length": size.tokens, "max_length": size.tokens, "max_ratio": None}
        decoding = Decoding(beams=beams, suppress=(model.config.pad,), **forced)
        length_B = torch.full((len(source_BK),), source_BK.shape[1])
        return [found[0].ids for found in decode([model], source_BK, length_B, decoding, **ends)]

    return write


def engine(translator: Any, size: Size, workers: int) -> Callable[[Tensor, int], Texts]:
    def write(source_BK: Tensor, beams: int) -> Texts:
        found = translator.translate_batch(
            [[str(i) for i in row[:-1]] for row in source_BK.tolist()],  # it puts the end token there
            beam_size=beams,
            min_decoding_length=size.tokens,
            max_decoding_length=size.tokens,
            suppress_sequences=[[str(size.vocabulary - 1)]],
            max_batch_size=-(-len(source_BK) // workers),
        )
        return [tuple(map(int, each.hypotheses[0])) for each in found]

    return write


def measure(
    report: Report, size: Size, ways: dict[str, Callable[[Tensor, int], Texts]], beams: int, rounds: int
) -> None:
    """Write with all of them in turn, and add a table."""
    source_BK = torch.randint(1, size.vocabulary - 1, (size.batch, size.tokens))
    source_BK[:, -1] = 0
    written = {name: way(source_BK, beams) for name, way in ways.items()}
    took = side_by_side([Contestant(name, calling(way, source_BK, beams)) for name, way in ways.items()], rounds)
    speed = {name: 1e3 * size.batch * size.tokens / ms for name, ms in took.items()}
    report.section(f"{beams} beam{'s' * (beams > 1)}")
    report.table("way", "tokens/s", "x transformers", f"equal of {size.batch}")
    for name in ways:
        against = f"transformers {'bfloat16' if 'bfloat16' in name else 'float32'}"
        same = equal(written[name], written["transformers float32"])
        report.row(name, speed[name], speed[name] / speed[against], str(same))


def calling(way: Callable[[Tensor, int], Texts], source_BK: Tensor, beams: int) -> Callable[[], Texts]:
    return lambda: way(source_BK, beams)


def equal(texts: Sequence[tuple[int, ...]], others: Sequence[tuple[int, ...]]) -> int:
    return sum(text == other for text, other in zip(texts, others, strict=True))


if __name__ == "__main__":
    main()
