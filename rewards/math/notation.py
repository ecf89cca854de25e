"""Tables: how mathematics is written in Unicode, LaTeX and plain text."""

from __future__ import annotations


def words(text: str) -> frozenset[str]:
    """The words of a text, as a set."""
    return frozenset(text.split())


UNICODE = str.maketrans(
    {
        "−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "﹣": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ",
        "∙": r"\cdot ", "∗": "*", "÷": "/", "∕": "/", "⁄": "/", "√": r"\sqrt ", "π": r"\pi ", "∞": r"\infty ",
        "≤": r"\le ", "⩽": r"\le ", "≥": r"\ge ", "⩾": r"\ge ", "≠": r"\ne ", "∪": r"\cup ", "∩": r"\cap ",
        "∈": r"\in ", "±": r"\pm ", "∓": r"\mp ", "°": r"^\circ ", "º": r"^\circ ", "∅": r"\emptyset ",
        "≈": r"\approx ", "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ",
        "∖": r"\setminus ", "〈": r"\langle ", "〉": r"\rangle ", "⟨": r"\langle ", "⟩": r"\rangle ", "…": "...",
        "½": r"\frac{1}{2}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}",
        "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}", "⅕": r"\frac{1}{5}", "⅖": r"\frac{2}{5}", "⅗": r"\frac{3}{5}",
        "⅘": r"\frac{4}{5}", "⅙": r"\frac{1}{6}", "⅚": r"\frac{5}{6}", "⅛": r"\frac{1}{8}", "⅜": r"\frac{3}{8}",
        "⅝": r"\frac{5}{8}", "⅞": r"\frac{7}{8}", "’": "'", "‘": "'", "“": '"', "”": '"', "∧": r"\land ",
        "∨": r"\lor ", "∛": r"\sqrt[3]", "∜": r"\sqrt[4]", "′": "'", "″": "''", "∑": r"\sum ", "∏": r"\prod ",
        "∫": r"\int ", "→": r"\to ", "⌊": r"\lfloor ", "⌋": r"\rfloor ", "⌈": r"\lceil ", "⌉": r"\rceil ",
        "λ": r"\lambda ", "μ": r"\mu ", "φ": r"\phi ", "ω": r"\omega ", "σ": r"\sigma ", "γ": r"\gamma ",
        "，": ",", "、": ",", "；": ";", "。": ".",
    }
)  # fmt: skip
ALIASES = {
    **dict.fromkeys([r"\dfrac", r"\tfrac", r"\cfrac", r"\sfrac", r"\nicefrac", r"\frac"], r"\frac"),
    **dict.fromkeys([r"\dbinom", r"\tbinom", r"\binom"], r"\binom"),
    **dict.fromkeys([r"\lbrace", r"\{"], r"\{"),
    **dict.fromkeys([r"\rbrace", r"\}"], r"\}"),
    **dict.fromkeys([r"\langle", r"\lang"], r"\langle"),
    **dict.fromkeys([r"\rangle", r"\rang"], r"\rangle"),
    **dict.fromkeys([r"\epsilon", r"\varepsilon"], r"\epsilon"),
    **dict.fromkeys([r"\phi", r"\varphi"], r"\phi"),
    **dict.fromkeys([r"\emptyset", r"\varnothing"], r"\emptyset"),
    r"\tg": r"\tan",
    r"\ctg": r"\cot",
    r"\cosec": r"\csc",
    r"\arctg": r"\arctan",
    r"\arcctg": r"\arccot",
    r"\iff": r"\Leftrightarrow",
    **dict.fromkeys([r"\lvert", r"\rvert", r"\vert", r"\mid"], "|"),
}
OPERATORS = {
    **dict.fromkeys([r"\leq", r"\le", r"\leqslant", r"\leqq", "<="], "<="),
    **dict.fromkeys([r"\geq", r"\ge", r"\geqslant", r"\geqq", ">="], ">="),
    **dict.fromkeys([r"\lt", "<"], "<"),
    **dict.fromkeys([r"\gt", ">"], ">"),
    **dict.fromkeys([r"\neq", r"\ne", "!="], "!="),
    **dict.fromkeys([r"\approx", r"\thickapprox", r"\simeq", r"\doteq"], "~"),
    **dict.fromkeys([r"\times", r"\cdot", r"\ast", "*"], "*"),
    **dict.fromkeys([r"\div", r"\slash", "/"], "/"),
    **dict.fromkeys([r"\pm", "+-"], r"\pm"),
    **dict.fromkeys([r"\%", "%"], "%"),
    **dict.fromkeys([r"\$", "$"], "$"),
    **dict.fromkeys(["**", "^"], "^"),
    **dict.fromkeys(["==", "=", ":=", r"\equiv"], "="),
    **dict.fromkeys([r"\colon", ":"], ":"),
    **dict.fromkeys([r"\lor", r"\vee"], "or"),
    **dict.fromkeys([r"\land", r"\wedge"], "and"),
    **dict.fromkeys([r"\setminus", r"\backslash", r"\smallsetminus"], r"\setminus"),
    **dict.fromkeys([r"\ldots", r"\dots", r"\cdots", "..."], "..."),
    **dict.fromkeys([r"\bigcup", r"\cup"], r"\cup"),
    **dict.fromkeys([r"\to", r"\rightarrow", "->"], r"\to"),
    r"\in": r"\in", r"\mp": r"\mp", r"\cap": r"\cap", r"\|": "|", r"\#": "#", r"\_": "_", r"\&": "&",
    "€": "€", "£": "£", "¥": "¥",
}  # fmt: skip
TEXTS = words(
    r"\text \textbf \textit \textrm \textsf \texttt \textnormal \mbox \hbox \mathrm \mathsf \mathit \operatorname \emph"
    r" \mathop \mathtt"
)
FONTS = words(
    r"\mathbf \mathcal \mathfrak \boldsymbol \bm \pmb \vec \overrightarrow \underline \hat \ensuremath \boxed \fbox"
    r" \underbrace \overbrace"
)
VECTORS = words(r"\mathbf \boldsymbol \bm \pmb \vec \overrightarrow \hat")
GREEK = words(
    r"\alpha \beta \gamma \delta \epsilon \zeta \eta \theta \iota \kappa \lambda \mu \nu \xi \rho \sigma \tau \phi"
    r" \chi \psi \omega \Gamma \Delta \Theta \Lambda \Sigma \Phi \Psi \Omega \ell"
)
PLAIN = {
    "sqrt": r"\sqrt", "pi": r"\pi", "infinity": r"\infty", "inf": r"\infty", "oo": r"\infty", "infty": r"\infty",
    "sin": r"\sin", "cos": r"\cos", "tan": r"\tan", "cot": r"\cot", "sec": r"\sec", "csc": r"\csc", "ln": r"\ln",
    "log": r"\log", "exp": r"\exp", "asin": r"\arcsin", "acos": r"\arccos", "atan": r"\arctan",
    "arcsin": r"\arcsin", "arccos": r"\arccos", "arctan": r"\arctan",
    "cis": r"\cis", "lg": r"\lg", "sinh": r"\sinh", "cosh": r"\cosh", "tanh": r"\tanh", "arcsec": r"\arcsec",
    "arccot": r"\arccot", "arccsc": r"\arccsc", "sgn": r"\sgn", "tg": r"\tan", "ctg": r"\cot", "theta": r"\theta",
    "arctg": r"\arctan", "arcctg": r"\arccot",
    **{name: rf"\{name}" for name in words(
        "alpha beta gamma delta epsilon zeta eta kappa mu nu xi rho sigma tau phi chi psi omega Delta Omega Sigma"
    )},
}  # fmt: skip
BASES = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10}
BASES |= {"eleven": 11, "twelve": 12, "sixteen": 16}
