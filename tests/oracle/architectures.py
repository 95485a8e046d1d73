"""Small random models of the architectures of Transformers, and the inputs on which they are compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor

VOCABULARY, TEXTS, TOKENS, TARGETS = 61, 3, 11, 7


class Architecture(NamedTuple):
    """Name a model class and the sizes of a small one."""

    name: str
    model: str
    sizes: dict[str, Any]
    kind: str = "encoder"
    """What it takes, and whether it generates: encoder, decoder, pair, image, sound, speech, both (text, image)."""
    note: str = ""
    """What is special about its attention."""


_PLAIN = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 29,
    "max_position_embeddings": 40,
}
_GROUPED = _PLAIN | {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6}
_BART = {
    "d_model": 24,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 3,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 29,
    "decoder_ffn_dim": 31,
    "max_position_embeddings": 40,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
}
_ALTERNATING = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 4}
_WINDOW = {"sliding_window": 4}
_CAPPED = _GROUPED | _ALTERNATING | {"attn_logit_softcapping": 2.0}
_IMAGE = {"image_size": 8, "patch_size": 4}
_WAVE = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 29,
    "conv_dim": (8, 8),
    "conv_kernel": (5, 3),
    "conv_stride": (3, 2),
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
}

EQUAL = [
    Architecture("BERT", "BertModel", _PLAIN),
    Architecture("RoBERTa", "RobertaModel", _PLAIN),
    Architecture("CamemBERT", "CamembertModel", _PLAIN),
    Architecture("XLM-RoBERTa", "XLMRobertaModel", _PLAIN),
    Architecture(
        "DistilBERT",
        "DistilBertModel",
        {"dim": 24, "n_layers": 2, "n_heads": 3, "hidden_dim": 29, "max_position_embeddings": 40},
    ),
    Architecture(
        "ALBERT", "AlbertModel", _PLAIN | {"embedding_size": 8}, note="its layers share weights, and one seam"
    ),
    Architecture("ELECTRA", "ElectraModel", _PLAIN | {"embedding_size": 8}),
    Architecture(
        "ModernBERT",
        "ModernBertModel",
        _PLAIN
        | {"local_attention": 6, "global_attn_every_n_layers": 2, "pad_token_id": 0, "cls_token_id": 1}
        | {"bos_token_id": 1, "eos_token_id": 2, "sep_token_id": 2},
        note="windows to both sides",
    ),
    Architecture("GPT-2", "GPT2LMHeadModel", {"n_embd": 24, "n_layer": 2, "n_head": 3, "n_positions": 40}, "decoder"),
    Architecture(
        "GPT-J",
        "GPTJForCausalLM",
        {"n_embd": 24, "n_layer": 2, "n_head": 3, "rotary_dim": 4, "n_positions": 40},
        "decoder",
    ),
    Architecture("GPT-NeoX", "GPTNeoXForCausalLM", _PLAIN, "decoder"),
    Architecture(
        "OPT",
        "OPTForCausalLM",
        {
            "hidden_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "ffn_dim": 29,
            "max_position_embeddings": 40,
            "word_embed_proj_dim": 24,
        },
        "decoder",
    ),
    Architecture("Llama", "LlamaForCausalLM", _GROUPED, "decoder", "grouped heads"),
    Architecture("Mistral", "MistralForCausalLM", _GROUPED | _WINDOW, "decoder", "window; grouped heads"),
    Architecture("Qwen2", "Qwen2ForCausalLM", _GROUPED, "decoder", "grouped heads"),
    Architecture("Qwen3", "Qwen3ForCausalLM", _GROUPED, "decoder", "grouped heads"),
    Architecture("Gemma", "GemmaForCausalLM", _GROUPED, "decoder", "grouped heads"),
    Architecture(
        "Gemma 2",
        "Gemma2ForCausalLM",
        _GROUPED | _ALTERNATING | {"attn_logit_softcapping": 2.0},
        "decoder",
        "window; grouped heads; soft cap",
    ),
    Architecture("Gemma 3", "Gemma3ForCausalLM", _GROUPED | _ALTERNATING, "decoder", "window; grouped heads"),
    Architecture("Phi", "PhiForCausalLM", _PLAIN, "decoder"),
    Architecture("Phi-3", "Phi3ForCausalLM", _GROUPED | {"pad_token_id": 0}, "decoder", "grouped heads"),
    Architecture("OLMo 2", "Olmo2ForCausalLM", _GROUPED, "decoder", "grouped heads"),
    Architecture("Granite", "GraniteForCausalLM", _GROUPED, "decoder", "grouped heads"),
    Architecture(
        "StarCoder 2", "Starcoder2ForCausalLM", _GROUPED | {"sliding_window": 4}, "decoder", "window; grouped heads"
    ),
    Architecture("StableLM", "StableLmForCausalLM", _GROUPED, "decoder", "grouped heads"),
    Architecture("SmolLM 3", "SmolLM3ForCausalLM", _GROUPED | {"pad_token_id": 0}, "decoder", "grouped heads"),
    Architecture(
        "T5",
        "T5ForConditionalGeneration",
        {"d_model": 24, "d_kv": 6, "d_ff": 29, "num_layers": 2, "num_heads": 3, "decoder_start_token_id": 0},
        "pair",
        "learned bias by distance",
    ),
    Architecture(
        "mT5",
        "MT5ForConditionalGeneration",
        {"d_model": 24, "d_kv": 6, "d_ff": 29, "num_layers": 2, "num_heads": 3, "decoder_start_token_id": 0},
        "pair",
        "learned bias by distance",
    ),
    Architecture("BART", "BartForConditionalGeneration", _BART, "pair"),
    Architecture("mBART", "MBartForConditionalGeneration", _BART, "pair"),
    Architecture("Marian", "MarianMTModel", _BART | {"pad_token_id": 1, "eos_token_id": 2}, "pair"),
    Architecture("Pegasus", "PegasusForConditionalGeneration", _BART, "pair"),
    Architecture("M2M-100", "M2M100ForConditionalGeneration", _BART, "pair"),
    Architecture(
        "Whisper",
        "WhisperForConditionalGeneration",
        _BART
        | {
            "num_mel_bins": 5,
            "max_source_positions": 9,
            "max_target_positions": 40,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "suppress_tokens": None,
            "begin_suppress_tokens": None,
        },
        "speech",
    ),
    Architecture("Wav2Vec2", "Wav2Vec2Model", _WAVE, "sound"),
    Architecture("HuBERT", "HubertModel", _WAVE, "sound"),
    Architecture("ViT", "ViTModel", _PLAIN | _IMAGE, "image"),
    Architecture("DeiT", "DeiTModel", _PLAIN | _IMAGE, "image"),
    Architecture("DINOv2", "Dinov2Model", _PLAIN | _IMAGE, "image"),
    Architecture(
        "CLIP",
        "CLIPModel",
        {
            "text_config": _PLAIN | {"vocab_size": VOCABULARY, "eos_token_id": 3},
            "vision_config": _PLAIN | _IMAGE,
            "projection_dim": 8,
        },
        "both",
    ),
]

_TINY = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 3}
REFUSED = [
    Architecture("BLOOM", "BloomForCausalLM", {"hidden_size": 24, "n_layer": 1, "n_head": 3}),
    Architecture("DeBERTa-v2", "DebertaV2Model", _PLAIN),
    Architecture("Falcon", "FalconForCausalLM", _TINY),
    Architecture("Funnel", "FunnelModel", {"d_model": 24, "block_sizes": [1], "n_head": 3, "d_head": 8}),
    Architecture(
        "GPT-Neo",
        "GPTNeoForCausalLM",
        {"hidden_size": 24, "num_layers": 1, "num_heads": 3, "attention_types": [[["global"], 1]]},
    ),
    Architecture("gpt-oss", "GptOssForCausalLM", _GROUPED | {"num_local_experts": 2}),
    Architecture("LED", "LEDModel", _BART | {"encoder_attention_heads": 3, "decoder_attention_heads": 3}),
    Architecture("MPNet", "MPNetModel", _PLAIN),
    Architecture("MPT", "MptForCausalLM", {"d_model": 24, "n_layers": 1, "n_heads": 3}),
    Architecture("RemBERT", "RemBertModel", _PLAIN | {"input_embedding_size": 8}),
    Architecture("XLNet", "XLNetModel", {"d_model": 24, "n_layer": 1, "n_head": 3, "d_inner": 8}),
]


_HEAD = """# Architectures of Transformers

