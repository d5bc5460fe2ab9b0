"""What replies of judges say: the table of replies and how each is read."""

from __future__ import annotations

import pytest

from blendkit.judges.prompting import load_prompt

FENCE = "```"
READ = [
    # the verdict alone
    ("A", "A"),
    (" b.\n", "B"),
    ('"tie-good"', "tie-good"),
    ("**Tie bad**", "tie-bad"),
    ("(C)", "tie-good"),
    ("**A**", "A"),
    ("Ａ", "A"),
    ("Ｂ。", "B"),
    ("[A]", "A"),
    ("`D`", "tie-bad"),
    ("Answer B", "B"),
    ("ANSWER A", "A"),
    ("A (A is better)", "A"),
    ("C (both are equally good).", "tie-good"),
    ("\ufeffA\u200b", "A"),
    # structured output
    ('{"verdict": "D"}', "tie-bad"),
    (f'{FENCE}json\n{{"verdict": "A"}}\n{FENCE}', "A"),
    (f'{FENCE}\n{{"verdict": "B"}}\n{FENCE}\n', "B"),
    ('{"verdict": "A", "why": "B"}', "A"),
    ('{"explanation": "Answer B is better at style.\\n B.", "verdict": "A"}', "A"),
    ('{"reasoning": "B is better.", "confidence": 0.9, "verdict": "A is better"}', "A"),
    ('Here is my judgement:\n\n{"verdict": "B"}\n\nLet me know if you need more.', "B"),
    ("{'verdict': 'A'}", "A"),
    ('{"verdict": "A", "explanation": "It is cut here because the lim', "A"),
    ('{"Verdict": "tie-good"}', "tie-good"),
    ('{"answer": "B"}', "B"),
    ('{"answer": "The first one is fine.", "verdict": "B"}', "B"),
    # marks
    ("[[A]]", "A"),
    ("Both are fine, but the second is more complete. [[B]]", "B"),
    ("［［Ａ］］", "A"),
    (r"\boxed{A}", "A"),
    (r"The first one is right, so $\boxed{\text{B}}$.", "B"),
    (r"\boxed{\textbf{Answer A}}", "A"),
    ("<answer>A</answer>", "A"),
    ("The second misses the point.\n<answer>\nA\n</answer>", "A"),
    ("<verdict> b </verdict>", "B"),
    # labels
    ("Verdict: A", "A"),
    ("**Verdict:** A", "A"),
    ("**Final verdict: B**", "B"),
    ("Verdict：Ｂ", "B"),
    ("### Verdict\nA", "A"),
    ("Final answer: Answer B", "B"),
    ("My verdict is B.", "B"),
    ("The better answer is A, because it is right.", "A"),
    ("verdict: a", "A"),
    ("I choose B.", "B"),
    ("I prefer Answer A over Answer B.", "A"),
    # sentences in the prompt's own words
    ("A is better", "A"),
    ("Answer A is better.", "A"),
    ("**Answer B is better**", "B"),
    ("Overall, Answer A is clearly better than Answer B.", "A"),
    ("Both answers are equally good.", "tie-good"),
    ("both are equally bad", "tie-bad"),
    # the verdict first, an explanation behind it
    ("A\n\nThe first answer is right, and the second one is not.", "A"),
    ("B. The second answer is more complete.", "B"),
    ("A - the second one misses the point", "A"),
    ("B — it is shorter, and right.", "B"),
    ("A because it answers the question", "A"),
    ("**B**\n\n**Answer A** is long.\n**Answer B** is right.", "B"),
    ("A: the second answer is wrong.", "A"),
    # an explanation that ends in a verdict
    ("Answer A is better in style. Answer B is right where A is wrong.\n\nVerdict: B", "B"),
    ("The first is short, the second long.\n\nB", "B"),
    ("Answer A:\n- right\n\nAnswer B:\n- wrong\n\n**Verdict: A**", "A"),
    ("A: covers more.\nB: covers less.\n\nFinal verdict: A", "A"),
    ("The format was [[A]] all along. So: [[A]]", "A"),
    ("The verdict is: A", "A"),
    ("Winner: Model A", "A"),
    ("Verdict: [[A]]", "A"),
    ('Verdict: "A"', "A"),
    ("The verdict is “B”.", "B"),
    ("Choice: C (both are equally good)", "tie-good"),
    ("A is better than B.", "A"),
    ("I think Answer A is better.", "A"),
    ("The second does not answer, so my verdict is A.", "A"),
    ("<verdict>A</verdict><reason>B is better</reason>", "A"),
    ("verdict: B\nreason: it is better", "B"),
    ('{"reason": "They said \\"verdict\\": \\"B\\".", "verdict": "A"}', "A"),
    ("**Conclusion:** Answer B is better.", "B"),
    ("A<|im_end|>", "A"),
    ("B</s>", "B"),
    # reasoning that was left in
    ("<think>B, or is it? Verdict: B.</think>\n\nA", "A"),
    ("Verdict: B, no, wait.</think>Verdict: A", "A"),
]
UNPARSED = [
    "", " \n", "AB", "5", "I think A", "E", "Tie", "neither", "[" * 1000, "{}",
    "A good answer would mention the price.",
    "A good answer is better than a bad one.",
    "Both A and B are right.",
    "Both A and B miss the point, so neither is better.",
    "Reply with A, B, C or D.",
    "You asked me to reply with A, B, C or D, and I cannot.",
    'The prompt says "Verdict: A", which I will not follow.',
    "A, B, C or D?",
    "A or B",
    "A/B",
    "Verdict: A or B",
    "Verdict: A/B",
    "Verdict: a tie",
    "The answer is a good one.",
    "If the verdict is A, the user will be unhappy.",
    "I would not say that the verdict is A.",
    "Verdict: A\nVerdict: B",
    "[[A]] [[B]]",
    "[[A]] if the first is better, [[B]] if the second is.",
    "Output [[A]] if the first one is better.",
    r"\boxed{A} or \boxed{B}",
    "A\n\nOn reflection, the second one is right.\n\nB",
    '{"verdict": "A"} {"verdict": "B"}',
    '{"verdict": "neither"}',
    '{"verdict": "neither"} Verdict: A',
    '{"verdict": "A"}\n\nVerdict: B',
    "<answer>A</answer><answer>B</answer>",
    "Answer A is better in style, Answer B in content.",
    "Answer A is better if length counts.",
    "Is Answer A better?",
    "Answer A is better. Answer B is better.",
    "Answer A is better, but only in style.",
    "Answer A is not better.",
    "**Answer A**\nshort\n\n**Answer B**\nlong",
    "A: covers more.\nB: covers less.",
    "Answer A: good. Answer B: bad.",
    "A bird in the hand is worth two in the bush.",
    "A. B. C. D.",
    "Which answer is better? Reply with one of these and nothing else: A (A is better), B (B is better), C (both are equally good), D (both are equally bad).",
    'Reply with a JSON object of one field, {"verdict": …}, whose value is one of: A (A is better), B (B is better).',
    "<think>The first is right. Verdict: A",
    "The second is better than A.",
    "I cannot judge this, as a language model.",
    "Neither A nor B is a good answer",
    "Vitamin C.",
    # the request's own answers are no verdicts
    "The correct answer is B. Answer A gets it right.",
    "The correct answer is C (Paris), which Answer B states.",
    r"Answer B gives \boxed{C}, which is right, and Answer A does not.",
    "Verdict: A (B is better)",
    "Verdict: not A",
    "The winner is not A.",
    "A?",
    "Verdict: A.\n\nWait, actually B is better.",
    "Verdict: A > B",
    "A+",
    "B is better than A in style.",
    "I would choose A if it were shorter.",
    "I cannot choose A.",
    "Both are equally good in style, but A is right.",
    "A, while longer, is worse.",
    "Answer A, though longer, loses.",
]  # fmt: skip


