"""Whole models of Transformers with our attention, beside their own: BERT-base reads a text, GPT-2 a prompt.

Shapes are those of the models, weights are random, and outputs are compared before anything is timed. A ratio is the
peer's time over ours: above 1, the attached model is faster.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path

sys.path.pop(0)  # this folder, whose statistics.py would stand before Python's own
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import transformers
from torch import Tensor

from benchmarks.common import DTYPES, Contestant, Report, begin, geometric_mean, options, side_by_side
from headwise.integrations.transformers import attach

SIZES = {128: 8, 512: 2, 2048: 1}
"""Texts in a batch by their length."""
PEERS = ("sdpa", "eager")
MOST_DIFFERENT = {"float32": 1e-4, "bfloat16": 0.2}
"""Hidden states are normalised: of the size of 1, up to about 5."""


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], nargs="*", default=["float32", "bfloat16"])
    parser.add_argument("--layers", type=int, default=12)
    chosen = parser.parse_args()
    report = begin("Whole models of Transformers, attached", chosen)
    layers = 2 if chosen.quick else chosen.layers
    report.line(f"- transformers: {transformers.__version__}; layers: {layers}")
    transformers.logging.set_verbosity_error()
    sizes = {16: 2} if chosen.quick else SIZES
    for build in (bert, gpt2):
        for dtype in chosen.dtype:
            speed(report, build, dtype, sizes, layers, chosen.rounds)


def bert(attention: str, layers: int, positions: int) -> torch.nn.Module:
    config = transformers.BertConfig(num_hidden_layers=layers, max_position_embeddings=positions)
    return built(transformers.BertModel(config, add_pooling_layer=False), attention)


def gpt2(attention: str, layers: int, positions: int) -> torch.nn.Module:
    return built(transformers.GPT2Model(transformers.GPT2Config(n_layer=layers, n_positions=positions)), attention)


def built(model: torch.nn.Module, attention: str) -> torch.nn.Module:
    model.set_attn_implementation(attention)
    return model.eval()


@torch.inference_mode()
def speed(
    report: Report,
    build: Callable[[str, int, int], torch.nn.Module],
    dtype: str,
    sizes: dict[int, int],
    layers: int,
    rounds: int,
) -> None:
    """Time forward passes over texts of one length."""
    torch.manual_seed(0)
    whole = build("sdpa", layers, max(sizes)).to(DTYPES[dtype])
    models = {"headwise": attach(deepcopy(whole)), "sdpa": whole, "eager": built(deepcopy(whole), "eager")}
    report.section(f"{build.__name__.upper()}, {dtype}")
    report.table("texts x tokens", *[f"{name} ms" for name in models], *PEERS)
    ratios = []
    for length, batch in sizes.items():
        tokens_BT = torch.randint(1000, 30_000, (batch, length), generator=torch.Generator().manual_seed(1))
        calls = [Contestant(name, partial(states, model, tokens_BT)) for name, model in models.items()]
        check(models, tokens_BT, dtype)
        took = side_by_side(calls, rounds)
        found = [took[peer] / took["headwise"] for peer in PEERS]
        ratios.append(found[0])
        report.row(f"{batch} x {length}", *took.values(), *found)
    report.line(f"Beside sdpa: geometric mean {geometric_mean(ratios):.2f}, the least {min(ratios):.2f}.")


def states(model: torch.nn.Module, tokens_BT: Tensor) -> Tensor:
    found: Tensor = model(tokens_BT, use_cache=False).last_hidden_state
    return found


def check(models: dict[str, torch.nn.Module], tokens_BT: Tensor, dtype: str) -> None:
    """End where an attached model computes something else, within the digits of the type."""
    ours = states(models["headwise"], tokens_BT).float()
    for name in PEERS:
        most = float((ours - states(models[name], tokens_BT).float()).abs().max())
        if not most < MOST_DIFFERENT[dtype]:
            sys.exit(f"{name}: hidden states must differ by less than {MOST_DIFFERENT[dtype]}; got {most}.")


if __name__ == "__main__":
    main()
