"""Every language: a table of eight by metrics of words, the tokenizers, and what is told of texts that are hardly read."""

from __future__ import annotations

import json
import math
import re

import pytest
from conftest import ROOT, examples, lines, parsed

from blendkit.scorers import SCORERS

# A sentence, the same with one word changed, and another one.
LANGUAGES = {
    "English": ("The old farmer sold seven apples at the market.", "The old farmer sold seven pears at the market.", "Rain is expected tonight over hills."),
    "German": ("Der alte Bauer verkaufte sieben Äpfel auf dem Markt.", "Der alte Bauer verkaufte sieben Körbe auf dem Markt.", "Heute Nacht kommt wohl Regen."),
    "Russian": ("Старый фермер продал семь яблок на рынке.", "Старый фермер продал семь груш на рынке.", "Сегодня ночью ожидается сильный дождь."),
    "Arabic": ("باع المزارع العجوز سبع تفاحات في السوق.", "باع المزارع العجوز سبع بطيخات في السوق.", "من المتوقع هطول أمطار غزيرة الليلة."),
    "Hindi": ("बूढ़े किसान ने बाज़ार में सात सेब बेचे।", "बूढ़े किसान ने बाज़ार में सात आम बेचे।", "आज रात पहाड़ियों पर बारिश होगी।"),
    "Chinese": ("老农民在市场上卖了七个苹果。", "老农民在市场上卖了七个鸭梨。", "预计今晚北部山区会下大雨。"),
    "Japanese": ("年老いた農夫は市場でリンゴを七つ売った。", "年老いた農夫は市場でスイカを七つ売った。", "今夜は北の丘で雨が降る見込みです。"),
    "Thai": ("ชาวนาแก่ขายแอปเปิลเจ็ดลูกที่ตลาด", "ชาวนาแก่ขายมะม่วงเจ็ดลูกที่ตลาด", "คืนนี้คาดว่าจะมีฝนตกหนัก"),
}  # fmt: skip
# The metrics that docs/scorers.md names for every language.
FOR_ALL = (
    "bleu:auto", "bleu:lang", "chrf", "rouge1:lang", "rouge1:auto", "rouge2:lang", "rougeL:lang", "rougeL:auto", "rougeLsum:lang", "token-f1:lang",
    "token-f1:auto",
)  # fmt: skip


def record(reference, *texts, name=None):
    return {"id": name, "instruction": "x", "output": reference, "candidates": [{"model": str(place), "text": text} for place, text in enumerate(texts)]}


@pytest.fixture
def scores(called):
    """`scores(records, *metrics, flags)` gives each record's scores, metric by metric, and what was told."""

    def run(records, *metrics, flags=()):
        asked = [part for place, metric in enumerate(metrics) for part in ("--metric", f"m{place}={metric}")]
        named = [row | {"id": row["id"] or str(place)} for place, row in enumerate(records)]
        code, out, err = called("score", *asked, *flags, stdin=lines(named))
        assert code == 0, err
        found = parsed(out)
        return [[[candidate["scores"][f"m{place}"] for candidate in row["candidates"]] for place in range(len(metrics))] for row in found], err, found

    return run


def test_eight_languages_in_a_sane_order(scores):
    found, err, _ = scores([record(texts[0], *texts) for texts in LANGUAGES.values()], *FOR_ALL)
    assert err == ""
    for language, row in zip(LANGUAGES, found, strict=True):
        for metric, (same, changed, other) in zip(FOR_ALL, row, strict=True):
            assert same == pytest.approx(100 if metric.startswith(("bleu", "chrf")) else 1), (language, metric)
            assert same > changed > other, (language, metric, same, changed, other)


def test_exact_match_in_eight_languages(scores):
    found, _, _ = scores([record(texts[0], *texts, f" {texts[0]} ") for texts in LANGUAGES.values()], "exact-match", "exact-match:lang", "exact-match:auto")
    assert found == [[[1, 0, 0, 1]] * 3] * 8


@pytest.mark.parametrize(
    ("text", "same", "other"),
    [
        ("ສະບາຍດີ", "ສະບາຍດີ", "ຂອບໃຈ"),  # Lao
        ("ភាសាខ្មែរ", "ភាសាខ្មែរ", "អរគុណ"),  # Khmer
        ("မြန်မာဘာသာ", "မြန်မာဘာသာ", "ကျေးဇူး"),  # Burmese
        ("안녕하세요, 세계!", "안녕하세요 세계", "고맙습니다"),  # Korean
        ("STRASSE, Überfluß", "Straße überfluss", "Weg"),  # case
        ("Tie\u0302\u0301ng Vie\u0323\u0302t", "Tiếng Việt", "Khác"),  # forms of Unicode
        ("👍", "👍", "👎"),
        ("!!!", "!!!", "?"),
    ],
)
def test_lang_compares_words_of_any_language(scores, text, same, other):
    (found,), err, _ = scores([record(text, same, other)], "rouge1:lang", "token-f1:lang", "exact-match:lang")
    assert err == ""
    assert found[2] == [1, 0]
    assert all(equal == 1 and different < 0.25 for equal, different in found[:2])


