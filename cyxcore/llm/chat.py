"""Chat templates: the Jinja program in a model file that turns messages into a prompt.

It comes from a stranger, so it runs in Jinja's immutable sandbox and with less than that allows: only the filters and
methods that templates use, a budget of loop turns and calls, and a limit for every text that it makes.
"""

import datetime
import json
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

from cyxcore.errors import FormatError, MissingExtra, SpecError

MAX_TEMPLATE_CHARS = 1 << 18
MAX_CHARS = 1 << 24
"""Of all texts that one rendering makes, together."""
MAX_TURNS = 1 << 17
MAX_ITEMS = 1 << 16
MAX_HELD = 1 << 18  # in a list and all lists within it
MAX_S = 10.0  # of a processor
MAX_DEPTH = 64
PRIVATE = range(0xF0000, 0xFFFFE)  # characters that mean nothing to anybody

FILTERS = frozenset(
    "abs capitalize count d default dictsort e escape first float int items join last length list lower map max min "
    "reject rejectattr replace reverse round safe select selectattr sort string strip title tojson trim unique "
    "upper".split()
)
WRITING = frozenset("capitalize e escape join lower safe string title trim upper".split())
"""Those that make a text of whatever they are given."""
METHODS: dict[type, frozenset[str]] = {
    str: frozenset(
        "capitalize count endswith find isalnum isalpha isdigit isspace lower lstrip removeprefix removesuffix replace "
        "rfind rsplit rstrip split splitlines startswith strip title upper".split()
    ),
    dict: frozenset(("get", "items", "keys", "values")),
    list: frozenset(("count", "index")),
    tuple: frozenset(("count", "index")),
}


class _Refused(Exception):
    """The template said so itself, or did what it may not."""


class ChatTemplate:
    """A compiled template."""

    def __init__(self, source: str, where: str = "chat template") -> None:
        """Raises FormatError for a text that is no template, MissingExtra."""
        self._where = where
        if len(source) > MAX_TEMPLATE_CHARS:
            raise FormatError(f"{where}: expected at most {MAX_TEMPLATE_CHARS} characters, got {len(source)}")
        try:
            import jinja2
        except ImportError:
            raise MissingExtra("llm: chat templates are needed: pip install 'cyx[llm]'") from None
        self._environment = _environment()
        try:
            self._template = _compiled(self._environment, source)
        except (jinja2.TemplateError, _Refused, RecursionError, ValueError, SyntaxError, MemoryError) as error:
            raise FormatError(f"{where}: no usable Jinja template: {str(error)[:200]}") from None

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        now: datetime.datetime | None = None,
        **variables: Any,
    ) -> str:
        """The prompt of a conversation. variables: what else the template may ask for, as bos_token. now: for templates
        that say the date; without it they find no clock, so that equal messages make equal prompts.

        Raises SpecError where the template refuses these messages, or does more than it may.
        """
        import jinja2

        self._environment.start()
        given = {"messages": _plain(messages), "tools": _plain(tools), **_plain(variables)}
        if now is not None:
            given["strftime_now"] = _date_of(now)
        parts = []
        try:
            for part in self._template.generate(add_generation_prompt=add_generation_prompt, **given):
                parts.append(part)
        except (jinja2.TemplateError, _Refused) as error:
            raise SpecError(f"{self._where}: {str(error)[:300] or type(error).__name__}") from None
        except (TypeError, ValueError, KeyError, IndexError, ArithmeticError, AttributeError, LookupError) as error:
            raise SpecError(f"{self._where}: it fails with these messages: {str(error)[:300]}") from None
        except (RecursionError, MemoryError):
            raise SpecError(f"{self._where}: it nests too deep") from None
        return "".join(parts)


