"""Tiny random reward models in the shape of those that people publish: a head, a chat template, and what is missing or odd about each."""

from __future__ import annotations

import json

from families import chatml, llama_3
from tiny_models import bert_tokenizer, saved

SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "initializer_range": 0.3}
ENCODER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "initializer_range": 0.3}
TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
# A system prompt of the template's own, where the conversation has none.
QWEN_25 = "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are a helpful assistant of the house.<|im_end|>\n{% endif %}" + TURNS
# The last answer gets an empty thought.
QWEN_3 = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{% if '</think>' in m.content %}{{ m.content.split('</think>')[-1] }}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
)
# A start of text, and a system header that tells the day.
LLAMA_32 = (
    "{% set day = strftime_now('%d %b %Y') if strftime_now is defined else '26 Jul 2024' %}"
    "{% set own = messages[0].content if messages[0].role == 'system' else '' %}"
    "{{ bos_token }}<|start_header_id|>system<|end_header_id|>\n\nToday Date: {{ day }}\n\n{{ own }}<|eot_id|>"
    "{% for m in messages if m.role != 'system' %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>{% endfor %}"
)
# No system role, and two who speak in turn.
GEMMA = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}<|im_start|>"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
)
# A system message is passed over without a word.
DEAF = "{% for m in messages if m.role in ('user', 'assistant') %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"


def classifier(folder, kind="Qwen3", labels=1, template=QWEN_3, tokenizer=None, dtype=None, written=None, **config):
    """A decoder with a head of so many labels; `labels` may be names, and `written` goes into config.json as it is."""
    import torch
    import transformers

    tokenizer = tokenizer or chatml()
    if template is not None:
        tokenizer.chat_template = template
    torch.manual_seed(0)
    names = [f"LABEL_{place}" for place in range(labels)] if isinstance(labels, int) else list(labels)
    shape = {**SHAPE, "vocab_size": len(tokenizer), "max_position_embeddings": 512, "head_dim": 16, "pad_token_id": tokenizer.pad_token_id, **config}
    described = getattr(transformers, f"{kind}Config")(**shape, id2label=dict(enumerate(names)), label2id={name: place for place, name in enumerate(names)})
    model = getattr(transformers, f"{kind}ForSequenceClassification")(described)
    return edited(saved(model.to(dtype or torch.float32), tokenizer, folder), **(written or {}))


def llama(folder, **more):
    """Llama's: no padding token, neither in the tokenizer nor in the config, and a start of text by template and tokenizer alike."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = llama_3()
    start = tokenizer.bos_token
    # As Llama's own tokenizer does, which would double the template's.
    tokenizer._tokenizer.post_processor = TemplateProcessing(single=f"{start} $A", pair=f"{start} $A $B", special_tokens=[(start, tokenizer.bos_token_id)])
    assert tokenizer.pad_token_id is None and tokenizer("x")["input_ids"][0] == tokenizer.bos_token_id
    return classifier(folder, "Llama", tokenizer=tokenizer, **{"template": LLAMA_32, **more})


def encoder(folder, kind="ModernBert", labels=1, **config):
    """An encoder without a chat template: x and answer are a pair of texts."""
    import torch
    import transformers

    tokenizer = bert_tokenizer()
    torch.manual_seed(0)
    shape = {
        **ENCODER,
        "vocab_size": len(tokenizer),
        "num_labels": labels,
        "pad_token_id": 0,
        **({} if kind == "XLNet" else {"max_position_embeddings": 512}),
        **config,
    }
    return saved(getattr(transformers, f"{kind}ForSequenceClassification")(getattr(transformers, f"{kind}Config")(**shape)), tokenizer, folder)


def sequence_to_sequence(folder):
    """BART's head reads its last end of text, and does not find it in a padded row by itself."""
    import torch
    from transformers import BartConfig, BartForSequenceClassification

    tokenizer = bert_tokenizer()
    torch.manual_seed(0)
    sides = {f"{side}_{key}": value for side in ("encoder", "decoder") for key, value in (("layers", 2), ("attention_heads", 2), ("ffn_dim", 64))}
    specials = {"pad_token_id": 0, "bos_token_id": 3, "eos_token_id": tokenizer.sep_token_id, "decoder_start_token_id": tokenizer.sep_token_id}
    config = BartConfig(vocab_size=len(tokenizer), d_model=32, **sides, max_position_embeddings=512, init_std=0.3, num_labels=1, **specials)
    return saved(BartForSequenceClassification(config), tokenizer, folder)


def writer(folder, template=LLAMA_32):
    """A causal LM, as Nemotron's reward models are published."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = llama_3()
    tokenizer.chat_template = template
    torch.manual_seed(0)
    return saved(LlamaForCausalLM(LlamaConfig(**SHAPE, vocab_size=len(tokenizer), max_position_embeddings=512, pad_token_id=None)), tokenizer, folder)


def edited(folder, file="config.json", **more):
    """The folder, with other values in one of its JSON files; None takes a key out."""
    path = folder / file
    content = json.loads(path.read_text()) | more
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return folder
