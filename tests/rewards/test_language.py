"""What the language reward counts, against texts counted by hand, and how it stands hostile text."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

import rewards
from rewards import Item, Status, Verdict
from rewards.language import Language, count_words, known_language, prose

DATA = Path(__file__).parents[1] / "data" / "gsm8k"

ENGLISH = "we need the total number of apples in all baskets"  # 10 words
CHINESE = "我们需要计算总数"  # 8 characters
JAPANESE = "この問題を解きます"  # 9 characters
RUSSIAN = "нам нужно найти сумму всех чисел и затем проверить ответ"  # 10 words
ARABIC = "نحن نحتاج إلى حساب مجموع الأعداد"  # 6 words
HINDI = "हमें इस समस्या को ध्यान से हल करना है"  # 9 words
KOREAN = "문제를 풀어 봅시다"  # 8 syllables
THAI = "เราต้องหา"  # 8 letters and a tone mark


def judge(text: str, language: str = "en", **options: object) -> Verdict:
    return Language(language, **options).verify([Item(text)])[0]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "language", "counts"),
    [
        (ENGLISH, "en", (10, 10)),
        (CHINESE, "zh", (8, 8)),
        (JAPANESE, "ja", (9, 9)),
        (RUSSIAN, "ru", (10, 10)),
        (ARABIC, "ar", (6, 6)),
        (HINDI, "hi", (9, 9)),
        (KOREAN, "ko", (8, 8)),
        (THAI, "th", (8, 8)),
        (f"{ENGLISH} {CHINESE}", "en", (10, 18)),
        (f"{ENGLISH} {CHINESE}", "zh", (8, 18)),
        (f"{ENGLISH}, {RUSSIAN}; {ARABIC}: {HINDI}", "en", (10, 35)),
        (f"{ENGLISH}, {RUSSIAN}; {ARABIC}: {HINDI}", "ru", (10, 35)),
        (f"{ENGLISH}, {RUSSIAN}; {ARABIC}: {HINDI}", "ar", (6, 35)),
        (f"{ENGLISH}, {RUSSIAN}; {ARABIC}: {HINDI}", "hi", (9, 35)),
        ("我们使用Python计算", "zh", (6, 7)),
        ("don't naïve cafe\u0301 l’été", "en", (4, 4)),
        ("می\u200cخواهم", "fa", (1, 1)),
        ("ልጆች ወደ ትምህርት ቤት", "en", (0, 4)),
        ("ꦲꦏ꧀ ᏣᎳᎩ", "en", (0, 2)),  # scripts that no known language is written in
    ],
)
def test_words_counted_by_hand(text: str, language: str, counts: tuple[int, int]) -> None:
    assert count_words(text, language) == counts


def test_digits_symbols_and_variables_are_no_language() -> None:
    assert count_words("3.14 + 2 = 5,14 ≤ ∞ → ½ ٣ १२ 三" + " 😀 ℝ 𝑥 µ ™", "en") == (0, 1)
    assert count_words("设 x = 3, y = 4, 则 α + β = 7", "zh") == (2, 2)
    assert count_words("θ is the angle", "en") == (3, 3)
    assert count_words("η γωνία", "el") == (2, 2)


@pytest.mark.parametrize(
    "noise",
    [
        "```python\nответ = 计算(x)  # the foreign words\n```",
        "~~~\nfor word in words\n~~~",
        "`print(total_price)`",
        r"\(\text{total} = \frac{price}{2}\)",
        r"\[\begin{aligned} cost &= price \\[4pt] \text{половина} \end{aligned}\]",
        "``print(total_price)``",
        r"$total_{price} + \mathrm{cost}$",
        "$$\ntotal = \\sqrt{price}\n$$",
        r"\begin{align*} price &= \begin{cases} one \\ two \end{cases} \end{align*}",
        r"\displaystyle \quad \alpha \times",
        "https://example.org/some/english/path?query=words www.example.org/words",
        "<think> </think> <br/> <div class='english words'> <|im_end|> <｜end▁of▁sentence｜> &nbsp; &amp;",
    ],
)
def test_code_latex_tags_and_addresses_are_not_counted(noise: str) -> None:
    assert count_words(prose(f"{CHINESE} {noise} {CHINESE}"), "zh") == (16, 16)


def test_what_only_looks_like_latex_is_counted() -> None:
    assert count_words(prose("It costs $5 for one and $10 for two, so a < b and c > d."), "en")[0] == 13
    assert count_words(prose(r"So \boxed{the answer} holds"), "en") == (4, 4)
    assert count_words(prose("an unclosed $ or \\( or \\[ or $$ mark"), "en") == (6, 6)
    assert count_words(prose("one `` two ` three `four`"), "en") == (3, 3)


@pytest.mark.parametrize("fence", ["```", "~~~", "```python\n", "````", "```x``` ```"])
@pytest.mark.parametrize("foreign", [CHINESE, RUSSIAN, ARABIC, THAI])
def test_an_unclosed_fence_hides_nothing(fence: str, foreign: str) -> None:
    own, total = count_words(prose(f"{ENGLISH} {fence} {foreign}\n{foreign}"), "en")
    # The language that a fence names is read as a word where the block turns out to be none.
    named = "python" in fence
    assert (own, total) == (10 + named, 10 + named + 2 * count_words(foreign, "en")[1])
    assert judge(f"<think>{ENGLISH} {fence} {foreign * 9}</think>5").score < 0.5  # type: ignore[operator]


@pytest.mark.parametrize("foreign", [CHINESE, JAPANESE, KOREAN, THAI])
@pytest.mark.parametrize(
    "around",
    [
        "`{}`",
        "``{}``",
        r"\text{{{}}}",
        r"$\text{{{}}}$",
        "${}$",
        "$$\nx = {}\n$$",
        r"\( {} \)",
        r"\[ {} \]",
        r"\begin{{align}} x &= {} \end{{align}}",
        "<a title='{}'>",
        "<!-- {} -->",
        "https://example.org/{}",
        "www.{}",
    ],
)
def test_letters_that_need_no_space_count_wherever_they_stand(foreign: str, around: str) -> None:
    letters = count_words(foreign, "en")[1]
    assert count_words(prose(f"{ENGLISH} {around.format(foreign)}"), "en") == (10, 10 + letters)


def test_a_thought_in_one_formula_is_still_sentences() -> None:
    assert judge(f"`{CHINESE}。{JAPANESE}。`", "zh").score == 8 / 17
    assert judge(f"$$\n{CHINESE}\n{JAPANESE}\n$$", "zh").score == 8 / 17


def test_ten_per_cent_of_mixing_costs_ten_per_cent() -> None:
    # Nine English words for each foreign one: what whole-text identifiers call plain English.
    mixed = "We add both numbers and then check the sum сумма. " * 30
    verdict = judge(f"<think>{mixed}</think>The answer is 4.")
    assert (verdict.status, verdict.score) == (Status.WRONG, 0.9)
    assert judge(f"<think>{'We add both numbers. ' * 30}</think>答案").score == 1.0


def test_only_the_thought_is_judged_unless_told_otherwise() -> None:
    completion = f"<think>{CHINESE}</think>{ENGLISH}"
    assert judge(completion, "zh").score == 1.0
    assert judge(completion, "en").score == 0.0
    assert judge(completion, "en", scope="whole").score == 10 / 18
    assert judge(f"{CHINESE}</think>{ENGLISH}", "zh").score == 1.0, "the template opened the thought"
    assert judge(f"<think>{CHINESE}", "zh").score == 1.0, "cut off within the thought"
    assert judge(ENGLISH).score == 1.0


def test_too_few_words_are_not_judged() -> None:
    for text in ("", "<think></think>" + ENGLISH, "<think>42 = 6 * 7</think>", "one two three four"):
        verdict = judge(text)
        assert (verdict.status, verdict.score) == (Status.NO_ANSWER, None), text
    assert judge("one two three four", min_words=4).score == 1.0


def test_japanese_and_chinese_share_characters_but_not_sentences() -> None:
    assert judge(f"{JAPANESE}。最終回答。", "ja").score == 1.0
    assert judge(f"{JAPANESE}。", "zh").score == 0.0
    assert judge(f"{JAPANESE}。我们需要先计算所有数字的总和。", "ja").score == 9 / 23
    assert judge(f"{CHINESE}。{JAPANESE}。", "zh").score == 8 / 17
    assert judge("店名の“鮮の味”是日文，我们需要计算总价格是多少。", "zh").score == pytest.approx(19 / 21)


def test_the_target_comes_from_the_data_or_the_option() -> None:
    reward = rewards.load("language", language="en")
    texts = [CHINESE, CHINESE, ENGLISH, ENGLISH]
    assert reward(["p"] * 4, texts, language=["zh", None, "en-GB", "zh_Hant"]) == [1.0, 0.0, 1.0, 0.0]
    assert rewards.load("language", language="zh")(["p"], [CHINESE]) == [1.0]
    assert rewards.load("language", column="lang")(["p"], [CHINESE], lang=["zh"], language=["python"]) == [1.0]
    verdict = rewards.verify("language", [{"completion": ENGLISH, "language": "python"}])[0]
    assert (verdict.status, verdict.score) == (Status.BAD_GOLD, None)
    with pytest.raises(ValueError, match="known: af am ar"):
        Language("klingon")
    with pytest.raises(ValueError, match="scope"):
        Language(scope="all")  # type: ignore[arg-type]
    assert known_language("PT-br") == "pt"


GERMAN_SENTENCE = "Wir haben drei Äpfel und brauchen jetzt die ganze Summe. "  # 10 words
ENGLISH_SENTENCE = "We have three apples and now we need the sum. "  # 10 words


def test_same_script_languages_are_told_apart_by_sentence() -> None:
    mixed = ENGLISH_SENTENCE * 9 + GERMAN_SENTENCE
    assert judge(mixed, detect=False).score == 1.0, "scripts alone cannot see it"
    assert judge(mixed).score == 0.9
    assert judge(mixed, "de").score == 0.1
    late = "The price of it is 3.5 dollars, x = 4, " + "and so on " * 30 + ". " + GERMAN_SENTENCE * 9
    assert judge(late, "de").score == pytest.approx(90 / 188, abs=0.01), "not only 80 characters are read"
    assert judge("Let x be the number, then 2x = 10, hence x = 5.").score == 1.0
    russian = "Нам нужно найти сумму всех чисел. "  # 6 words
    ukrainian = "Нам потрібно знайти суму всіх чисел. "  # 6 words
    assert judge(russian + ukrainian, "ru").score == 0.5
    assert judge(ARABIC + ". ما باید مجموع این اعداد را حساب کنیم.", "ar").score == 6 / 14


@pytest.mark.parametrize(
    "foreign",
    [
        "Also gut. Zwei und zwei. Das ist vier. Drei mal vier. Also zwölf. Fertig damit.",  # no sentence of five words
        "Also x = 2 und damit ist y = 3, denn x + y = 5 gilt.",
        "Dividimos ambos lados entre dos y obtenemos la respuesta.",
        "women xian lai kan zhege wenti, yinwei xiaoming you san ge pingguo, suoyi zonggong shi wu ge pingguo.",
        "suoyi daan shi shi er, women ba liang bian chu yi er, dedao x dengyu liu.",
        "Wǒmen xiān lái kàn zhège wèntí, yīnwèi xiǎomíng yǒu sān gè píngguǒ.",
        "wo3men xian1 lai2 kan4 zhe4ge wen4ti2 suo3yi3 da2an4 shi4 wu3",
        "Ni hao, wo men lai jisuan yi xia. Xian suan san cheng yi wu, deng yu shi wu. Ran hou jia shang er.",
        "mazu kono mondai wo kangaemashou, soshite kotae wa go desu.",
        "Davayte reshim etu zadachu, poetomu otvet raven pyati.",
        "Pehle hum dono taraf ko do se bhaag karte hain, phir uttar paanch aata hai.",
    ],
)
def test_what_is_no_english_as_it_is_spelt_earns_nothing_as_english(foreign: str) -> None:
    assert judge(foreign).score == 0.0
    assert judge(f"<think>{foreign} {foreign}\n\n{foreign}</think>{ENGLISH}").score == 0.0
    halved = judge(f"<think>{ENGLISH_SENTENCE * 8} {foreign}</think>")
    assert halved.score is not None and halved.score < 0.95, "also where most of it is English"


@pytest.mark.parametrize(
    "terse",
    [
        "Hence x = 5. Divide: 10/2 = 5. Check: 5*2 = 10. Done, answer five apples",
        "Let triangle ABC have incenter I, circumcenter O, orthocenter H; Euler line collinear.",
        "20 gallons = 160 pints\n160/80 = <<160/80=2>>2 pints\n3.5 * 2 pints = 7 pints\nGeraldo drank 7 pints of tea.",
        "Day 1:50\nDay 2:50(2)=100\nDay 3:100+20=120\nDay 4:2(50+100+120)=540\nTotal:50+100=810 eggs",
        "seven zero zero eight four five two",
        "Wait, hmm. Let me check. Okay. So that's right. Yes. Good.",
        "Okay, so, um, let's see. Sum: 12. Yep.",
        "Ok. Next. Try x = 3. Nope. Try x = 4. Yes! Both fail.",
        "apples pears bananas cherries total seven plus eight equals fifteen",
    ],
)
def test_terse_english_is_still_english(terse: str) -> None:
    assert judge(terse).score == 1.0


def test_worked_solutions_of_gsm8k_are_english() -> None:
    rows = [json.loads(line) for line in (DATA / "train.jsonl").read_text().splitlines()]
    scores = [verdict.score for row in rows if (verdict := judge(row["answer"])).score is not None]
    assert len(scores) >= 15 and sum(scores) / len(scores) > 0.99


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("fr", "Nous divisons les deux côtés par deux. Donc la réponse est cinq. Deux fois cinq font dix."),
        ("gl", "Dividimos ambos lados entre dous. Polo tanto, a resposta é cinco mazás en total."),
        ("da", "Vi deler begge sider med to. Svaret er derfor fem æbler i alt."),
        ("af", "Ons deel albei kante deur twee. Die antwoord is dus altesaam vyf appels."),
        ("vi", "Chúng ta chia cả hai vế cho hai. Vậy đáp án là năm quả táo tất cả."),
        ("hr", "Podijelimo obje strane s dva. Dakle, odgovor je ukupno pet jabuka."),
        ("tr", "İki tarafı ikiye bölüyoruz. Yani cevap toplamda beş elmadır."),
        ("sw", "Tunagawanya pande zote mbili kwa mbili. Kwa hiyo jibu ni matofaa matano."),
        ("be", "Падзелім абедзве часткі на два. Значыць, адказ роўны пяці яблыкам."),
        ("fa", "هر دو طرف را بر دو تقسیم می‌کنیم. پس جواب پنج سیب است."),
        ("mr", "आपण दोन्ही बाजूंना दोनने भागतो. म्हणून उत्तर पाच सफरचंद आहे."),
    ],
)
def test_honest_text_in_many_languages_is_their_own(language: str, text: str) -> None:
    assert judge(text, language).score == 1.0


MARKS = [
    "```",
    "```` ~~~ ",
    "~~~~ ",
    "`a",
    "``a",
    "`漢 ",
    "$漢`",
    r"\(",
    r"\[",
    r"\\[",
    r"\begin{a}",
    r"\begin{a}\end{b}",
    "$",
    "$a",
    "$$a$ ",
    "$ a",
    "<a",
    "&a",
]
TEXTS = ["a", "a'", "e\u0301", "\u0301", "x ", "漢a", ". ", "\n", "https://", "\\", "<think>", "```a</think>"]


def test_hostile_text_takes_linear_time() -> None:
    english = Language("en")
    for unit in MARKS + TEXTS:
        started = time.process_time()
        english.verify([Item(unit * (200_000 // len(unit)))])
        # About 0.2 s; work that grows with the square of the text takes minutes.
        assert time.process_time() - started < 5.0, unit


def test_a_megabyte_of_marks_takes_seconds() -> None:
    text = "".join(unit * 1000 for unit in reversed(MARKS + TEXTS[:-1]))
    text *= 1_000_000 // len(text)
    started = time.process_time()
    for one in (Language("en"), Language("zh")):
        one.verify([Item(text)])
    assert time.process_time() - started < 10.0
