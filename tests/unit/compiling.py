"""Compile every GPU kernel for a card that need not be there, and write their names: a program of its own."""

import sys

import torch
import triton
from torch import Tensor
from triton._C.libtriton import native_specialize_impl
from triton._utils import find_paths_if, get_iterable_path
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

import headwise
from headwise import Alibi, Dropout, Mask, Statistics
from headwise.kernels import tritonic

TARGET = GPUTarget("cuda", int(sys.argv[2]), 32)


def compiled(kernel: JITFunction, *given: object, grid: object, warmup: bool, **named: object) -> None:
    """Do what a launch does, but for the launch."""
    del grid, warmup
    settings = {name: named.pop(name) for name in ("num_warps", "num_stages") if name in named}
    values = [*given, *named.values()]
    kinds = [
        "constexpr" if parameter.is_constexpr else native_specialize_impl(CUDABackend(TARGET), x, False, True, True)[0]
        for parameter, x in zip(kernel.params, values, strict=True)
    ]
    paths = find_paths_if(kinds, lambda _, kind: kind == "constexpr")
    source = ASTSource(
        kernel,
        dict(zip((parameter.name for parameter in kernel.params), kinds, strict=True)),
        {path: get_iterable_path(values, path) for path in paths},
        {},
    )
    assert triton.compile(source, target=TARGET, options=settings).asm["cubin"]
    sys.stdout.write(f"{kernel.fn.__name__}\n")


def attend(dtype: torch.dtype, width: int, mask: Mask | None, statistics: Statistics, **settings: object) -> None:
    shapes = (2, 4, 64, width), (2, 2, 64, width), (2, 2, 64, width)
    tensors = [torch.zeros(shape, dtype=dtype, requires_grad=True) for shape in shapes]
    output, seen = headwise.attend(*tensors, mask, statistics=statistics, backend="triton", **settings)
    total: Tensor = output.sum() + seen.lse_BHQ.sum()
    (total if seen.entropy_BHQ is None else total + seen.entropy_BHQ.sum()).backward()


JITFunction.run = compiled
tritonic.refusal = lambda problem, asked: None  # the tensors stand on the CPU
names = "entropy, peak, position, distance, sink=1, diagonal, previous, next, local=3, received, map=4, links=3"
attend(torch.bfloat16, 64, Mask.causal(), Statistics())
attend(torch.bfloat16, 128, Mask.window(4, 2), Statistics.parse(names))
lengths = torch.tensor([3, 9])
slopes, dropout = Alibi(torch.ones(4)), Dropout(0.1, 3)
attend(torch.float16, 80, Mask.lengths(lengths, lengths), Statistics(entropy=True), bias=slopes, dropout=dropout)
dense = Mask.dense(torch.ones(64, 64).bool()) & Mask.segments(torch.zeros(2, 64).long())
attend(torch.float32, 32, dense, Statistics(), bias=torch.zeros(1, 4, 1, 64, requires_grad=True))
