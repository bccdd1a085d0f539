r"""Is a response's answer the same mathematics as the key?

The answer is extracted in linear time: the last ``\boxed{}``, else what follows "the answer is", else the
right side of the last equation or the last number. Equal strings and plain numbers are decided by exact
arithmetic; only the rest goes to sympy through math-verify, after guards against expressions that would
keep it busy. Math-verify's own timeouts use SIGALRM and are switched off: the pool kills from outside.
"""

from __future__ import annotations

import itertools
import logging
import re
from fractions import Fraction
from typing import Any

from engine.config.rewards import RewardConfig
from engine.records.prompt import Prompt
from engine.records.trajectory import FinishReason, Verdict
from engine.rewards.exact_answer import ASSIGNED, EQUALS, TEXT_COMMAND, extract_answer

MAX_EXPRESSION_CHARS = 400
"""Longer answers are compared as strings only."""
MAX_NESTING = 16
"""Deeper brackets are compared as strings only."""
MAX_POWER_DIGITS = 200_000
"""Largest integer, in digits, that an expression may stand for before it is refused."""

_FUNCTIONS = frozenset(
    (
        "sqrt",
        "frac",
        "pi",
        "sin",
        "cos",
        "tan",
        "log",
        "ln",
        "exp",
        "inf",
        "infty",
        "infinity",
        "times",
        "cdot",
    )
)
_SPACING = re.compile(r"\\left(?![a-z])|\\right(?![a-z])|(?<!\\)\\[!,;: ]|\\quad\b|\\qquad\b|~")
_DEGREES = re.compile(r"\^\s*\{?\s*\\circ\s*\}?|\u00b0")
_UNITS = {
    word: unit
    for unit, words in {
        "mm": "mm millimeter millimeters", "cm": "cm centimeter centimeters", "m": "m meter meters",
        "km": "km kilometer kilometers", "in": "in inch inches", "ft": "ft foot feet", "mi": "mile miles",
        "g": "g gram grams", "kg": "kg kilogram kilograms", "lb": "lb lbs pound pounds",
        "s": "s sec second seconds", "min": "min minute minutes", "h": "h hr hrs hour hours",
        "day": "day days", "week": "week weeks", "month": "month months", "year": "year years",
        "L": "L l liter liters", "mL": "mL ml milliliter milliliters", "deg": "degree degrees",
        "rad": "rad radian radians", "cent": "cent cents", "dollar": "dollar dollars",
    }.items()
    for word in words.split()
}  # fmt: skip
_UNIT_TAIL = re.compile(
    r"(?<=[\d})])\s*(?:(" + "|".join(sorted(_UNITS, key=len, reverse=True)) + ")"
    r"|([A-Za-z]{2,}(?:\s+[A-Za-z]{2,}){0,3}))(\^\{?[23]\}?)?$"
)


def simplified(text: str) -> str:
    r"""One spelling for what means the same: spacing, fractions, minus signs, currency, an unknown's name.

    Example:
        >>> simplified(r"$x = \dfrac{1}{2}$.")
        '\\frac{1}{2}'
    """
    text = text.strip().strip("*").replace("\u2212", "-").replace("**", "^")
    text = text.replace(r"\(", "").replace(r"\)", "").replace(r"\[", "").replace(r"\]", "")
    text = _SPACING.sub(" ", text.replace(r"\$", "").replace("$", "").replace("{,}", ","))
    text = _DEGREES.sub(" degrees", TEXT_COMMAND.sub(r" \1 ", text)).replace(r"\%", "%")
    text = re.sub(r"\\[dt]frac", r"\\frac", text)
    text = re.sub(r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"^([-+])\s+", r"\1", " ".join(text.split()).rstrip(".,;: "))
    assigned = ASSIGNED.match(text)
    if assigned and len(EQUALS.findall(text)) == 1:
        text = text[assigned.end() :]
    return text


