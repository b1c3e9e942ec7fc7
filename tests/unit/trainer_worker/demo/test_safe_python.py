"""The interpreter that runs generated functions: what it computes and what it refuses."""

import pytest

from services.trainer_worker.demo.safe_python import CodeFailed, CodeRefused, call_function


def _body(*lines: str, parameters: str = "x") -> str:
    return f"def f({parameters}):\n" + "".join(f"    {line}\n" for line in lines)


class TestComputes:
    @pytest.mark.parametrize(
        ("expression", "argument", "result"),
        [
            ("x + 7", 5, 12),
            ("-x // 2", 5, -3),
            ("x[::-1]", "abc", "cba"),
            ("x[-2:]", [1, 2, 3], [2, 3]),
            ("[2 * n for n in x if n % 2 == 0]", [1, 2, 4], [4, 8]),
            ("sum(n * n for n in x)", [1, 2], 5),
            ('"big" if x > 3 else "small"', 4, "big"),
            ("0 <= x <= 3 and not x == 2", 3, True),
            ("max(x) - min(x)", [4, 9], 5),
            ("2 in x or 7 in x", [7], True),
        ],
    )
    def test_expressions(self, expression: str, argument: object, result: object) -> None:
        assert call_function(_body(f"return {expression}"), "f", [argument]) == result

    def test_loops_branches_and_assignments(self) -> None:
        source = _body(
            '"""Doc."""',
            "total, last = 0, 1",
            "for n in x:",
            "    if n > 2:",
            "        total += n * last",
            "return total",
        )

        assert call_function(source, "f", [[1, 3, 5]]) == 8

    def test_functions_that_call_each_other(self) -> None:
        source = "def g(y):\n    return y * 2\n" + _body("return g(x) + 1")

        assert call_function(source, "f", [4]) == 9

    def test_what_does_not_return_gives_none(self) -> None:
        assert call_function(_body("pass"), "f", [1]) is None

    def test_a_loop_over_a_list_that_its_body_grows_ends(self) -> None:
        assert call_function(_body("for n in x:", "    x += [n]", "return len(x)"), "f", [[1, 2]]) == 4


class TestRefuses:
    @pytest.mark.parametrize(
        "statement",
        [
            "return x.__class__",
            "return ().__class__.__bases__",
            "return open('/etc/passwd')",
            "return __import__('os')",
            "return eval('1')",
            "return getattr(x, 'real')",
            "import os",
            "from os import system",
            "while True:\n        pass",
            "global x",
            "return lambda: x",
            "x[0] = 1",
            "x.y = 1",
            "del x",
            "return f'{x}'",
            "return print(x)",
            "return '%99999999d' % x",
            "return [[1], [2]]",
            "return sorted(x, key=len)",
            "return {1: 2}",
            "return 1 << 999999999",
            "return (yield x)",
            "return unknown",
        ],
    )
    def test_what_it_does_not_know(self, statement: str) -> None:
        with pytest.raises(CodeRefused):
            call_function(_body(statement), "f", [1])

    def test_anything_but_functions_at_the_top(self) -> None:
        with pytest.raises(CodeRefused):
            call_function("import os\n" + _body("return 1"), "f", [1])

    def test_decorators_and_defaults_without_evaluating_them(self) -> None:
        with pytest.raises(CodeRefused):
            call_function("@g\n" + _body("return 1"), "f", [1])
        with pytest.raises(CodeRefused):
            call_function("def f(x, y=g()):\n    return 1\n", "f", [1])

    def test_overlong_source(self) -> None:
        with pytest.raises(CodeRefused):
            call_function(_body("return 1") + "#" * 5_000, "f", [1])


class TestStaysSmall:
    @pytest.mark.parametrize(
        "lines",
        [
            ["return 9 ** 9 ** 9"],
            ["return 'a' * 999999999"],
            ["return [0] * 999999999"],
            ["return range(999999999)"],
            ["for a in range(999):", "    for b in range(999):", "        x += 1", "return x"],
            ["return f(x)"],
            ["y = 'ab'", "for n in range(99):", "    y = y + y", "return y"],
            ["y = 'ab'", "for n in range(99):", "    y += y", "return y"],
            ["y = 10", "for n in range(99):", "    y *= y", "return y"],
            ["return [n for n in range(999) if sum(m for m in range(999)) > n]"],
            ["return (("],
            ["return 1 / 0"],
            ["return x[5]"],
            ["return x + 'a'"],
        ],
    )
    def test_fails_in_a_moment(self, lines: list[str]) -> None:
        with pytest.raises(CodeFailed):
            call_function(_body(*lines), "f", [1])
