"""Converts typed values to the type of a setting. Values with a clear meaning are accepted, all others are refused."""

from __future__ import annotations

import math
import types
import typing
from typing import Any

from ntkpipe.config.arithmetic import evaluated
from ntkpipe.errors import ConfigError

_NONE = ("none", "null", "~")
_TRUE, _FALSE = ("true", "yes", "on", "y", "1"), ("false", "no", "off", "n", "0")
_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
_PLURALS = {int: "whole numbers", float: "numbers", bool: "true or false", str: "names"}
_EXAMPLES = {int: "100", float: "0.1", bool: "true", str: "NAME"}


def converted(name: str, hint: Any, value: Any, default: Any = None) -> Any:
    """The value of a setting in its own type.

    A list of one element may be given as the element, a list as text in brackets, a number (also a whole one) as
    `sqrt(2)`, `2**0.5` or `1e3`, infinity as `inf`, `.inf` or `infinity`, and no value as `null` or `None`.

    Args:
        name: full name of the setting, for messages.
        hint: its type: `str`, `int`, `float`, `bool`, a tuple of these, a mapping of names to numbers or to any values, or
            a union of these and None.
        value: plain, from YAML, JSON or a command line.
        default: of the setting; messages show it as an example.

    Raises:
        ConfigError: if the value does not fit the type.
    """
    kinds, optional = _kinds(hint)
    if optional and (value is None or (isinstance(value, str) and value.lower() in _NONE)):
        return None
    bracketed = not isinstance(value, str) or (value[:1] == "[" and value[-1:] == "]")
    # For a setting that takes a text or a list, a text in brackets is a list.
    for kind in sorted(kinds, key=lambda one: typing.get_origin(one) is not tuple) if bracketed else kinds:
        try:
            return _of_kind(kind, value)
        except (TypeError, ValueError, OverflowError):
            continue
    raise ConfigError(f"{name}={shown(value)} must be {described(hint)}, such as {name}={example(hint, default)}")


def described(hint: Any) -> str:
    """A type in words, such as `a whole number, or null for none`."""
    kinds, optional = _kinds(hint)
    words = ", or ".join(map(_described, kinds))
    return f"{words}, or null for none" if optional else words


def _described(kind: Any) -> str:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple and typing.get_origin(arguments[0]) is dict:
        return "a list of mappings of names to values"
    if origin is tuple:
        return f"a list of {_PLURALS[arguments[0]]}"
    if origin is dict:
        return "a mapping of names to " + ("values" if arguments[1] is Any else _PLURALS[arguments[1]])
    return _WORDS[kind]


def example(hint: Any, default: Any = None) -> str:
    """A valid value of a type: the default, unless it is empty."""
    if default not in (None, (), {}):
        return shown(default)
    kind = _kinds(hint)[0][0]
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        return "[{NAME:1}]" if typing.get_origin(arguments[0]) is dict else f"[{_EXAMPLES[arguments[0]]}]"
    return "{NAME:1}" if origin is dict else _EXAMPLES[kind]


def shown(value: Any) -> str:
    """A value in the syntax of the command line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return f"[{','.join(shown(one) for one in value)}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{shown(one)}' for key, one in value.items())}}}"
    return str(value)


def _kinds(hint: Any) -> tuple[list[Any], bool]:
    """The alternatives of a type, and whether None is one of them."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        kinds = [one for one in typing.get_args(hint) if one is not type(None)]
        return kinds, len(kinds) < len(typing.get_args(hint))
    return [hint], False


def _of_kind(kind: Any, value: Any) -> Any:
    origin = typing.get_origin(kind)
    if origin is tuple:
        if isinstance(value, dict) or value is None:
            raise TypeError
        one = typing.get_args(kind)[0]
        if isinstance(value, str) and value[:1] == "[" and value[-1:] == "]":
            value = [part.strip() for part in value[1:-1].split(",")] if value[1:-1].strip() else []
        return tuple(_of_kind(one, v) for v in (value if isinstance(value, (list, tuple)) else (value,)))
    if origin is dict:
        if not isinstance(value, dict):
            raise TypeError
        inner = typing.get_args(kind)[1]
        return {str(key): v if inner is Any else _of_kind(inner, v) for key, v in value.items()}
    if value is None or isinstance(value, (list, tuple, dict)):
        raise TypeError
    return {int: _whole, float: _number, bool: _truth, str: _text}[kind](value)


def _number(value: Any) -> float:
    if isinstance(value, bool):
        raise TypeError
    # `_read` accepts `.inf`, the infinity of YAML. No setting accepts NaN.
    found = _read(value) if isinstance(value, str) else float(value)
    if math.isnan(found):
        raise ValueError
    return found


def _read(text: str) -> float:
    try:
        return float(text.lower().replace(".inf", "inf"))
    except ValueError:
        return evaluated(text)


def _whole(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().lstrip("+-").isdecimal():
        return int(value)
    found = _number(value)
    if found != int(found):
        raise ValueError
    return int(found)


def _truth(value: Any) -> bool:
    word = shown(value).lower()
    if word not in (*_TRUE, *_FALSE):
        raise ValueError
    return word in _TRUE


def _text(value: Any) -> str:
    return value if isinstance(value, str) else shown(value)