def _plain(value: Any, depth: int = 0) -> Any:
    """A copy of JSON's types only, so that the template meets no object of ours. Raises SpecError."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if depth == MAX_DEPTH:
        raise SpecError(f"messages: expected lists and objects within each other at most {MAX_DEPTH} deep")
    if isinstance(value, Mapping):
        return {str(key): _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [_plain(item, depth + 1) for item in value]
    raise SpecError(f"messages: expected texts, numbers, lists and objects, got {type(value).__name__}")


def held_apart(value: Any, reserved: re.Pattern[str]) -> tuple[Any, str]:
    """A copy of a conversation in which no text holds one that `reserved` finds, and the mark that keeps it apart: a
    character that is nowhere else in it, put behind the first one of each. Whoever takes the mark away again has the
    conversation as it was. Raises SpecError where the conversation holds every such character.
    """
    plain = _plain(value)
    used = set(json.dumps(plain, ensure_ascii=False))
    mark = next((mark for mark in map(chr, PRIVATE) if mark not in used), None)
    if mark is None:
        raise SpecError("messages: expected text, got every private character of Unicode")

    def apart(item: Any) -> Any:
        if isinstance(item, str):
            return reserved.sub(lambda found: found[0][:1] + mark + found[0][1:], item)
        if isinstance(item, dict):
            return {apart(key): apart(inner) for key, inner in item.items()}
        return [apart(inner) for inner in item] if isinstance(item, list) else item

    return apart(plain), mark


def _environment() -> Any:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Counted(ImmutableSandboxedEnvironment):
        """Counts turns of loops, calls, and the characters of every text that is made."""

        intercepted_binops = frozenset(("+", "*", "**", "%"))

        def start(self) -> None:
            self.turns, self.chars, self.end_s = MAX_TURNS, MAX_CHARS, time.thread_time() + MAX_S

        def turn(self) -> str:
            self.turns -= 1
            if self.turns < 0:
                raise _Refused(f"it takes more than {MAX_TURNS} turns")
            if time.thread_time() > self.end_s:
                raise _Refused(f"it takes more than {MAX_S:g} s")
            return ""

        def made(self, value: Any) -> Any:
            if isinstance(value, str | list | tuple):
                self.room(len(value))
            return _bounded(value)

        def room(self, size: int) -> None:
            self.chars -= size
            if self.chars < 0:
                raise _Refused(f"it makes more than {MAX_CHARS} characters")

        def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
            if callable(value):
                return any(isinstance(obj, kind) and attr in names for kind, names in METHODS.items())
            return super().is_safe_attribute(obj, attr, value)

        def wrap_str_format(self, value: Any) -> Any:
            inner = super().wrap_str_format(value)
            if inner is None:
                return None

            def plain_format(*arguments: Any, **options: Any) -> str:
                layout = str(value.__self__)
                if re.search(r"\{[^}]*[:.!\[{]", layout):  # a width could be anything
                    raise _Refused(f"format: expected nothing but names between braces, got {layout[:64]!r}")
                _bounded([arguments, options])
                longest = max((len(str(part)) for part in (*arguments, *options.values())), default=0)
                self.room(len(layout) * (1 + longest))
                return str(inner(*arguments, **options))

            return plain_format

        def call(self, context: Any, function: Any, *arguments: Any, **options: Any) -> Any:
            self.turn()
            owner, name = getattr(function, "__self__", None), getattr(function, "__name__", "")
            if isinstance(owner, str) and name == "replace" and len(arguments) >= 2:
                self.room(len(owner) + (len(owner) + 1) * len(str(arguments[1])))
            return self.made(super().call(context, function, *arguments, **options))

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            if operator == "**" or (operator == "%" and isinstance(left, str)):
                raise _Refused(f"{operator} is not for templates")
            if operator == "*" and not (_is_number(left) and _is_number(right)):
                raise _Refused("texts and lists cannot be multiplied")
            if isinstance(left, int) and isinstance(right, int) and max(abs(left), abs(right)) > 2**64:
                raise _Refused("numbers are limited to 64 bits")
            if operator == "+" and isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple):
                self.room(len(left) + len(right))
            return _bounded(super().call_binop(context, operator, left, right))

    environment = Counted(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    environment.finalize = environment.made
    environment.start()
    environment.filters = {
        name: _counted(environment, name, f) for name, f in environment.filters.items() if name in FILTERS
    }
    environment.filters["replace"] = _replace(environment)
    environment.filters["tojson"] = _tojson(environment)
    environment.filters["items"] = lambda value: list(value.items()) if isinstance(value, dict) else []
    environment.globals = {
        "range": _range,
        "namespace": environment.globals["namespace"],
        "dict": environment.globals["dict"],
        "raise_exception": _raise,
    }
    return environment


def _bounded(value: Any) -> Any:
    """The value, unless it holds too much: lists that hold the same list twice are small, and endless when written."""
    waiting, held = [value], 0
    while waiting:
        item = waiting.pop()
        inner = getattr(item, "_Namespace__attrs", item)
        if isinstance(inner, Mapping):
            inner = inner.values()
        elif not isinstance(inner, list | tuple):
            continue
        held += len(inner)
        if held > MAX_HELD:
            raise _Refused(f"it makes lists that hold more than {MAX_HELD} items")
        waiting += [each for each in inner if not isinstance(each, str)]
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _range(*bounds: int) -> range:
    found = range(*bounds)
    if len(found) > MAX_ITEMS:
        raise _Refused(f"range: expected at most {MAX_ITEMS} items, got {len(found)}")
    return found


def _raise(message: str = "") -> None:
    raise _Refused(str(_bounded(message)))


def _date_of(now: datetime.datetime) -> Any:
    def strftime_now(layout: str) -> str:
        if len(layout) > 64 or re.search(r"%\W*\d", layout):
            raise _Refused(f"strftime_now: expected a short layout of a date, got {layout[:64]!r}")
        return now.strftime(layout)

    return strftime_now


def _counted(environment: Any, name: str, function: Any) -> Any:
    """The filter, with its result counted. Jinja marks what it passes to filters on the function."""

    def counted(*arguments: Any, **options: Any) -> Any:
        environment.turn()
        if name in WRITING:
            _bounded(arguments)
        size = len(arguments[-1]) if function.__name__ == "do_join" and isinstance(arguments[-1], str) else 0
        if size:
            environment.room(size * sum(hasattr(a, "__len__") and len(a) for a in arguments))
        return environment.made(function(*arguments, **options))

    counted.__dict__.update(getattr(function, "__dict__", {}))
    return counted


def _replace(environment: Any) -> Any:
    def replace(text: Any, old: str, new: str, count: int = -1) -> str:
        text = str(_bounded(text))
        _bounded(new)
        environment.room(len(text) + (len(text) + 1) * len(str(new)))
        return text.replace(str(old), str(new), count)

    return replace


def _tojson(environment: Any) -> Any:
    def tojson(value: Any, indent: int | None = None, **options: Any) -> str:
        """Plain JSON, as models are trained with: Jinja's own escapes what means something in HTML."""
        if indent is not None and not 0 <= indent <= 16:
            raise _Refused(f"tojson: expected an indent from 0 to 16, got {indent}")
        ascii_only, in_order = bool(options.get("ensure_ascii", False)), bool(options.get("sort_keys", False))
        return environment.made(json.dumps(value, indent=indent, ensure_ascii=ascii_only, sort_keys=in_order))

    return tojson