def split_unit(text: str) -> tuple[str, str]:
    """A simplified answer as (value, unit); the unit is '' without one.

    Example:
        >>> split_unit("12 cm"), split_unit("5 red apples")
        (('12', 'cm'), ('5', 'red apples'))
    """
    match = _UNIT_TAIL.search(text)
    if match is None or (match.group(2) or "").split(" ")[0] in _FUNCTIONS:
        return text, ""
    word = match.group(1) or match.group(2)
    return text[: match.start()].rstrip(), _UNITS.get(word, word) + (match.group(3) or "").strip("{}")


_PLAIN = re.compile(r"([-+]?)(\d{1,3}(?:,\d{3})+|\d*)(\.\d*)?(?:[eE]([-+]?\d{1,3}))?")
_LATEX_FRACTION = re.compile(r"([-+]?)(\d*)\s*\\frac\{([^{}]+)\}\{([^{}]+)\}")
_MIXED = re.compile(r"([-+]?)(\d{1,18}) (\d{1,18})/(\d{1,18})")


def exact_number(text: str) -> Fraction | None:
    r"""The rational that a plain integer, decimal, fraction or mixed number stands for, else None.

    Example:
        >>> exact_number("1,234.50"), exact_number(r"-\frac{1}{2}"), exact_number("x")
        (Fraction(2469, 2), Fraction(-1, 2), None)
    """
    text = text.strip()
    if len(text) > MAX_EXPRESSION_CHARS:
        return None
    if mixed := _MIXED.fullmatch(text):
        sign, whole, top, bottom = mixed.groups()
    elif latex := _LATEX_FRACTION.fullmatch(text):
        sign, whole, top, bottom = latex.groups()
    elif "/" in text:
        sign, whole = "", ""
        top, _, bottom = text.partition("/")
    else:
        return _plain_number(text)
    above, below = _plain_number(top.strip()), _plain_number(bottom.strip())
    if above is None or not below:
        return None
    value = Fraction(int(whole or 0)) + above / below
    return -value if sign == "-" else value


def _plain_number(text: str) -> Fraction | None:
    match = _PLAIN.fullmatch(text)
    if match is None or not re.search(r"\d", (match.group(2) or "") + (match.group(3) or "")):
        return None
    sign, whole, decimals, exponent = match.groups()
    value = Fraction(f"{sign}{whole.replace(',', '') or '0'}{decimals or ''}")
    return value * Fraction(10) ** int(exponent or 0)


def guard(text: str) -> str:
    """Why an expression must not reach a computer algebra system; '' when it may.

    Example:
        >>> guard("9^{9^9}"), guard("x^2+1")
        ('tower of powers', '')
    """
    if len(text) > MAX_EXPRESSION_CHARS:
        return "too long"
    depth = deepest = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    if deepest > MAX_NESTING:
        return "nested too deeply"
    if _has_tower(text):
        return "tower of powers"
    product = re.search(r"[)}]\s*!", text) and re.search(r"\^|\*|\\times|\\cdot|\d{4}|!.*!", text)
    if product or re.search(r"!\s*!|\d{4,}\s*!", text):
        return "factorial too large"
    if re.search(r"\d{6,}", text) and "binom" in text:
        return "binomial too large"
    if re.search(r"\^\s*[^\d\s{(-]*[({][^(){}]*!", text):
        return "factorial in a power"
    powers = [int(power[:9]) for power in re.findall(r"\^\s*[{(]?\s*-?\s*(\d+)", text)]
    digits = max((len(run) for run in re.findall(r"\d+", text)), default=1)
    stacked = re.search(r"[)}]\s*\^", text) is not None
    size = digits
    for power in powers:
        size = size * max(1, power) if stacked else max(size, digits * power)
    return "power too large" if size > MAX_POWER_DIGITS else ""


def _has_tower(text: str) -> bool:
    """Whether a power stands in an exponent: 9^9^9, 9^{9^9}."""
    for caret in re.finditer(r"\^", text):
        exponent = text[caret.end() :].lstrip(" +-")
        length = 1
        if exponent[:1] in ("{", "("):
            depths = itertools.accumulate((c in "({") - (c in ")}") for c in exponent)
            length = next((i + 1 for i, depth in enumerate(depths) if depth == 0), len(exponent))
        elif atom := re.match(r"\d+|\\[A-Za-z]+", exponent):
            length = atom.end()
        if "^" in exponent[:length] or exponent[length:].lstrip().startswith("^"):
            return True
    return False


