"""Code: small Python functions to be written from their signature and docstring, checked by running tests.

The tests run in `safe_python`, never in Python itself.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from services.trainer_worker.demo.domains.item import Domain, Item
from services.trainer_worker.demo.domains.lexicon import words
from services.trainer_worker.demo.safe_python import CodeFailed, CodeRefused, call_function

NUM_TESTS = 5
_DOCTEST_SHARE = 0.25
_NUMBER_NAMES = ["x", "n", "value", "number", "amount"]
_SECOND_NAMES = ["y", "m", "other", "step", "offset"]
_LIST_NAMES = ["xs", "numbers", "values", "items", "data"]
_TEXT_NAMES = ["s", "text", "word", "name", "line"]
_WORDS = words("apple river stone cloud tiger piano lemon window planet silver garden button")
_LABELS = (("big", "small"), ("high", "low"), ("yes", "no"), ("hot", "cold"), ("far", "near"), ("old", "new"))


@dataclass(frozen=True)
class Function:
    """A function to be written: what it is called and takes, what it does, and how."""

    name: str
    parameters: tuple[str, ...]
    sentence: str
    body: tuple[str, ...]
    template: str
    draw_arguments: Callable[[random.Random], list[Any]]


def _number(rng: random.Random) -> int:
    return rng.randint(-12, 30)


def _numbers(rng: random.Random) -> list[int]:
    return [_number(rng) for _ in range(rng.randint(3, 6))]


def _text(rng: random.Random) -> str:
    return rng.choice(_WORDS)


def _constant(rng: random.Random) -> int:
    return rng.randint(2, 20)


_ARITHMETIC = (
    ("add", "{x} plus {k}", "{x} + {k}"),
    ("subtract", "{x} minus {k}", "{x} - {k}"),
    ("multiply", "{x} times {k}", "{x} * {k}"),
    ("divide", "{x} divided by {k}, rounded down", "{x} // {k}"),
    ("remainder", "the remainder of {x} divided by {k}", "{x} % {k}"),
    ("take_from", "{k} minus {x}", "{k} - {x}"),
    ("square_add", "the square of {x} plus {k}", "{x} * {x} + {k}"),
    ("double_add", "twice {x} plus {k}", "2 * {x} + {k}"),
    ("distance", "the distance between {x} and {k}", "abs({x} - {k})"),
    ("at_least", "{x}, but at least {k}", "max({x}, {k})"),
    ("at_most", "{x}, but at most {k}", "min({x}, {k})"),
    ("add_multiply", "the sum of {x} and {k}, times {j}", "({x} + {k}) * {j}"),
    ("scale_shift", "{x} times {k}, plus {j}", "{x} * {k} + {j}"),
    ("scale_down", "{x} times {k}, minus {j}", "{x} * {k} - {j}"),
)


def _arithmetic(rng: random.Random) -> Function:
    verb, sentence, expression = rng.choice(_ARITHMETIC)
    x, k, j = rng.choice(_NUMBER_NAMES), _constant(rng), _constant(rng)
    return Function(
        name=rng.choice((verb, f"{verb}_{k}", f"{verb}_{x}")),
        parameters=(x,),
        sentence=sentence.format(x=x, k=k, j=j),
        body=(f"return {expression.format(x=x, k=k, j=j)}",),
        template=f"arithmetic/{verb}",
        draw_arguments=lambda draw: [_number(draw)],
    )


_PAIRS = (
    ("total", "the sum of {x} and {y}", "{x} + {y}"),
    ("difference", "{x} minus {y}", "{x} - {y}"),
    ("product", "the product of {x} and {y}", "{x} * {y}"),
    ("gap", "the distance between {x} and {y}", "abs({x} - {y})"),
    ("larger", "the larger one of {x} and {y}", "max({x}, {y})"),
    ("smaller", "the smaller one of {x} and {y}", "min({x}, {y})"),
    ("weighted", "{x} times {k}, plus {y}", "{x} * {k} + {y}"),
    ("sum_plus", "the sum of {x} and {y}, plus {k}", "{x} + {y} + {k}"),
    ("sum_scaled", "the sum of {x} and {y}, times {k}", "({x} + {y}) * {k}"),
    ("product_plus", "the product of {x} and {y}, plus {k}", "{x} * {y} + {k}"),
    ("is_more", "whether {x} is greater than {y}", "{x} > {y}"),
    ("is_same", "whether {x} equals {y}", "{x} == {y}"),
)


def _pair(rng: random.Random) -> Function:
    noun, sentence, expression = rng.choice(_PAIRS)
    x, y, k = rng.choice(_NUMBER_NAMES), rng.choice(_SECOND_NAMES), _constant(rng)
    return Function(
        name=rng.choice((noun, f"{noun}_of", f"get_{noun}")),
        parameters=(x, y),
        sentence=sentence.format(x=x, y=y, k=k),
        body=(f"return {expression.format(x=x, y=y, k=k)}",),
        template=f"pair/{noun}",
        draw_arguments=lambda draw: [_number(draw), _number(draw)],
    )


_PREDICATES = (
    ("is_even", "{x} is even", "{x} % 2 == 0"),
    ("is_odd", "{x} is odd", "{x} % 2 == 1"),
    ("is_positive", "{x} is positive", "{x} > 0"),
    ("is_negative", "{x} is negative", "{x} < 0"),
    ("is_above", "{x} is greater than {k}", "{x} > {k}"),
    ("is_below", "{x} is less than {k}", "{x} < {k}"),
    ("is_multiple", "{x} is a multiple of {k}", "{x} % {k} == 0"),
    ("is_other", "{x} is not {k}", "{x} != {k}"),
    ("is_between", "{x} is between 0 and {k}", "0 <= {x} <= {k}"),
)


def _predicate(rng: random.Random) -> Function:
    verb, sentence, expression = rng.choice(_PREDICATES)
    x, k = rng.choice(_NUMBER_NAMES), _constant(rng)
    return Function(
        name=rng.choice((verb, f"{verb}_{x}", f"check_{x}")),
        parameters=(x,),
        sentence=f"whether {sentence.format(x=x, k=k)}",
        body=(f"return {expression.format(x=x, k=k)}",),
        template=f"predicate/{verb}",
        draw_arguments=lambda draw: [draw.choice((k, k + 1, 2 * k, _number(draw), _number(draw)))],
    )


def _choice(rng: random.Random) -> Function:
    verb, sentence, expression = rng.choice(_PREDICATES)
    x, k = rng.choice(_NUMBER_NAMES), _constant(rng)
    yes, no = rng.choice(_LABELS)
    condition = expression.format(x=x, k=k)
    return Function(
        name=rng.choice(("label", "describe", f"label_{x}", "kind_of")),
        parameters=(x,),
        sentence=f'"{yes}" if {sentence.format(x=x, k=k)}, else "{no}"',
        body=(f"if {condition}:", f'    return "{yes}"', f'return "{no}"'),
        template=f"choice/{verb}",
        draw_arguments=lambda draw: [draw.choice((k, k + 1, 2 * k, _number(draw), _number(draw)))],
    )


_FILTERS = (
    ("", ""),
    ("even ", "n % 2 == 0"),
    ("odd ", "n % 2 == 1"),
    ("positive ", "n > 0"),
    ("negative ", "n < 0"),
)
_MAPS = (
    ("", "n"),
    ("doubled ", "2 * n"),
    ("squared ", "n * n"),
    ("negated ", "-n"),
    ("absolute ", "abs(n)"),
)
_REDUCTIONS = (("sum", "sum({})"), ("list", "{}"), ("count", "len({})"))


def _pipeline(rng: random.Random) -> Function:
    filter_word, condition = rng.choice(_FILTERS)
    map_word, expression = rng.choice(_MAPS)
    noun, reduction = rng.choice(_REDUCTIONS)
    if noun == "count":
        map_word, expression = _MAPS[0]
    xs = rng.choice(_LIST_NAMES)
    chosen = f"[{expression} for n in {xs}{f' if {condition}' if condition else ''}]"
    return Function(
        name=rng.choice((f"{noun}_of", f"{noun}_{filter_word or 'all'}".strip(), f"make_{noun}", "collect")),
        parameters=(xs,),
        sentence=f"the {noun} of the {map_word}{filter_word}numbers in {xs}",
        body=(f"return {reduction.format(chosen)}",),
        template=f"pipeline/{noun}/{map_word}/{filter_word}",
        draw_arguments=lambda draw: [_numbers(draw)],
    )


_LOOPS = (
    ("sum", "0", "total += n"),
    ("product", "1", "total *= n"),
    ("number", "0", "total += 1"),
    ("sum of squares", "0", "total += n * n"),
)


def _loop(rng: random.Random) -> Function:
    noun, start, update = rng.choice(_LOOPS)
    filter_word, condition = rng.choice(_FILTERS[1:])
    xs = rng.choice(_LIST_NAMES)
    return Function(
        name=rng.choice(("loop", "total", "run_over", f"loop_{xs}")),
        parameters=(xs,),
        sentence=f"the {noun} of the {filter_word}numbers in {xs}, with a loop",
        body=(f"total = {start}", f"for n in {xs}:", f"    if {condition}:", f"        {update}", "return total"),
        template=f"loop/{noun}/{filter_word}",
        draw_arguments=lambda draw: [_numbers(draw)],
    )


_LISTS = (
    ("first", "the first element of {xs}", "{xs}[0]"),
    ("last", "the last element of {xs}", "{xs}[-1]"),
    ("size", "the length of {xs}", "len({xs})"),
    ("head", "the first {c} elements of {xs}", "{xs}[:{c}]"),
    ("tail", "the last {c} elements of {xs}", "{xs}[-{c}:]"),
    ("skip", "{xs} without the first {c} elements", "{xs}[{c}:]"),
    ("every", "every {c}th element of {xs}", "{xs}[::{c}]"),
    ("backwards", "{xs} in reverse order", "{xs}[::-1]"),
    ("ordered", "{xs} in ascending order", "sorted({xs})"),
    ("descending", "{xs} in descending order", "sorted({xs})[::-1]"),
    ("biggest", "the largest element of {xs}", "max({xs})"),
    ("smallest", "the smallest element of {xs}", "min({xs})"),
    ("spread", "the largest minus the smallest element of {xs}", "max({xs}) - min({xs})"),
    ("with_end", "{xs} with {k} at the end", "{xs} + [{k}]"),
    ("with_start", "{xs} with {k} at the start", "[{k}] + {xs}"),
    ("holds", "whether {k} is in {xs}", "{k} in {xs}"),
    ("ends_sum", "the sum of the first and the last element of {xs}", "{xs}[0] + {xs}[-1]"),
    ("total_plus", "the sum of {xs} plus {k}", "sum({xs}) + {k}"),
    ("raised", "the list of the numbers in {xs} plus {k}", "[n + {k} for n in {xs}]"),
    ("scaled", "the list of the numbers in {xs} times {k}", "[n * {k} for n in {xs}]"),
    ("above", "the list of the numbers in {xs} greater than {k}", "[n for n in {xs} if n > {k}]"),
    ("below", "the list of the numbers in {xs} less than {k}", "[n for n in {xs} if n < {k}]"),
    ("num_above", "how many numbers in {xs} are greater than {k}", "len([n for n in {xs} if n > {k}])"),
)


def _list(rng: random.Random) -> Function:
    noun, sentence, expression = rng.choice(_LISTS)
    xs, k = rng.choice(_LIST_NAMES), _constant(rng)
    fields = {"xs": xs, "k": k, "c": rng.randint(2, 4)}
    return Function(
        name=rng.choice((noun, f"{noun}_{xs}", f"get_{noun}")),
        parameters=(xs,),
        sentence=sentence.format(**fields),
        body=(f"return {expression.format(**fields)}",),
        template=f"list/{noun}",
        draw_arguments=lambda draw: [[*_numbers(draw), k][-draw.randint(4, 6) :]],
    )


_STRINGS = (
    ("length", "the number of letters in {s}", "len({s})"),
    ("initial", "the first letter of {s}", "{s}[0]"),
    ("final", "the last letter of {s}", "{s}[-1]"),
    ("prefix", "the first {c} letters of {s}", "{s}[:{c}]"),
    ("suffix", "the last {c} letters of {s}", "{s}[-{c}:]"),
    ("mirror", "{s} spelled backwards", "{s}[::-1]"),
    ("repeat", "{s} repeated {c} times", "{s} * {c}"),
    ("shout", '{s} followed by "!"', '{s} + "!"'),
    ("ask", '{s} followed by "?"', '{s} + "?"'),
    ("greet", '"hello " followed by {s}', '"hello " + {s}'),
    ("say_bye", '"bye " followed by {s}', '"bye " + {s}'),
    ("has_letter", 'whether "{letter}" is in {s}', '"{letter}" in {s}'),
    ("is_long", "whether {s} has more than {c} letters", "len({s}) > {c}"),
    ("starts", 'whether {s} starts with "{letter}"', '{s}[0] == "{letter}"'),
    ("ends", 'whether {s} ends with "{letter}"', '{s}[-1] == "{letter}"'),
    ("wrap", '{s} between two "{letter}"', '"{letter}" + {s} + "{letter}"'),
)


def _string(rng: random.Random) -> Function:
    noun, sentence, expression = rng.choice(_STRINGS)
    s = rng.choice(_TEXT_NAMES)
    fields = {"s": s, "c": rng.randint(2, 6), "letter": rng.choice("aeilnrst")}
    return Function(
        name=rng.choice((noun, f"{noun}_{s}", f"make_{noun}")),
        parameters=(s,),
        sentence=sentence.format(**fields),
        body=(f"return {expression.format(**fields)}",),
        template=f"string/{noun}",
        draw_arguments=lambda draw: [_text(draw)],
    )


_FAMILIES: tuple[Callable[[random.Random], Function], ...] = (
    _arithmetic,
    _pair,
    _predicate,
    _choice,
    _pipeline,
    _loop,
    _list,
    _string,
)


def write_function(rng: random.Random) -> Function:
    """A random function of a random family."""
    return rng.choice(_FAMILIES)(rng)


def source_of(function: Function) -> tuple[str, str]:
    """The signature with docstring, and the body, indented, each ending in a line break."""
    signature = f"def {function.name}({', '.join(function.parameters)}):\n"
    docstring = f'    """Return {function.sentence}."""\n'
    return signature + docstring, "".join(f"    {line}\n" for line in function.body)


def _compose(rng: random.Random) -> Item:
    function = write_function(rng)
    head, body = source_of(function)
    tests: list[list[Any]] = [function.draw_arguments(rng) for _ in range(NUM_TESTS)]
    if rng.random() < _DOCTEST_SHARE:
        call = f"{function.name}({', '.join(map(repr, tests[0]))})"
        result = call_function(head + body, function.name, tests[0])
        head = head.replace('."""\n', f'.\n\n    >>> {call}\n    {result!r}\n    """\n')
    return Item(
        prompt=head,
        completion=body,
        check={"name": function.name, "tests": tests},
        template=function.template,
    )


def body_of(answer: str) -> str:
    """The indented lines with which an answer begins: what belongs to the function and not to what follows."""
    kept: list[str] = []
    for line in answer.splitlines():
        if line.strip() and not line.startswith(" "):
            break
        kept.append(line)
    return "\n".join(kept) + "\n"


def results_of(source: str, name: str, tests: Sequence[Sequence[Any]]) -> list[Any] | None:
    """What the function returns for each list of arguments; None where it cannot be run or fails."""
    try:
        return [call_function(source, name, arguments) for arguments in tests]
    except (CodeFailed, CodeRefused):
        return None


def _is_correct(item: Item, answer: str) -> bool:
    name, tests = item.check["name"], item.check["tests"]
    results = results_of(item.prompt + body_of(answer), name, tests)
    expected = results_of(item.prompt + item.completion, name, tests)
    return results is not None and list(map(_exactly, results)) == list(map(_exactly, expected or []))


def _exactly(value: Any) -> tuple[type, Any]:
    return type(value), value  # True equals 1, but is not the same answer


DOMAIN = Domain(
    name="code",
    description="Small Python functions written from signature and docstring, checked by running tests.",
    compose=_compose,
    is_correct=_is_correct,
    in_demo=True,
)
