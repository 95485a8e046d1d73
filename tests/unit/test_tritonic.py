"""The GPU kernel says what it takes, and compiles for real cards where there is none."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from headwise import attend, explain
from headwise.errors import BackendError
from headwise.kernels import tritonic

ROOT = Path(__file__).parents[2]
AS_IF_FOR_CUDA = "import runpy, sys, torch; torch.version.cuda = '13.0'; runpy.run_path(sys.argv[1])"
installed = pytest.mark.skipif(tritonic.PASSES is None, reason="Triton is not installed")


def test_what_it_does_not_take_it_refuses_with_the_reason():
    x = torch.randn(1, 2, 5, 8)
    with pytest.raises(BackendError, match="triton: it computes float32, bfloat16 and float16, not float64"):
        attend(*[x.double()] * 3, backend="triton")
    wide = torch.randn(1, 2, 5, 300)
    with pytest.raises(BackendError, match="triton: it takes widths of 1 to 256, not 300 and 300"):
        attend(wide, wide, wide, backend="triton")
    with pytest.raises(BackendError, match="triton: it is built for CUDA"):
        attend(x, x, x, backend="triton")
    assert dict(explain(x, x, x).refused)["triton"] == "it is built for CUDA"


@installed
def test_the_interpreter_is_never_chosen_unasked(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    x = torch.randn(1, 2, 5, 8)
    assert explain(x, x, x).backend == "native"
    assert "it could" in dict(explain(x, x, x).refused)["triton"]
    asked = explain(x, x, x, backend="triton")
    assert asked.backend == "triton"
    assert "one pass in the Triton kernel" in asked.how
    torch.testing.assert_close(attend(x, x, x, backend="triton"), attend(x, x, x, backend="reference"))


@installed
@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
def test_every_kernel_compiles_for_a_card_that_is_not_there(capability, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", AS_IF_FOR_CUDA, str(ROOT / "tests" / "unit" / "compiling.py"), str(capability)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == {"attend", "receive", "link", "to_queries", "to_keys", "to_bias"}