class MathJudge:
    """Rule-based equality of the extracted answer and the key; loads sympy when it is built."""

    name = "math"

    def __init__(self, config: RewardConfig) -> None:
        import math_verify

        self.config = config
        # It warns once per process that its timeouts are off; here the pool keeps the time.
        for part in ("math_verify.parser", "math_verify.grader"):
            logging.getLogger(part).setLevel(logging.ERROR)
        self._math_verify: Any = math_verify
        self._same_by_algebra(r"\frac{1}{2}", "0.5")  # compiles its grammar before a deadline runs

    def judge(self, prompt: Prompt, response: str, finish_reason: FinishReason | None) -> Verdict:
        """Score 1 for an equal answer, else 0; the reason says which."""
        answer = extract_answer(response)
        if answer is None:
            return Verdict(0.0, False, "no answer found", self.name)
        equal, reason = self.compare(answer, prompt.answer_key)
        return Verdict(float(equal), equal, reason, self.name)

    def compare(self, answer: str, key: str) -> tuple[bool, str]:
        """Whether an extracted answer equals the key, and one short phrase."""
        left, right = simplified(answer), simplified(key)
        if not left:
            return False, "no answer found"
        if left.replace(" ", "").casefold() == right.replace(" ", "").casefold():
            return True, "equal"
        (left, left_unit), (right, right_unit) = split_unit(left), split_unit(right)
        known = {unit for unit in (left_unit, right_unit) if unit.partition("^")[0] in _UNITS}
        if len(known) > 1:
            return False, "different unit"
        by_number = _same_numbers(left, right)
        if by_number is not None:
            return by_number, "equal" if by_number else "different"
        if _is_words(left) or _is_words(right):
            same = _words(left) == _words(right)
            return same, "equal" if same else "different"
        if refusal := guard(left):
            return False, f"answer refused: {refusal}"
        same = self._same_by_algebra(right, left)
        return same, "equal" if same else "different"

    def _same_by_algebra(self, key: str, answer: str) -> bool:
        parsed = [self._parse(text) for text in (key, answer)]
        if not all(parsed):
            return False
        return bool(self._math_verify.verify(*parsed, float_rounding=6, timeout_seconds=None))

    def _parse(self, text: str) -> list[Any]:
        text = re.sub(r"(?<![\\A-Za-z])(pi|infty)(?![A-Za-z])", r"\\\1", text)
        text = re.sub(r"(?<![\\A-Za-z])sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}", text)
        return self._math_verify.parse(f"${text}$", parsing_timeout=None, fallback_mode="no_fallback")


def _same_numbers(answer: str, key: str) -> bool | None:
    """Equality of two plain numbers; None when one of them is not plain."""
    left, right = exact_number(answer.rstrip("% ")), exact_number(key.rstrip("% "))
    if left is None or right is None:
        return None
    if left == right:
        return True
    if answer.endswith("%") != key.endswith("%"):
        return left == right * 100 if answer.endswith("%") else left * 100 == right
    if ("." in answer) == ("." in key):
        return False
    # A fraction and its decimal agree when the decimal was rounded to six significant digits or more.
    rounded, other = (left, right) if "." in answer else (right, left)
    return other.denominator > 1 and abs(rounded - other) <= abs(other) / 500_000


def _is_words(text: str) -> bool:
    letters = re.fullmatch(r"[(]?([A-Za-z][A-Za-z\s'-]*)[)]?", text)
    return (
        letters is not None
        and (len(letters.group(1)) == 1 or len(letters.group(1)) > 2)
        and text.casefold() not in _FUNCTIONS
    )


def _words(text: str) -> str:
    return " ".join(text.casefold().strip("()").split())
