"""Tiny random models, the same on every machine: of a fixed seed, with tokenizers made from our own examples."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "docs" / "examples"
CORPUS = [line for path in sorted(EXAMPLES.glob("*.jsonl")) for line in path.read_text().splitlines()]


def bert_tokenizer():
    """A small WordPiece tokenizer: every character of the examples, and their commonest words.

    Its vocabulary is counted here, because WordPiece's trainer gives another one each time.
    """
    from tokenizers import BertWordPieceTokenizer
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    words = Counter()
    bare = BertWordPieceTokenizer(lowercase=True)
    for line in CORPUS:
        words.update(word for word, _ in bare.pre_tokenizer.pre_tokenize_str(bare.normalizer.normalize_str(line)))
    characters = sorted({character for word in words for character in word})
    common = sorted(words, key=lambda word: (-words[word], word))
    specials = ["[PAD]", "[unused1]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokens = list(dict.fromkeys([*specials, *characters, *(f"##{character}" for character in characters), *common]))[:600]
    backend = BertWordPieceTokenizer({token: number for number, token in enumerate(tokens)}, lowercase=True)._tokenizer
    marks = [("[CLS]", backend.token_to_id("[CLS]")), ("[SEP]", backend.token_to_id("[SEP]"))]
    backend.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=marks)
    names = {"unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]", "mask_token": "[MASK]"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=512, **names)


def bpe_tokenizer():
    """A small byte-level BPE tokenizer with T5's and a chat model's special tokens."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    trainer = ByteLevelBPETokenizer()
    specials = ["<pad>", "</s>", "<unk>", *(f"<extra_id_{n}>" for n in range(6))]
    trainer.train_from_iterator(CORPUS, vocab_size=500, special_tokens=specials, show_progress=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=trainer._tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=2048)
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    return tokenizer


def saved(model, tokenizer, folder: Path) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def encoder(folder: Path, kind: str = "Bert") -> Path:
    """A random two-layer encoder, without dropout: at this size it would keep a model from learning anything in a few steps."""
    import torch
    import transformers

    tokenizer = bert_tokenizer()
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    rates = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = getattr(transformers, f"{kind}Config")(vocab_size=len(tokenizer), **sizes, initializer_range=0.3, **rates)
    return saved(getattr(transformers, f"{kind}Model")(config), tokenizer, folder)


def ranker(folder: Path, backbone: Path) -> Path:
    """A random PairRanker over that encoder, in the layout that training saves."""
    import torch

    from blendkit.models.pairrm import save_pairrm
    from blendkit.training.new_pairranker import new_ranker

    torch.manual_seed(0)
    model, tokenizer = new_ranker(str(backbone), 48, 64, "segment")
    for layer in (model.head_layer[1], model.head_layer[4]):
        torch.nn.init.normal_(layer.weight, std=0.5)
    save_pairrm(folder, model, tokenizer, torch.float32)
    return folder


def chat(folder: Path) -> Path:
    """A random chat model (Llama-shaped) with a chat template."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = bpe_tokenizer()
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), **shape, pad_token_id=0, bos_token_id=1, eos_token_id=1, max_position_embeddings=2048)
    return saved(LlamaForCausalLM(config), tokenizer, folder)


def t5(folder: Path) -> Path:
    """A random seq2seq model (T5-shaped)."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    tokenizer = bpe_tokenizer()
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, pad_token_id=0, eos_token_id=1, decoder_start_token_id=0
    )
    return saved(T5ForConditionalGeneration(config), tokenizer, folder)


def with_relevance(model, *layers, own=0):
    """A late-paired ranker with a head for relevance that is drawn, and `own` layers for it."""
    import torch

    from blendkit.models.relevance import Relevance

    torch.manual_seed(2)
    model.config.relevance_layers, model.config.relevance_own_layers, model.config.relevance_rank = layers, own, 4 * bool(own)
    model.relevance = Relevance(model.pretrained_model, layers, own, 4 * bool(own))
    with torch.no_grad():
        for name, weight in model.relevance.added.named_parameters():
            if name.endswith("widen"):
                weight.normal_(std=0.3)
        # Of about 1, for its logarithm to tell candidates apart.
        for layer in (model.relevance.enter, model.relevance.leave):
            layer.weight.normal_(std=layer.in_features**-0.5)
        model.relevance.weight.fill_(2.0)
    return model
