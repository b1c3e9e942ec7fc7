"""A small Python for checking generated functions: walks the syntax tree itself and knows nothing dangerous.

What it does not know it refuses: attributes, imports, `while`, names it was not given, calls of anything but a short
list of built-ins. Every evaluated node costs one step of a budget, every value has a size limit and sequences hold
only plain values (nested ones can be small in memory and endless to compare or print), so that no program runs long
or grows large.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

MAX_STEPS = 20_000
MAX_SIZE = 1_000  # characters of a string, elements of a sequence
MAX_INTEGER = 10**12
_MAX_SOURCE = 4_000
_MAX_EXPONENT = 8

Value = Any


class CodeRefused(ValueError):
    """The program uses something that this interpreter does not know."""


class CodeFailed(ValueError):
    """The program is allowed, but went wrong or past its budget."""


def _power(base: Any, exponent: Any) -> Any:
    if not isinstance(exponent, int) or not 0 <= exponent <= _MAX_EXPONENT:
        raise CodeFailed("only whole exponents up to 8")
    return base**exponent


def _times(left: Any, right: Any) -> Any:
    for repeated, count in ((left, right), (right, left)):
        if isinstance(repeated, (str, list, tuple)) and isinstance(count, int) and len(repeated) * count > MAX_SIZE:
            raise CodeFailed("value too large")
    return left * right


def _modulo(left: Any, right: Any) -> Any:
    if isinstance(left, str):
        raise CodeRefused("no string formatting")
    return left % right


_BINARY: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: _times,
    ast.FloorDiv: operator.floordiv,
    ast.Div: operator.truediv,
    ast.Mod: _modulo,
    ast.Pow: _power,
}
_UNARY: Mapping[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Not: operator.not_,
}
_COMPARE: Mapping[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda left, right: left in right,
    ast.NotIn: lambda left, right: left not in right,
}


def _bounded_range(*bounds: int) -> range:
    numbers = range(*bounds)
    if len(numbers) > MAX_SIZE:
        raise CodeFailed("range too long")
    return numbers


def _sum(numbers: Any) -> Any:
    return sum(numbers)


def _reversed(sequence: Any) -> list[Any]:
    return list(reversed(sequence))


def _plain(values: list[Any]) -> list[Any]:
    if not all(value is None or isinstance(value, (int, float, str)) for value in values):
        raise CodeRefused("sequences hold plain values only")
    return values


def _within_limits(value: Value) -> Value:
    if isinstance(value, (str, list, tuple)) and len(value) > MAX_SIZE:
        raise CodeFailed("value too large")
    if isinstance(value, int) and abs(value) > MAX_INTEGER:
        raise CodeFailed("number too large")
    return value


_BUILTINS: Mapping[str, Callable[..., Any]] = {
    "abs": abs,
    "len": len,
    "list": list,
    "max": max,
    "min": min,
    "range": _bounded_range,
    "reversed": _reversed,
    "sorted": sorted,
    "str": str,
    "sum": _sum,
}


class _Returned(Exception):
    def __init__(self, value: Value) -> None:
        super().__init__()
        self.value = value


class _Interpreter:
    def __init__(self, functions: Mapping[str, ast.FunctionDef]) -> None:
        self._functions = functions
        self._steps_left = MAX_STEPS
        self._depth = 0

    def call(self, name: str, arguments: Sequence[Value]) -> Value:
        function = self._functions.get(name)
        if function is None:
            raise CodeRefused(f"no function {name}")
        parameters = [argument.arg for argument in function.args.args]
        if len(parameters) != len(arguments):
            raise CodeFailed(f"{name} takes {len(parameters)} arguments")
        self._depth += 1
        if self._depth > 20:
            raise CodeFailed("calls nested too deeply")
        try:
            self._block(function.body, dict(zip(parameters, arguments, strict=True)))
        except _Returned as returned:
            return returned.value
        finally:
            self._depth -= 1
        return None

    def _spend(self) -> None:
        self._steps_left -= 1
        if self._steps_left < 0:
            raise CodeFailed("out of steps")

    def _block(self, statements: Sequence[ast.stmt], scope: dict[str, Value]) -> None:
        for statement in statements:
            self._spend()
            self._statement(statement, scope)

    def _statement(self, node: ast.stmt, scope: dict[str, Value]) -> None:
        match node:
            case ast.Return(value=value):
                raise _Returned(None if value is None else self._evaluate(value, scope))
            case ast.Assign(targets=[target], value=value):
                _bind(target, self._evaluate(value, scope), scope)
            case ast.AugAssign(target=ast.Name(id=name), op=op, value=value):
                left = self._evaluate(ast.Name(id=name, ctx=ast.Load()), scope)
                scope[name] = self._binary(op, left, self._evaluate(value, scope))
            case ast.If(test=test, body=body, orelse=orelse):
                self._block(body if self._evaluate(test, scope) else orelse, scope)
            case ast.For(target=target, iter=iterable, body=body, orelse=[]):
                for element in _iterate(self._evaluate(iterable, scope)):
                    _bind(target, element, scope)
                    self._block(body, scope)
            case ast.Expr(value=ast.Constant()) | ast.Pass():
                pass
            case _:
                raise CodeRefused(f"statement {type(node).__name__} is not known")

    def _evaluate(self, node: ast.expr, scope: dict[str, Value]) -> Value:
        self._spend()
        return _within_limits(self._expression(node, scope))

    def _expression(self, node: ast.expr, scope: dict[str, Value]) -> Value:  # noqa: C901, PLR0911, PLR0912 - a table
        match node:
            case ast.Constant(value=bool() | int() | float() | str() | None):
                return node.value
            case ast.Name(id=name):
                return _look_up(name, scope)
            case ast.List(elts=elements):
                return _plain([self._evaluate(element, scope) for element in elements])
            case ast.Tuple(elts=elements):
                return tuple(_plain([self._evaluate(element, scope) for element in elements]))
            case ast.BinOp(left=left, op=op, right=right):
                return self._binary(op, self._evaluate(left, scope), self._evaluate(right, scope))
            case ast.UnaryOp(op=op, operand=operand) if type(op) in _UNARY:
                return _UNARY[type(op)](self._evaluate(operand, scope))
            case ast.BoolOp(op=op, values=values):
                return self._boolean(op, values, scope)
            case ast.Compare():
                return self._comparison(node, scope)
            case ast.IfExp(test=test, body=body, orelse=orelse):
                return self._evaluate(body if self._evaluate(test, scope) else orelse, scope)
            case ast.Subscript(value=value, slice=ast.Slice() as cut):
                return self._evaluate(value, scope)[self._slice(cut, scope)]
            case ast.Subscript(value=value, slice=index):
                return self._evaluate(value, scope)[self._evaluate(index, scope)]
            case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]):
                return self._call(name, [self._evaluate(argument, scope) for argument in arguments])
            case ast.ListComp(elt=element, generators=[loop]) | ast.GeneratorExp(elt=element, generators=[loop]):
                return self._comprehension(element, loop, scope)
            case _:
                raise CodeRefused(f"expression {type(node).__name__} is not known")

    def _binary(self, op: ast.operator, left: Value, right: Value) -> Value:
        if type(op) not in _BINARY:
            raise CodeRefused(f"operator {type(op).__name__} is not known")
        return _within_limits(_BINARY[type(op)](left, right))

    def _boolean(self, op: ast.boolop, values: Sequence[ast.expr], scope: dict[str, Value]) -> Value:
        stops_at = isinstance(op, ast.Or)
        result: Value = None
        for value in values:
            result = self._evaluate(value, scope)
            if bool(result) is stops_at:
                break
        return result

    def _comparison(self, node: ast.Compare, scope: dict[str, Value]) -> bool:
        left = self._evaluate(node.left, scope)
        for op, comparator in zip(node.ops, node.comparators, strict=True):
            right = self._evaluate(comparator, scope)
            if type(op) not in _COMPARE:
                raise CodeRefused(f"comparison {type(op).__name__} is not known")
            if not _COMPARE[type(op)](left, right):
                return False
            left = right
        return True

    def _slice(self, cut: ast.Slice, scope: dict[str, Value]) -> slice:
        bounds = [None if part is None else self._evaluate(part, scope) for part in (cut.lower, cut.upper, cut.step)]
        return slice(*bounds)

    def _call(self, name: str, arguments: Sequence[Value]) -> Value:
        if name in self._functions:
            return self.call(name, arguments)
        if name not in _BUILTINS:
            raise CodeRefused(f"function {name} is not known")
        return _BUILTINS[name](*arguments)

    def _comprehension(self, element: ast.expr, loop: ast.comprehension, scope: dict[str, Value]) -> list[Value]:
        inner = dict(scope)
        values: list[Value] = []
        for item in _iterate(self._evaluate(loop.iter, scope)):
            _bind(loop.target, item, inner)
            if all(self._evaluate(condition, inner) for condition in loop.ifs):
                values.append(self._evaluate(element, inner))
        return _plain(values)


def _look_up(name: str, scope: Mapping[str, Value]) -> Value:
    if name not in scope:
        raise CodeRefused(f"name {name} is not known")
    return scope[name]


def _bind(target: ast.expr, value: Value, scope: dict[str, Value]) -> None:
    match target:
        case ast.Name(id=name):
            scope[name] = value
        case ast.Tuple(elts=elements):
            for element, part in zip(elements, value, strict=True):
                _bind(element, part, scope)
        case _:
            raise CodeRefused("only names can be assigned")


def _iterate(value: Value) -> Iterator[Value]:
    return iter(list(value))  # a copy: a loop over a list that its own body grows would not end


def _is_simple(function: ast.FunctionDef) -> bool:
    arguments = function.args
    extras = (arguments.posonlyargs, arguments.kwonlyargs, arguments.defaults, arguments.vararg, arguments.kwarg)
    return not function.decorator_list and not any(extras)


def call_function(source: str, name: str, arguments: Sequence[Value]) -> Value:
    """The result of calling the function `name` of `source`; CodeRefused or CodeFailed where that cannot be had."""
    if len(source) > _MAX_SOURCE:
        raise CodeRefused("source too long")
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise CodeFailed(f"not Python: {error}") from error
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef) and _is_simple(node)}
    if len(functions) != len(tree.body):
        raise CodeRefused("only plain function definitions, each of its own name, at the top level")
    try:
        return _Interpreter(functions).call(name, arguments)
    except (TypeError, ValueError, IndexError, ArithmeticError, RecursionError) as error:
        if isinstance(error, CodeRefused):
            raise
        raise CodeFailed(str(error)) from error