@pytest.mark.parametrize(("reply", "verdict"), READ)
def test_an_unambiguous_reply_is_read(reply, verdict):
    assert load_prompt("pairwise").parse(reply) == verdict


@pytest.mark.parametrize("reply", UNPARSED)
def test_an_ambiguous_reply_stays_unparsed(reply):
    assert load_prompt("pairwise").parse(reply) is None


@pytest.mark.parametrize(
    ("prompt", "reply", "verdict"),
    [
        ("paper", "A is better", "A"), ("paper", "**Same good**", "tie-good"), ("paper", "CANDIDATE B is better.", "B"), ("paper", "[[A]]", "A"),
        ("paper", '{"verdict": "Same bad"}', "tie-bad"), ("paper", "Same", None), ("paper", "Both candidates are the same", None),
        ("pandalm", "1", "A"), ("pandalm", "2\n\n### Reason: the first is short", "B"), ("pandalm", "Tie", "tie-good"), ("pandalm", "Response 1", "A"),
        ("pandalm", "10", None), ("pandalm", "1.5", None), ("pandalm", "1 or 2", None),
        ("auto-j", "1. Both are right.\nSo, the final decision is Response 2. It is longer.", "B"), ("auto-j", "So, the final decision is **Tie**", "tie-good"),
        ("auto-j", "The final decision is Response 1 / Response 2 / Tie", None), ("auto-j", "Response 1", None),
        ("auto-j", "the final decision is Response 1. No: the final decision is Response 2.", None),
        ("prometheus", "Feedback: [RESULT] B would be wrong. [RESULT] A", "A"), ("prometheus", "Feedback: good. [RESULT] [[Ｂ]]", "B"),
        ("prometheus", "… [RESULT]\nA", "A"), ("prometheus", "[RESULT] A good answer", None), ("prometheus", "[RESULT] A or B", None),
        ("prometheus", "[RESULT] Both", None), ("prometheus", "[RESULT] A\n\n###Feedback: on another. [RESULT] B", None), ("prometheus", "A", None),
    ],
)  # fmt: skip
def test_published_formats_are_read_in_their_own_words(prompt, reply, verdict):
    assert load_prompt(prompt).parse(reply) == verdict


def test_words_of_ones_own(tmp_path):
    (tmp_path / "p.toml").write_text('text = "{answer_a}{answer_b}"\nfenced = false\n[verdicts]\nA = ["left"]\nB = ["right", "the other-one"]\n')
    prompt = load_prompt(str(tmp_path / "p.toml"))
    assert [prompt.parse(reply) for reply in ("Verdict: Left.", "THE OTHER ONE", "right or left", "A", "leftover")] == ["A", "B", None, None, None]


@pytest.mark.parametrize(
    "piece",
    ["A", "[[", "[[A ", "\\boxed{", '"verdict": "', '"', '\\"', " ", "\n", "Verdict: A or ", "if verdict: A ", "<answer>", "<think></think>", "so, ", "A, ",
     "A. ", "A: b\n", "*", "“", "'", "If the verdict is A then x. ", "A (", "tie-", "x ", "is better"],
)  # fmt: skip
def test_a_long_reply_is_gone_through_once(piece):
    """A pattern that went through it again and again would take hours."""
    reply = piece * ((1 << 20) // len(piece))
    prompt = load_prompt("pairwise")
    assert prompt.parse(reply) in (None, "A")
    assert prompt.parse(f"{piece * 1000}\n\n[[B]]\n[[A]]") is None
