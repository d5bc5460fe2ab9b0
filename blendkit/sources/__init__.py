"""The tables of the forms that neighbours publish, and of the tasks of the paper's appendix. A new one is a function or two and a row here."""

from __future__ import annotations

from blendkit.registry import Registry, Row

_FORMS, _TASKS = "blendkit.sources.forms", "blendkit.sources.tasks"
FORMS = Registry(
    "blendkit.forms",
    {
        "ultrafeedback": Row(f"{_FORMS}:ULTRAFEEDBACK", "openbmb/UltraFeedback: completions with overall scores"),
        "binarized": Row(f"{_FORMS}:BINARIZED", "UltraFeedback binarized, TRL's pairs: prompt, chosen, rejected"),
        "unifiedfeedback": Row(f"{_FORMS}:UNIFIEDFEEDBACK", "llm-blender/Unified-Feedback: two conversations with ratings"),
        "rewardbench": Row(f"{_FORMS}:REWARDBENCH", "allenai/reward-bench: prompt, chosen, rejected, subset"),
        "alpacaeval": Row(f"{_FORMS}:ALPACAEVAL", "AlpacaEval model_outputs of one or several models"),
        "alpacaeval-annotations": Row(f"{_FORMS}:ALPACAEVAL_ANNOTATIONS", "AlpacaEval annotations: two outputs and a preference"),
        "mtbench": Row(f"{_FORMS}:MTBENCH", "lmsys/mt_bench_human_judgments: two conversations and the winner"),
        "hh-rlhf": Row(f"{_FORMS}:HH_RLHF", "Anthropic/hh-rlhf: two transcripts"),
        "csv": Row(f"{_FORMS}:CSV", "a table: instruction, input, output, and a column a model"),
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