def test_words_stay_whole_where_there_are_spaces_and_characters_stand_alone_where_there_are_none():
    from blendkit.scorers.tokenizers import make_tokenizer, words

    lang = make_tokenizer("lang")
    assert words("It's 3.14 in foo-bar, l'été!", lang) == ["it's", "3.14", "in", "foo", "bar", "l'été"]
    assert words("使用PyTorch编程", lang) == ["使", "用", "pytorch", "编", "程"]
    assert words("コーヒーを飲む", lang) == ["コ", "ー", "ヒ", "ー", "を", "飲", "む"]
    assert words("ที่นี่ 3 จาน", lang) == ["ที่", "นี่", "3", "จ", "า", "น"]
    assert words("क्या हाल है।", lang) == ["क्या", "हाल", "है"]


def test_bleu_with_sacrebleus_tokenizers_is_sacrebleus(scores):
    import sacrebleu

    reference, changed, _ = LANGUAGES["Chinese"]
    for name in ("zh", "char", "13a", "intl"):
        ((found,),), _, rows = scores([record(reference, changed, "和 PyTorch 2.0")], f"bleu:{name}")
        expected = [sacrebleu.sentence_bleu(text, [reference], tokenize=name).score for text in (changed, "和 PyTorch 2.0")]
        assert found == pytest.approx(expected, abs=1e-5)
        assert f"|tok:{name}|" in rows[0]["signatures"]["score:m0"]


def test_auto_goes_by_the_script_of_the_reference_and_the_record_says_how(scores, tmp_path):
    references = ["the cat", "Кот сидит", "我有 TensorFlow 和 GPU 卡", "今日は東京駅で", "แมว 3 ตัว", "2024", "", "안녕 세계"]
    records = [record(text, "x", name=str(place)) for place, text in enumerate(references)]
    flags = ("--tokenize", "auto", "--manifest", tmp_path / "manifest.json")
    _, _, found = scores(records, "bleu", "rouge1", "token-f1", "exact-match", "mbr:rouge1", flags=flags)
    taken = [[row["signatures"][f"score:m{place}"] for row in found] for place in range(5)]
    assert [signature.partition("tok:")[2].partition("|")[0] for signature in taken[0]] == ["13a", "13a", "zh", "char", "char", "13a", "13a", "13a"]
    own = [True, False, False, False, False, True, True, False]
    assert ["tok:lang-regex-" not in signature for signature in taken[1]] == own
    assert ["norm:squad" in signature for signature in taken[2]] == ["norm:squad" in signature for signature in taken[3]] == own
    signatures = json.loads((tmp_path / "manifest.json").read_text())["signatures"]
    assert [signature.partition("tok:")[2].partition("|")[0] for signature in signatures[:5]] == ["auto"] * 5
    assert set(signatures[5:]) == {row["signatures"][name] for row in found for name in row["signatures"]} - set(signatures[:5])


def test_a_tokenizer_behind_a_metric_goes_before_the_flag(scores):
    reference, changed, _ = LANGUAGES["Thai"]
    (found,), _, rows = scores([record(reference, changed)], "bleu", "bleu:13a", "chrf", "rouge1", "rouge1:rouge", flags=("--tokenize", "lang"))
    assert [score > 0 for (score,) in found] == [True, False, True, True, False]
    assert "tok:lang-regex-" in rows[0]["signatures"]["score:m0"] and "|tok:13a|" in rows[0]["signatures"]["score:m1"]


def test_text_of_which_rouge_leaves_nothing_is_told_once(scores, tmp_path):
    thai, latin = LANGUAGES["Thai"], LANGUAGES["English"]
    records = [
        record(latin[0], *latin, name="latin"),
        record(thai[0], *thai, name="thai"),
        record("2024年老农民在市场上", "2024年预计今晚会下大雨", name="hardly"),
        record("yes", "", "!!!", " ", name="signs"),
    ]
    found, err, rows = scores(records, "rouge1", "rougeL", "mbr:rouge2", flags=("--manifest", tmp_path / "manifest.json"))
    assert found[1][:2] == [[0, 0, 0]] * 2
    lost = [{name: "|lost:letters|" in signature for name, signature in row["signatures"].items()} for row in rows]
    assert [row["score:m0"] for row in lost] == [row["score:m1"] for row in lost] == [False, True, True, True]
    assert [row["score:m2"] for row in lost] == [False, True, False, True]  # one candidate alone is compared with nothing
    told = err.splitlines()
    assert told[0].startswith("blendkit score: m0, m1: of 6 of 12 texts ROUGE's own tokenizer, ") and "(first: record thai)" in told[0]
    assert told[1].startswith("blendkit score: m2: of 4 of 9 texts ROUGE's own tokenizer, ") and len(told) == 2
    assert "rouge1:lang" in told[0]
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["unread"]["m0"] == {"texts": 12, "unread": 6, "first": "thai"}
    assert [("|lost:letters|" in signature) for signature in manifest["signatures"]].count(True) == 3


