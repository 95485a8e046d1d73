"""Small random Marian, BART and T5 models, saved by transformers, and texts for them."""

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

BART = {
    "vocab_size": 97,
    "d_model": 24,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 50,
    "decoder_ffn_dim": 38,
    "max_position_embeddings": 40,
    "init_std": 0.3,
}
ENDS = {
    "bos_token_id": 0,
    "pad_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
}
MARIAN_ENDS = {"pad_token_id": 96, "eos_token_id": 0, "decoder_start_token_id": 96, "forced_eos_token_id": None}
T5 = {
    "vocab_size": 97,
    "d_model": 24,
    "d_kv": 5,
    "d_ff": 50,
    "num_layers": 3,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 12,
    "relative_attention_max_distance": 9,
    "decoder_start_token_id": 0,
}
MODELS = {
    "marian": ("MarianMTModel", BART | MARIAN_ENDS | {"scale_embedding": True, "activation_function": "swish"}),
    "bart": ("BartForConditionalGeneration", BART | ENDS),
    "bart, scaled, approximate": (
        "BartForConditionalGeneration",
        BART | ENDS | {"scale_embedding": True, "activation_function": "gelu_new"},
    ),
    "t5": ("T5ForConditionalGeneration", T5),
    "t5, gated": (
        "T5ForConditionalGeneration",
        T5 | {"feed_forward_proj": "gated-gelu"},
    ),
    "mt5": ("MT5ForConditionalGeneration", T5 | {"feed_forward_proj": "gated-gelu"}),
}
INPUTS, LONGEST = 20, 14


def saved(folder, name):
    """Save a random model whose biases and scales are not the first ones."""
    kind, settings = MODELS[name]
    torch.manual_seed(0)
    cls = getattr(transformers, kind)
    model = cls(cls.config_class(**settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:  # Marian's waves are no parameters to us
                parameter.add_(torch.randn_like(parameter) * 0.1)
        if hasattr(model, "final_logits_bias"):
            model.final_logits_bias.normal_()
    model.save_pretrained(folder)
    return model


def drawn(pad, inputs=INPUTS):
    """Draw texts without special tokens, padded at the end."""
    torch.manual_seed(1)
    length_B = torch.randint(1, LONGEST + 1, (inputs,))
    length_B[0] = LONGEST
    valid_BK = torch.arange(LONGEST) < length_B[:, None]
    return torch.where(valid_BK, torch.randint(3, 95, (inputs, LONGEST)), pad), length_B, valid_BK.long()