def _compiled(environment: Any, source: str) -> Any:
    """Every turn of a loop and every macro asks for a turn first; ~, lists and objects become calls, to be counted."""
    from jinja2 import Template, nodes

    tree = environment.parse(source)
    for loop in tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock)):
        loop.body.insert(0, nodes.Output([nodes.Call(nodes.Name("_turn", "load"), [], [], None, None)]))
    for node in list(tree.find_all(nodes.Node)):
        for field, value in node.iter_fields():
            setattr(node, field, _counting(value))
    code = environment.compile(tree, "chat_template", "chat_template")
    names = {**environment.globals, "_turn": environment.turn, "_concat": _concat, "_bounded": _bounded}
    return Template.from_code(environment, code, names)


def _concat(*parts: Any) -> str:
    return "".join(map(str, _bounded(parts)))


def _counting(value: Any) -> Any:
    from jinja2 import nodes

    if isinstance(value, list):
        return [_counting(item) for item in value]
    if isinstance(value, nodes.Concat):
        return nodes.Call(nodes.Name("_concat", "load"), value.nodes, [], None, None)
    made = isinstance(value, nodes.List | nodes.Dict) or (isinstance(value, nodes.Tuple) and value.ctx == "load")
    if made and value.find(nodes.Name):  # of constants it holds what is written there
        return nodes.Call(nodes.Name("_bounded", "load"), [value], [], None, None)
    return value