def test_latin_text_is_scored_as_ever_and_nothing_is_said(scores):
    from rouge_score.rouge_scorer import RougeScorer

    records = [*examples(4), record(LANGUAGES["German"][0], *LANGUAGES["German"][1:])]
    found, err, rows = scores(records, "rouge1", "rouge2", "rougeL", "rougeLsum")
    assert err == ""
    kinds = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    plain = RougeScorer(kinds, use_stemmer=True)
    for given, row, asked in zip(found, rows, records, strict=True):
        for kind, numbers in zip(kinds, given, strict=True):
            assert numbers == [round(plain.score(asked["output"], candidate["text"])[kind].fmeasure, 6) for candidate in asked["candidates"]]
        assert row["signatures"]["score:m0"].startswith("rouge1|f1|stem:yes|v:rouge-score-")


@pytest.mark.parametrize("tokenizer", ["lang", "auto", "13a", "intl", "zh", "char", "ja-mecab", "ko-mecab"])
def test_any_text_goes_through_any_tokenizer(scores, tokenizer):
    if tokenizer.endswith("mecab"):
        pytest.importorskip("MeCab" if tokenizer == "ja-mecab" else "mecab_ko")
    texts = ["", "  ", "\n\n", "\x00\x01", "\u200b", "\u202eabc", "👩‍👩‍👧", "[SEP] &quot; <skipped>", "x" * 3000, *(texts[0] for texts in LANGUAGES.values())]
    metrics = [f"{name}:{tokenizer}" for name in ("bleu", "rouge1", "rougeLsum", "token-f1", "exact-match")]
    found, _, _ = scores([record(text, *texts, name=str(place)) for place, text in enumerate(texts)], *metrics)
    assert all(math.isfinite(score) for row in found for numbers in row for score in numbers)
    for place in range(8, len(texts)):
        assert [numbers[place] for numbers in found[place]] == pytest.approx([100, 1, 1, 1, 1]), texts[place]


@pytest.mark.parametrize(("module", "name", "language"), [("MeCab", "ja-mecab", "Japanese"), ("mecab_ko", "ko-mecab", None)])
def test_mecab_finds_words(scores, module, name, language):
    pytest.importorskip(module)
    korean = ("늙은 농부가 시장에서 사과 일곱 개를 팔았다.", "늙은 농부가 시장에서 수박 일곱 개를 팔았다.", "오늘 밤 비가 올 것으로 예상된다.")
    texts = LANGUAGES[language] if language else korean
    (found,), _, rows = scores([record(texts[0], *texts)], f"bleu:{name}", f"rouge1:{name}", f"token-f1:{name}")
    assert all(same > changed > other for same, changed, other in found)
    assert f"|tok:{name}-" in rows[0]["signatures"]["score:m0"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--metric rouge1:thai", "--metric rouge1: no tokenizer thai: expected one of auto, lang, rouge, 13a, "),
        ("--metric bleu --tokenize latin", "--metric bleu: no tokenizer latin: expected one of auto, lang, 13a, "),
        ("--metric bleu:chr", "; did you mean char?"),
        ("--metric chrf --tokenize auto", "--tokenize: chrf has no such option; bleu, rouge1, "),
        ("--metric mbr:chrf --tokenize auto", "--tokenize: mbr has no such option; bleu, rouge1, "),
        ("--metric chrf:zh", "--metric chrf:zh: chrf takes no model"),
    ],
)
def test_a_tokenizer_that_there_is_not(called, arguments, said):
    code, out, err = called("score", *arguments.split(), stdin="not read")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err


