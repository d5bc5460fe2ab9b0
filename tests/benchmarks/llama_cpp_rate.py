"""llama.cpp's side of `local.py`, in an environment of its own: reads lists of prompts, writes the number of tokens that it has decoded.

The prompts of a list are read one by one; then all sequences go on in one batch, each by its likeliest token, a given number of times.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys

import llama_cpp


def main(file: str, new: int) -> None:
    llama_cpp.llama_backend_init()
    threads = len(os.sched_getaffinity(0))
    model = llama_cpp.llama_model_load_from_file(file.encode(), llama_cpp.llama_model_default_params())
    vocabulary = llama_cpp.llama_model_get_vocab(model)
    size = llama_cpp.llama_vocab_n_tokens(vocabulary)
    for line in sys.stdin:
        rows = [tokens(vocabulary, f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n") for text in json.loads(line)]
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = sum(map(len, rows)) + new * len(rows) + 64
        settings.n_batch = settings.n_ubatch = max(512, len(rows))
        settings.n_seq_max, settings.kv_unified = len(rows), True
        settings.n_threads = settings.n_threads_batch = threads
        context = llama_cpp.llama_init_from_model(model, settings)
        batch = llama_cpp.llama_batch_init(settings.n_batch, 0, 1)
        last = [0] * len(rows)
        for number, row in enumerate(rows):
            decode(context, batch, [(token, place, number, place == len(row) - 1) for place, token in enumerate(row)])
            last[number] = likeliest(context, batch.n_tokens - 1, size)
        for step in range(1, new):
            decode(context, batch, [(last[number], len(row) + step - 1, number, True) for number, row in enumerate(rows)])
            last = [likeliest(context, number, size) for number in range(len(rows))]
        llama_cpp.llama_batch_free(batch)
        llama_cpp.llama_free(context)
        print(new * len(rows), flush=True)


def tokens(vocabulary, text: str) -> list[int]:
    raw = text.encode()
    found = (llama_cpp.llama_token * (len(raw) + 8))()
    count = llama_cpp.llama_tokenize(vocabulary, raw, len(raw), found, len(found), False, True)
    return list(found[:count])


def decode(context, batch, entries: list[tuple[int, int, int, bool]]) -> None:
    batch.n_tokens = len(entries)
    for place, (token, position, sequence, wanted) in enumerate(entries):
        batch.token[place], batch.pos[place], batch.logits[place] = token, position, wanted
        batch.n_seq_id[place], batch.seq_id[place][0] = 1, sequence
    if llama_cpp.llama_decode(context, batch):
        raise SystemExit("llama_decode failed")


def likeliest(context, place: int, size: int) -> int:
    import numpy

    logits = ctypes.cast(llama_cpp.llama_get_logits_ith(context, place), ctypes.POINTER(ctypes.c_float))
    return int(numpy.ctypeslib.as_array(logits, (size,)).argmax())


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
