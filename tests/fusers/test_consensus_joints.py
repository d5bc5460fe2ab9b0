"""What the consensus puts between sentences: no two touch, none loses a word, and no space gets between Chinese or Japanese ones."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from blendkit.fusers.consensus import UNSPACED, fuse_units, gap, units

# A sentence of each kind, with a number by which it is found again.
KINDS = {
    "latin": ("Number {} says this.", "Is it {}?", "Then {} was baked", 'He said: "Take {}!"'),
    "han": ("第{}句说明酵母。", "你要{}吗？", "面团{}发酵了!", "他说：「{}就好。」"),
    "kana": ("パンは{}で焼く。", "それは{}ですか？"),
}
PROTOTYPES = torch.eye(5)


@st.composite
def sentence(draw, number: int) -> tuple[str, torch.Tensor]:
    """Its vector is near that of others, or the same, so that there are newcomers, repetitions, and sentences that nobody supports."""
    kind = draw(st.sampled_from(list(KINDS)))
    vector = PROTOTYPES[draw(st.integers(0, 3))] + draw(st.sampled_from([0.0, 0.0, 0.6, -0.6])) * PROTOTYPES[4]
    return draw(st.sampled_from(KINDS[kind])).format(f"{number}"), vector / vector.norm()


@st.composite
def candidates(draw) -> list[tuple[list[tuple[str, str]], torch.Tensor]]:
    """Two to four, of one to five sentences each, between which stand spaces, or nothing behind a full-width sign, or lines."""
    found, number = [], 100
    for _ in range(draw(st.integers(2, 4))):
        parts, vectors = [], []
        for _ in range(draw(st.integers(1, 5))):
            number += 1
            text, vector = draw(sentence(number))
            spaced = " " if re.search(r"[a-z]", text) else ""
            parts.append((text, draw(st.sampled_from([spaced, spaced, "\n", "\n\n"]))))
            vectors.append(vector)
        parts[-1] = (parts[-1][0], draw(st.sampled_from(["", "\n"])))
        found.append((parts, torch.stack(vectors)))
    return found


def texts_in(fused: str, parts: list[list[tuple[str, str]]]) -> list[tuple[int, int, str, int]]:
    """(start, end, sentence, candidate) of each sentence of which the number is in the text, in its order."""
    found = []
    for candidate, part in enumerate(parts):
        for text, _ in part:
            (number,) = re.findall(r"\d+", text)
            assert fused.count(number) <= 1 and fused.count(text) == fused.count(number), f"{text} lost something in {fused!r}"
            if number in fused:
                found.append((fused.index(text), fused.index(text) + len(text), text, candidate))
    return sorted(found)


# The space that stood beside the sentence that is left out.
@example([([("第101句。", ""), ("Number 102.", " "), ("第103句。", "")], PROTOTYPES[[0, 0, 1]]), ([("Number 104.", "")], PROTOTYPES[[0]])])
@given(candidates())
def test_sentences_stay_whole_and_do_not_touch(given_candidates):
    parts, embeddings = [part for part, _ in given_candidates], [vectors for _, vectors in given_candidates]
    fused = fuse_units(parts, embeddings, torch.ones(len(parts)) / len(parts))
    found = texts_in(fused, parts)
    assert found[0][2] == parts[0][0][0] and found[0][0] == 0 and found[-1][1] == len(fused)
    frame = [text for text, _ in parts[0]]
    assert [text for *_, text, candidate in found if candidate == 0] == [text for text in frame if text in fused]
    for (_, end, before, _), (start, _, behind, _) in pairwise(found):
        between = fused[end:start]
        assert not between.strip(), f"{between!r} belongs to no sentence"
        unspaced = [bool(re.search(f"[{UNSPACED}]", text)) for text in (before, behind)]
        if all(unspaced):
            assert " " not in between, f"a space in {before}{between}{behind}"
        elif not unspaced[0]:
            assert between, f"{before} and {behind} touch"
        elif before[-1] == "!":
            assert between


@pytest.mark.parametrize(
    ("frame", "others", "fused"),
    [
        (
            "Yeast makes gas in the dough. It is baked. ",
            "Yeast makes gas in the dough. Kneading gives structure.",
            "Yeast makes gas in the dough. Kneading gives structure. It is baked.",
        ),
        (
            "Yeast makes gas in the dough.\n\nIt is baked.",
            "Yeast makes gas in the dough. Kneading gives structure.",
            "Yeast makes gas in the dough. Kneading gives structure.\n\nIt is baked.",
        ),
        ("酵母在面团中产生气体。然后烘烤。", "酵母在面团中产生气体。揉面形成结构。", "酵母在面团中产生气体。揉面形成结构。然后烘烤。"),
        ("酵母在面团中产生气体!\n然后烘烤。", "酵母在面团中产生气体!\n揉面形成结构!", "酵母在面团中产生气体!揉面形成结构!\n然后烘烤。"),
        ("酵母がガスを出す。そして焼く。", "酵母がガスを出す。こねると構造ができる。", "酵母がガスを出す。こねると構造ができる。そして焼く。"),
        (
            "- Yeast makes gas in the dough\n- It is baked",
            "It rises. Kneading gives structure.",
            "- Yeast makes gas in the dough\nKneading gives structure.\n- It is baked",
        ),
    ],
)
def test_a_newcomer_stands_behind_its_neighbour(frame, others, fused):
    """From the text as it came to the text as it goes: the second sentence of the others is a newcomer, nearest the frame's first."""
    parts = [units(frame), units(others), units(others)]
    first, last, new = torch.eye(4)[0], torch.eye(4)[1], torch.tensor([0.8, 0.0, 0.6, 0.0])
    embeddings = [torch.stack([first, last]), *[torch.stack([first, new])] * 2]
    assert [len(part) for part in parts] == [2, 2, 2]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("blendkit.fusers.consensus.LONE", 0.0)
        patch.setattr("blendkit.fusers.consensus.GROWTH", 3.0)
        assert fuse_units(parts, embeddings, torch.ones(3) / 3) == fused


def test_a_paragraph_stays_one_where_its_last_sentence_is_left_out():
    parts = [units("Yeast makes gas. Nobody says so.\n\nIt is baked."), units("Yeast makes gas. It is baked.")]
    one, lone, two = torch.eye(3)[0], torch.eye(3)[2], torch.eye(3)[1]
    assert fuse_units(parts, [torch.stack([one, lone, two]), torch.stack([one, two])], torch.ones(2) / 2) == "Yeast makes gas.\n\nIt is baked."


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("这是第一句。这是第二句！真的吗？", [("这是第一句。", ""), ("这是第二句！", ""), ("真的吗？", "")]),
        ("これは文です。 次です。\n終わり", [("これは文です。", " "), ("次です。", "\n"), ("終わり", "")]),
        ("他说：「好。」然后走了。", [("他说：「好。」", ""), ("然后走了。", "")]),
        ("One. Two! Three?", [("One.", " "), ("Two!", " "), ("Three?", "")]),
    ],
)
def test_sentences_of_a_text(text, expected):
    assert units(text) == expected
    assert "".join(sentence + ending for sentence, ending in expected) == text


@pytest.mark.parametrize(
    ("before", "behind", "between"),
    [
        ("structure.", "Kneading", " "),
        ("好。", "Kneading", ""),
        ("Good.", "好。", " "),
        ("好!", "很好", ""),
        ("好!", "Good", " "),
        ("```\nx\n```", "Good", "\n"),
        ("!", "?", " "),
    ],
)
def test_gap(before, behind, between):
    assert gap(before, behind) == between