def test_flores200_asks_for_its_file_and_reads_it(blendkit, tmp_path, monkeypatch):
    sentencepiece = pytest.importorskip("sentencepiece")
    monkeypatch.setenv("SACREBLEU", str(tmp_path))
    file = tmp_path / "models" / "flores200sacrebleuspm"
    reference, changed, _ = LANGUAGES["Thai"]
    asked = ("score", "--metric", "bleu:flores200", "--metric", "rouge1:flores200")
    done = blendkit(*asked, stdin="not read")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (66, "", 1)
    assert f"the tokenizer flores200 needs a file that is not there: {file}; fetch it once: curl -L --create-dirs -o {file} https://" in done.stderr
    file.parent.mkdir()
    file.write_bytes(b"<html>")
    done = blendkit(*asked, stdin="not read")
    assert (done.returncode, done.stdout) == (66, "")
    assert "blendkit score: the tokenizer flores200 cannot be loaded: " in done.stderr
    with file.open("wb") as model:
        texts = [text for texts in LANGUAGES.values() for text in texts]
        sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(texts), model_writer=model, vocab_size=300, hard_vocab_limit=False, minloglevel=2)
    done = blendkit(*asked, stdin=lines([record(reference, reference, changed, name="1")]))
    assert done.returncode == 0, done.stderr
    same, other = (candidate["scores"] for candidate in parsed(done.stdout)[0]["candidates"])
    assert same["bleu"] == pytest.approx(100) and same["rouge1"] == 1
    assert 0 < other["bleu"] < 100 and 0 < other["rouge1"] < 1
    assert "|tok:flores200|" in parsed(done.stdout)[0]["signatures"]["score:bleu"]


UNKNOWN = "texts more than half of the tokens are unknown to the model embedded, which cannot tell such texts apart (first: record thai); "


def hardly_read():
    thai, latin = LANGUAGES["Thai"], LANGUAGES["English"]
    return [record(latin[0], *latin, name="latin"), record(thai[0], *thai, name="thai") | {"instruction": "Say it in Thai."}]


def test_texts_that_the_embedded_encoder_does_not_know_are_told_once(scores, tmp_path):
    found, err, _ = scores(hardly_read(), "bertscore", "bertscore-recall", "mbr:bertscore", "cosine", flags=("--manifest", tmp_path / "manifest.json"))
    assert found[1][0] == [1, 1, 1]  # which is why
    told = err.splitlines()
    assert told[0].startswith(f"blendkit score: m0, m1, m2: of 3 of 6 {UNKNOWN}a multilingual one can, such as bertscore:")
    assert told[1].startswith(f"blendkit score: m3: of 3 of 8 {UNKNOWN}a multilingual one can, such as cosine:") and len(told) == 2
    assert json.loads((tmp_path / "manifest.json").read_text())["unread"]["m0"] == {"texts": 6, "unread": 3, "first": "thai"}
    _, err, _ = scores(hardly_read()[:1], "bertscore", "cosine")
    assert err == ""


def test_texts_that_the_embedded_ranker_judge_and_fuser_do_not_know_are_told_once(called, tmp_path):
    ranked = lines([row | {"top": [0, 1, 2], "ranks": {"r": [1, 2, 3]}} for row in hardly_read()])
    for command, count, instead in (
        (("pair",), "3 of 8", "a ranker of a multilingual backbone can (train ranker --backbone), or a judge"),
        (("judge",), "3 of 6", "a language model judges them"),
        # Each of its rounds shows texts of a record again.
        (("judge", "--schedule", "bubble", "--window", "1"), "3 of 6", "a language model judges them"),
        (("fuse",), "3 of 6", "another model fuses them"),
    ):
        code, _, err = called(*command, "--manifest", tmp_path / "manifest.json", stdin=ranked)
        assert code == 0
        assert err.startswith(f"blendkit {command[0]}: of {count} {UNKNOWN}{instead}") and err.count("\n") == 1
        assert '"first":"thai"' in (tmp_path / "manifest.json").read_text().replace(" ", "")
        code, _, err = called(*command, stdin=ranked.splitlines(keepends=True)[0])
        assert (code, err) == (0, "")


def test_a_tokenizer_without_an_unknown_token_knows_all_texts(scores, golden):
    """RoBERTa's has one, but reads bytes; so has GPT-2's, which is its end of text as well."""
    _, err, _ = scores(hardly_read(), f"bertscore:{golden / 'checkpoints' / 'roberta'}")
    assert err == ""


def test_empty_texts_under_gpt2s_tokenizer_are_not_unknown():
    from types import SimpleNamespace

    from blendkit.models.unread import UnknownTokens

    ends = dict.fromkeys(("unk_token_id", "bos_token_id", "eos_token_id"), 9)
    tokenizer = SimpleNamespace(**ends, cls_token_id=None, sep_token_id=None, pad_token_id=None, num_special_tokens_to_add=lambda: 0)
    assert not UnknownTokens(tokenizer).most([9])


def test_the_docs_say_for_each_metric_what_it_does_with_languages_without_spaces():
    page = (ROOT / "docs" / "scorers.md").read_text().partition("writes no spaces between words")[2].partition("\n## ")[0]
    named = {name for row in page.splitlines() if row.startswith("| `") for name in re.findall(r"`([^`]+)`", row.split("|")[1])}
    assert named == set(SCORERS.own)
