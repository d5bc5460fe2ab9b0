"""The tables of the forms that neighbours publish, and of the tasks of the paper's appendix. A new one is a function or two and a row here."""

from __future__ import annotations

from blendkit.registry import Registry, Row

_PAIRS, _BENCHMARKS, _CHATS, _TASKS = (f"blendkit.sources.{name}" for name in ("pairs", "benchmarks", "chats", "tasks"))
FORMS = Registry(
    "blendkit.forms",
    {
        "records": Row(f"{_CHATS}:RECORDS", "records, also as a table of columns (see --map)"),
        "csv": Row("blendkit.sources.csv_table:CSV", "a table: instruction, input, output, and a column a model"),
        "messages": Row(f"{_CHATS}:MESSAGES", "conversations of role and content; the last answer is the reference"),
        "sharegpt": Row(f"{_CHATS}:SHAREGPT", "conversations of from and value; the last answer is the reference"),
        "sft": Row(f"{_CHATS}:SFT", "TRL's prompt and completion, or messages; written: the best candidate"),
        "dpo": Row(f"{_PAIRS}:DPO", "TRL's prompt, chosen, rejected"),
        "kto": Row(f"{_PAIRS}:KTO", "TRL's prompt, completion, label"),
        "binarized": Row(f"{_PAIRS}:BINARIZED", "UltraFeedback binarized, TRL's pairs: prompt, chosen, rejected"),
        "ultrafeedback": Row(f"{_BENCHMARKS}:ULTRAFEEDBACK", "openbmb/UltraFeedback: completions with overall scores"),
        "unifiedfeedback": Row(f"{_PAIRS}:UNIFIEDFEEDBACK", "llm-blender/Unified-Feedback: two conversations with ratings"),
        "rewardbench": Row(f"{_PAIRS}:REWARDBENCH", "allenai/reward-bench: prompt, chosen, rejected, subset"),
        "reward-bench-2": Row(f"{_PAIRS}:REWARDBENCH2", "allenai/reward-bench-2: prompt, lists of chosen and rejected"),
        "alpacaeval": Row(f"{_BENCHMARKS}:ALPACAEVAL", "AlpacaEval model_outputs of one or several models"),
        "alpacaeval-annotations": Row(f"{_BENCHMARKS}:ALPACAEVAL_ANNOTATIONS", "AlpacaEval annotations: two outputs and a preference"),
        "mtbench": Row(f"{_BENCHMARKS}:MTBENCH", "lmsys/mt_bench_human_judgments: two conversations and the winner"),
        "arena": Row(f"{_BENCHMARKS}:ARENA", "Arena's battles: model_a, model_b, winner, and conversations or responses"),
        "hh-rlhf": Row(f"{_PAIRS}:HH_RLHF", "Anthropic/hh-rlhf: two transcripts"),
        "lm-eval": Row(f"{_BENCHMARKS}:LM_EVAL", "lm-evaluation-harness samples of a task that generates text"),
        "openai-batch": Row(f"{_CHATS}:OPENAI_BATCH", "OpenAI's batch: the requests and the output, joined by custom_id"),
    },
)
TASKS = Registry(
    "blendkit.tasks",
    {
        "cnn-dailymail": Row(f"{_TASKS}:CNN_DAILYMAIL", "articles and their highlights"),
        "wmt18-zh-en": Row(f"{_TASKS}:WMT18", "translations from Chinese to English"),
        "commongen": Row(f"{_TASKS}:COMMONGEN", "sentences that use given concepts"),
    },
)
# Which pairs of a record's candidates --to pairs takes.
PAIRS = ("best-worst", "best-random", "all")
