"""Where in a response the answer stands, and equality of strings.

Everything here runs in time linear in the length of the response.
"""

from __future__ import annotations

import re

from engine.config.rewards import RewardConfig
from engine.records.prompt import Prompt
from engine.records.trajectory import FinishReason, Verdict

_MARKER = re.compile(
    r"\banswer\b(?:[^\n:=.]{0,60}?\b(?:is|are)\b[ \t]*:?|[ \t*]*[:=])[\s*]*", re.IGNORECASE
)
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
TEXT_COMMAND = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}")
_NUMBER = re.compile(
    r"(?:(?<![\w)}\]])[-+])?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
    r"(?:\s?/\s?\d+(?:\.\d+)?)?(?:\s?\\?%)?"
)
_MATH_SPAN = re.compile(r"\$([^$\n]+)\$|\\\(([^\n]+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_SENTENCE_END = re.compile(r"[.;?](?=\s|$)")
_CLAUSE = re.compile(r",?\s(?:because|since|so|which|where|when|after|as)\s")
ASSIGNED = re.compile(r"(?<![\w\\])[A-Za-z]\w?\s*=(?!=)\s*")
"""The name of an unknown and its equals sign."""
EQUALS = re.compile(r"(?<![<>!=\\])=(?!=)")
_EDGES = " \t\r\n.,;:!?*\"'`"


def answer_region(response: str) -> str:
    """The part that may hold the answer: after the thinking, inside the last answer tag if there is one.

    Example:
        >>> answer_region("<think>maybe 4</think> so <answer>5</answer>")
        '5'
    """
    text = response.rpartition("</think>")[2]
    before, tag, inside = text.rpartition("<answer>")
    return inside.partition("</answer>")[0].strip() if tag else (before + inside).strip()


def last_boxed(text: str) -> str | None:
    r"""Content of the last complete ``\boxed{...}``, None without one.

    Example:
        >>> last_boxed(r"\boxed{4} no, \boxed{\frac{1}{2}}")
        '\\frac{1}{2}'
    """
    found = None
    closed_until = -1
    for match in _BOX.finditer(text):
        if match.start() < closed_until:
            continue
        end = _closing_brace(text, match.end())
        if end is None:
            break
        found, closed_until = text[match.end() : end], end
    if found is not None and (inner := last_boxed(found)) is not None:
        return inner
    return None if found is None else found.strip()


def _closing_brace(text: str, start: int) -> int | None:
    depth = 1
    position = start
    while position < len(text):
        character = text[position]
        if character == "\\":
            position += 1
        elif character in "{}":
            depth += 1 if character == "{" else -1
            if depth == 0:
                return position
        position += 1
    return None


def after_marker(text: str) -> str | None:
    r"""The rest of the line after the last "answer is", "Answer:" or the like, None without one.

    Example:
        >>> after_marker("The answer is probably 4.\nFinal answer: 5 apples")
        '5 apples'
    """
    found = None
    for match in _MARKER.finditer(text):
        rest = text[match.end() :].partition("\n")[0].strip()
        found = rest or found
    return found


def extract_answer(response: str) -> str | None:
    """The text of the final answer, None when the response gives none.

    Example:
        >>> extract_answer("First 2 + 3 = 5, and one more makes 6 apples.")
        '6'
    """
    region = answer_region(response)
    boxed = last_boxed(region)
    if boxed is not None:
        return boxed or None
    phrase = after_marker(region)
    if phrase is not None:
        return _trimmed(phrase) or None
    return _final_value(region)


def _trimmed(phrase: str) -> str:
    """A phrase of prose without what follows or leads to the value."""
    spans = list(_MATH_SPAN.finditer(phrase))
    if len(spans) == 1 and not re.search(r"\d", phrase[: spans[0].start()] + phrase[spans[0].end() :]):
        phrase = next(group for group in spans[0].groups() if group is not None)
    end = _SENTENCE_END.search(phrase)
    phrase = phrase[: end.start()] if end else phrase
    phrase = _CLAUSE.split(phrase)[0]
    assigned = ASSIGNED.search(phrase)
    if assigned:
        phrase = ASSIGNED.sub("", phrase[assigned.start() :])
    return EQUALS.split(phrase)[-1].strip()


def _final_value(text: str) -> str | None:
    """The right side of the last equation, the last formula or the last number, whichever comes last."""
    numbers = list(_NUMBER.finditer(text))
    last_number = numbers[-1].start() if numbers else -1
    equation = text.rfind("=")
    if equation >= 0:
        line_start = text.rfind("\n", 0, equation) + 1
        stop = _SENTENCE_END.search(text, equation)
        newline = text.find("\n", equation)
        end = min(stop.start() if stop else len(text), newline if newline >= 0 else len(text))
        starts = [match.end() for match in _SENTENCE_END.finditer(text, line_start, equation)]
        value = _trimmed(text[max([line_start, *starts]) : end])
        if value and last_number < end and not _later_number(text[equation:end]):
            return value
    spans = list(_MATH_SPAN.finditer(text))
    if spans and spans[-1].end() > last_number:
        return _trimmed(spans[-1].group())
    if numbers:
        return numbers[-1].group().strip()
    return text if text and len(text) <= 40 and "\n" not in text else None


def _later_number(right_side: str) -> bool:
    """Whether prose with a number of its own follows the value: "= 5, and one more makes 6"."""
    rest = right_side.partition(", ")[2]
    return re.search(r"[A-Za-z]{2,}.*\d", rest) is not None


def normalised(text: str) -> str:
    r"""Lower case, single spaces, without text commands and without punctuation at the edges.

    Example:
        >>> normalised(r"  \text{Even} numbers. ")
        'even numbers'
    """
    text = TEXT_COMMAND.sub(r"\1", text)
    return " ".join(text.casefold().split()).strip(_EDGES)


class ExactJudge:
    """Normalised string equality between the answer key and the marked answer, or the whole response."""

    name = "exact"

    def __init__(self, config: RewardConfig) -> None:
        self.config = config

    def judge(self, prompt: Prompt, response: str, finish_reason: FinishReason | None) -> Verdict:
        """Score 1 for equal strings, else 0."""
        region = answer_region(response)
        answer = last_boxed(region)
        if answer is None:
            answer = after_marker(region)
        text = normalised(region if answer is None else answer)
        if not text:
            return Verdict(0.0, False, "no answer found", self.name)
        equal = text == normalised(prompt.answer_key)
        return Verdict(float(equal), equal, "equal" if equal else "different", self.name)
