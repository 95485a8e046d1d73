"""Write small random models of Transformers, with tokenizers trained on a few words, into folders."""

import tokenizers
import torch
import transformers

from tests.cli.conftest import WORDS

_TEXTS = [f"the {word} thing number {i} was fine , dull" for words in WORDS.values() for i, word in enumerate(words)]
_BERT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 16}
_LLAMA = {**_BERT, "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 3, "eos_token_id": 3}
_GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "eos_token_id": 3, "bos_token_id": 2}
_T5 = {"d_model": 16, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
_LABELS = {"label2id": {"good": 0, "bad": 1}, "id2label": {0: "good", 1: "bad"}}
KINDS = {
    "bert": ("BertModel", _BERT),
    "bert, masked": ("BertForMaskedLM", _BERT),
    "bert, classifier": ("BertForSequenceClassification", _BERT | _LABELS),
    "bert, numbers": ("BertForSequenceClassification", _BERT | {"num_labels": 1}),
    "gpt2": ("GPT2LMHeadModel", _GPT2),
    "gpt2, classifier": ("GPT2ForSequenceClassification", _GPT2 | _LABELS),
    "llama": ("LlamaForCausalLM", _LLAMA),
    "t5": ("T5ForConditionalGeneration", _T5 | {"pad_token_id": 0, "eos_token_id": 3}),
}


def tokenizer_of(kind):
    """Train a tokenizer: word pieces for BERT, bytes for models of language, which put nothing around a text."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    if kind.startswith("bert"):
        inner = tokenizers.BertWordPieceTokenizer()
        inner.train_from_iterator(_TEXTS, vocab_size=120, special_tokens=[*special, "[MASK]"], show_progress=False)
        inner = inner._tokenizer
        ends = [(name, inner.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
        inner.post_processor = tokenizers.processors.TemplateProcessing("[CLS] $A [SEP]", None, ends)
        return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]")
    inner = tokenizers.ByteLevelBPETokenizer()
    inner.train_from_iterator(_TEXTS, vocab_size=300, special_tokens=special, show_progress=False)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner._tokenizer, eos_token="[SEP]")


def written(kind, folder):
    """Write a model and its tokenizer, and give both."""
    transformers.logging.set_verbosity_error()
    tokenizer, (name, given) = tokenizer_of(kind), KINDS[kind]
    tokenizer.save_pretrained(folder)
    kind_of_model = getattr(transformers, name)
    torch.manual_seed(0)
    model = kind_of_model(kind_of_model.config_class(vocab_size=len(tokenizer), **given)).eval()
    model.save_pretrained(folder)
    return model, tokenizer
