"""Tiny tokenizers in the shape of the families that people use, each with its control tokens and a chat template."""

from __future__ import annotations

from conftest import CORPUS, bert_tokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if '</think>' in m['content'] %}{{ m['content'].split('</think>')[-1] }}"
    "{% else %}{{ m['content'] }}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA_2 = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %} {{ m['content'] | trim }} </s>"
    "{% else %}<s>[INST] {{ m['content'].strip() }} [/INST]{% endif %}{% endfor %}"
)
LLAMA_3 = (
    "<|begin_of_text|>{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "<bos>{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
# The role makes the token, as in Phi-3 and Zephyr; nothing stands between role and content of some turns.
ROLES = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
JOINED = "{% for m in messages %}{{ m['content'] }}{% endfor %}</s>"


def _finished(backend, template, special, plain=(), **names):
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    backend.add_tokens([AddedToken(token, normalized=False) for token in plain])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=100_000, **names)
    tokenizer.chat_template = template
    return tokenizer


def _byte_level(**settings):
    backend = Tokenizer(models.BPE(**settings))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    backend.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    return backend


def chatml():
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    return _finished(_byte_level(), CHATML, special, ("<think>", "</think>", "<tool_call>"), eos_token="<|im_end|>", pad_token="<|endoftext|>")


def llama_2():
    backend = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False))
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
    return _finished(backend, LLAMA_2, (), bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def llama_3():
    special = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|reserved_special_token_0|>")
    return _finished(_byte_level(ignore_merges=True), LLAMA_3, special, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>")


def gemma():
    """Its control tokens are in the vocabulary, and merges lead there, as in a conversion from SentencePiece."""
    turns = ["<start_of_turn>", "<end_of_turn>", "<table>"]
    backend = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    backend.train_from_iterator([*CORPUS, *turns * 200, "a  b    c\n\nd"], trainers.BpeTrainer(vocab_size=450, special_tokens=special, show_progress=False))
    assert all(backend.token_to_id(token) is not None for token in turns), "the merges do not lead to the control tokens, so nothing was tried"
    return _finished(backend, GEMMA, turns[:2], ("<table>", "\n\n", "▁▁", "<unused7>"), bos_token="<bos>", eos_token="<eos>", unk_token="<unk>")


def t5():
    """A Unigram vocabulary whose best pieces are the control tokens' own."""
    special = ["<pad>", "</s>", "<unk>", *(f"<extra_id_{n}>" for n in range(4))]
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.train_from_iterator(CORPUS, trainers.UnigramTrainer(vocab_size=300, special_tokens=special, unk_token="<unk>", show_progress=False))
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)])
    return _finished(backend, JOINED, special, eos_token="</s>", unk_token="<unk>", pad_token="<pad>")


def bert():
    """Lower case, so that a control token that is normalized is found in capitals, too."""
    tokenizer = bert_tokenizer()
    tokenizer.add_tokens([AddedToken("<note>", normalized=True), AddedToken("<alone>", single_word=True), "covid"])
    return tokenizer


def roles():
    special = ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "</s>")
    tokenizer = _finished(_byte_level(), ROLES, special, eos_token="</s>")
    tokenizer.add_special_tokens({"mask_token": AddedToken("<mask>", lstrip=True)})
    return tokenizer


def byt5():
    """No fast form: a tokenizer written in Python."""
    tokenizer = ByT5Tokenizer(extra_ids=3)
    tokenizer.chat_template = JOINED
    return tokenizer


FAMILIES = {"chatml": chatml, "llama-2": llama_2, "llama-3": llama_3, "gemma": gemma, "t5": t5, "bert": bert, "roles": roles, "byt5": byt5}
