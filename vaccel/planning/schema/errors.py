"""Error messages for data that differ from their declaration: the innermost place, and what is expected there."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec
from msgspec import Meta, Struct, UnsetType

#: (of one, of many)
_WORDS = {
    float: ("a number", "numbers"), int: ("a whole number", "whole numbers"), str: ("a string", "strings"),
    bool: ("true or false", "true or false"), type(None): ("null", "null"), Any: ("anything", "anything"),
    dict: ("an object", "objects"), list: ("a list", "lists"), tuple: ("a list", "lists"),
}  # fmt: skip


def problem(value: Any, declared: Any, at: str = "") -> tuple[str, str]:
    """(place, message) of a value that is not as declared; the place of the value itself is "it"."""
    members = [_bare(member)[0] for member in _members(declared)]
    for kind in members:
        if isinstance(kind, type) and issubclass(kind, Struct) and isinstance(value, dict):
            for info in msgspec.structs.fields(kind):
                if info.required and info.encode_name not in value:
                    return place(at, info.encode_name), "is missing"
        for where, inner, inner_declared in _parts(value, kind, at):
            if not _fits(inner, inner_declared):
                return problem(inner, inner_declared, where)
        if _unknown := _unknown_fields(value, kind):
            return place(at, _unknown[0]), f"is no field here: {', '.join(kind.__struct_encode_fields__)} are"
    return at or "it", f"must be {_described(declared, value)}, got {shown(value)}"


def place(at: str, name: str) -> str:
    """The place of the field ``name`` of the object at ``at``."""
    name = name if name.isprintable() else ascii(name)
    name = name if len(name) <= 40 else name[:37] + "..."
    return f"{at}.{name}" if at else name


def shown(value: Any) -> str:
    """A short description of a value, in JSON's terms."""
    if isinstance(value, dict):
        return "an object" if value else "an empty object"
    if isinstance(value, list):
        return f"a list of {len(value)}" if value else "an empty list"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return "NaN" if value != value else repr(value)
    if isinstance(value, int) and abs(value) >= 2**63:  # Python refuses to print integers of many thousand digits
        return "a very large whole number"
    text = ascii(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _fits(value: Any, declared: Any) -> bool:
    try:
        msgspec.convert(value, declared)
    except msgspec.ValidationError:
        return False
    return True


def _members(declared: Any) -> list[Any]:
    """The types of a union, without ``UnsetType``."""
    if get_origin(declared) in (Union, types.UnionType):
        return [member for member in get_args(declared) if member is not UnsetType]
    return [declared]


def _bare(declared: Any) -> tuple[Any, Meta | None]:
    """A type and its constraints."""
    if get_origin(declared) is Annotated:
        kind, *rest = get_args(declared)
        return kind, next((extra for extra in rest if isinstance(extra, Meta)), None)
    return declared, None


def _parts(value: Any, kind: Any, at: str) -> Iterator[tuple[str, Any, Any]]:
    """(where, value, declared type) of everything inside a value of this kind."""
    origin, inner = get_origin(kind), get_args(kind)
    if isinstance(kind, type) and issubclass(kind, Struct) and isinstance(value, dict):
        for info in msgspec.structs.fields(kind):
            if info.encode_name in value:
                yield place(at, info.encode_name), value[info.encode_name], info.type
    elif origin is dict and isinstance(value, dict):
        for name, held in value.items():
            yield place(at, name), held, inner[1]
    elif (origin is list or inner[1:] == (...,)) and isinstance(value, list):
        for number, held in enumerate(value):
            yield f"{at}[{number}]", held, inner[0]
    elif origin is tuple and isinstance(value, list) and len(value) == len(inner):
        for number, (held, held_type) in enumerate(zip(value, inner, strict=True)):
            yield f"{at}[{number}]", held, held_type


def _unknown_fields(value: Any, kind: Any) -> list[str]:
    closed = isinstance(kind, type) and issubclass(kind, Struct) and kind.__struct_config__.forbid_unknown_fields
    return sorted(set(value) - set(kind.__struct_encode_fields__)) if closed and isinstance(value, dict) else []


def _described(declared: Any, value: Any) -> str:
    """The declared types in words, with the bounds of the one that has the value's type."""
    said = []
    for member in _members(declared):
        kind, meta = _bare(member)
        words = _words(kind, 0)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        same = {float: number, int: isinstance(value, int) and number, dict: isinstance(value, dict)}
        if meta is not None and same.get(get_origin(kind) or kind, isinstance(value, list)):
            words += _bounds(meta)
        said.append(words)
    return " or ".join(said)


def _words(kind: Any, many: int) -> str:
    kind = _bare(kind)[0]
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return "one of " + ", ".join(map(ascii, inner))
    if origin is list or inner[1:] == (...,):
        return f"{_WORDS[list][many]} of {_words(inner[0], 1)}"
    if origin is tuple:
        return f"{_WORDS[list][many]} of {len(inner)} {_words(inner[0], 1)}"
    if isinstance(kind, type) and issubclass(kind, Struct):
        return _WORDS[dict][many]
    return _WORDS.get(origin or kind, _WORDS[dict])[many]


def _bounds(meta: Meta) -> str:
    said = [
        f"{word} {bound:g}"
        for word, bound in (("at least", meta.ge), ("above", meta.gt), ("at most", meta.le), ("below", meta.lt))
        if bound is not None
    ]
    said += [f"at least {meta.min_length} long"] if meta.min_length else []
    said += [f"at most {meta.max_length} long"] if meta.max_length else []
    return ", " + " and ".join(said) if said else ""