What `headwise.integrations.transformers.attach` takes. Each row is a small random model whose outputs and gradients
equal those of its eager attention in float32 on every row that may look at something, with padding on
either side where it takes padding. Those that generate give the same tokens, greedy and by beam search. The tests in
`tests/oracle/test_transformers.py` do this, and hold this table to what they find.

Heads that can be *cut* were: with `headwise.integrations.transformers.TransformersLayout`, the smaller model equals the
whole one with these heads gated to 0, and comes back from `save` and `load` with the same bits. Heads that can be
*shared* get fewer keys and values, each the mean, or the best, of those it stands for.

"""
_PADDED = {"encoder": "left, right", "decoder": "left, right", "pair": "left, right", "both": "left, right"}


def document(seams: Mapping[str, str], cuts: Mapping[str, dict[str, str]], reasons: Mapping[str, str]) -> str:
    """Write the table: kinds of attention of each equal model, what can be done to its heads, and what is refused.

    `cuts` tells for each model why heads cannot be cut, or shared; an empty reason where they can.
    """
    names = "architecture", "tried as", "heads look at", "padding", "generates", "heads", ""
    lines = [f"## Equal ({len(EQUAL)})", "", f"| {' | '.join(names)} |".replace("|  |", "| |")]
    lines.append(f"|{' --- |' * len(names)}")
    for each in EQUAL:
        generates = "greedy, beam" if each.kind in ("decoder", "pair", "speech") else "-"
        can = ", ".join(way for way, reason in cuts[each.name].items() if not reason) or "-"
        cells = each.name, f"`{each.model}`", seams[each.name], _PADDED.get(each.kind, "-"), generates, can, each.note
        lines.append(f"| {' | '.join(cells)} |".replace("|  |", "| |"))
    lines += ["", "## Heads that cannot be cut, or cannot share keys and values", "", "| architecture | why |"]
    lines += ["| --- | --- |"]
    refused = {each.name: {reason for reason in cuts[each.name].values() if reason} for each in EQUAL}
    lines += [f"| {name} | {reason} |" for name, found in refused.items() for reason in sorted(found)]
    lines += ["", f"## Refused ({len(REFUSED)})", "", "| architecture | why |", "| --- | --- |"]
    lines += [f"| {each.name} | {reasons[each.name]} |" for each in REFUSED]
    return _HEAD + "\n".join(lines) + "\n"


def build(architecture: Architecture, attention: str = "eager") -> transformers.PreTrainedModel:
    """Build the model in evaluation, with the same random parameters each time."""
    torch.manual_seed(11)
    kind = getattr(transformers, architecture.model)
    words = {} if "text_config" in architecture.sizes else {"vocab_size": VOCABULARY}
    config = kind.config_class(**(words | architecture.sizes))
    config._attn_implementation = attention
    return kind(config).eval()


def inputs(architecture: Architecture, padding: str) -> dict[str, Tensor]:
    """Make a batch of texts of different lengths, padded on one side; images and sounds have no padding."""
    generator = torch.Generator().manual_seed(5)
    kind = architecture.kind
    made: dict[str, Tensor] = {}
    if kind in ("image", "both"):
        made["pixel_values"] = torch.randn(2, 3, 8, 8, generator=generator)
    if kind == "sound":
        return {"input_values": torch.randn(2, 80, generator=generator)}
    if kind == "speech":
        made["input_features"] = torch.randn(2, 5, 18, generator=generator)
    if kind in ("encoder", "decoder", "pair", "both"):
        texts = 2 if kind == "both" else TEXTS
        made["input_ids"] = torch.randint(5, VOCABULARY, (texts, TOKENS), generator=generator)
        made["input_ids"][:, -1] = 3  # where CLIP reads the text off
        made["attention_mask"] = valid(TOKENS, (TOKENS, 4, 7)[:texts], padding)
    if kind in ("pair", "speech"):
        made["decoder_input_ids"] = torch.randint(
            5, VOCABULARY, (len(next(iter(made.values()))), TARGETS), generator=generator
        )
    return made


def valid(tokens: int, lengths: tuple[int, ...], padding: str) -> Tensor:
    """Mark what is text with 1: `padding` is "none", "left" or "right"."""
    index, count = torch.arange(tokens), torch.tensor(lengths)[:, None]
    marks = {"none": index >= 0 * count, "right": index < count, "left": index >= tokens - count}
    return marks[padding].long()
