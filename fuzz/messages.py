"""Mutations of protobuf's messages: of fields instead of bytes, so that most results are valid."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from random import Random
from typing import Any, NamedTuple

_INTEGERS = (0, 1, 2, 3, 7, 16, 64, 255, -1, -2, 2**31 - 1, 2**31, -(2**31), 2**63 - 1, -(2**63))
_FLOATS = (0.0, 1.0, -1.0, 0.5, 1e-30, 1e30, float("inf"), float("nan"))


class _Site(NamedTuple):
    """A field of a message somewhere in the tree."""

    message: Any
    field: Any


def mutated(message: Any, random: Random) -> Any:
    """A copy of a message with one to four changes."""
    changed = copy.deepcopy(message)
    for _ in range(random.randint(1, 4)):
        sites = list(_sites(changed))
        _change(random.choice(sites), sites, random)
    return changed


def _sites(message: Any) -> Iterator[_Site]:
    for field in message.DESCRIPTOR.fields:
        yield _Site(message, field)
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        if _is_map(field):
            parts = list(value.values()) if _value_of(field).message_type is not None else []
        else:
            parts = list(value) if field.is_repeated else [value]
        for part in parts:
            yield from _sites(part)


def _is_map(field: Any) -> bool:
    return bool(field.message_type is not None and field.message_type.GetOptions().map_entry)


def _value_of(field: Any) -> Any:
    return field.message_type.fields_by_name["value"]


def _change(site: _Site, sites: list[_Site], random: Random) -> None:
    message, field = site
    if random.random() < 0.15:
        message.ClearField(field.name)
    elif _is_map(field):
        _change_map(site, random)
    elif field.is_repeated:
        _change_list(getattr(message, field.name), field, sites, random)
    elif field.message_type is not None:
        donors = list(_parts_like(field.message_type, sites))
        if donors and random.random() < 0.7:
            getattr(message, field.name).CopyFrom(copy.deepcopy(random.choice(donors)))
        else:
            getattr(message, field.name).SetInParent()
    else:
        setattr(message, field.name, _scalar(field, getattr(message, field.name), sites, random))


def _change_map(site: _Site, random: Random) -> None:
    values = getattr(site.message, site.field.name)
    keys = list(values)
    if keys and random.random() < 0.3:
        del values[random.choice(keys)]
    elif _value_of(site.field).message_type is not None:
        key_field = site.field.message_type.fields_by_name["key"]
        values.get_or_create(_scalar(key_field, None, [], random))


def _change_list(values: Any, field: Any, sites: list[_Site], random: Random) -> None:
    count = len(values)
    choice = random.randrange(5)
    if choice == 0 and count:
        del values[random.randrange(count)]
    elif choice == 1 and count > 1:
        kept = [copy.deepcopy(value) for value in values]
        random.shuffle(kept)
        del values[:]
        values.extend(kept)
    elif field.message_type is not None:
        donors = list(_parts_like(field.message_type, sites))
        # A copy first: upb crashes where a message is copied into a part of itself.
        copied = copy.deepcopy(random.choice(donors)) if donors else None
        added = values.add()
        if copied is not None:
            added.CopyFrom(copied)
    elif choice == 2 and count:
        place = random.randrange(count)
        values[place] = _scalar(field, values[place], sites, random)
    else:
        values.append(_scalar(field, None, sites, random))


def _parts_like(message_type: Any, sites: list[_Site]) -> Iterator[Any]:
    """Messages of a type that are in the tree."""
    seen = set()
    for message, _ in sites:
        if message.DESCRIPTOR.full_name == message_type.full_name and id(message) not in seen:
            seen.add(id(message))
            yield message


def _scalar(field: Any, value: Any, sites: list[_Site], random: Random) -> Any:
    kind = field.cpp_type
    if kind == field.CPPTYPE_BOOL:
        return random.random() < 0.5
    if kind in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
        return random.choice(_FLOATS)
    if kind == field.CPPTYPE_ENUM:
        return random.choice([it.number for it in field.enum_type.values])
    if kind == field.CPPTYPE_STRING:
        if field.type == field.TYPE_BYTES:
            return _bytes(value or b"", random)
        return _string(value if isinstance(value, str) else "", sites, random)
    low, high = {
        field.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
        field.CPPTYPE_UINT32: (0, 2**32 - 1),
        field.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
        field.CPPTYPE_UINT64: (0, 2**64 - 1),
    }[kind]
    near = (value or 0) + random.choice((-1, 1))
    return min(max(random.choice((*_INTEGERS, near)), low), high)


def _bytes(value: bytes, random: Random) -> bytes:
    changed = bytearray(value)
    choice = random.randrange(4)
    if choice == 0 or not changed:
        changed += random.randbytes(random.choice((1, 4, 8)))
    elif choice == 1:
        del changed[random.randrange(len(changed)) :]
    else:
        changed[random.randrange(len(changed))] = random.randrange(256)
    return bytes(changed)


_STRINGS = ("", "x", "\0", "../x", "/etc/passwd", "ä", "a" * 300, "1", "-1", "nan")


def _string(value: str, sites: list[_Site], random: Random) -> str:
    """Most often one that is in the tree: names that are given twice, or that refer to others."""
    known = [
        text
        for message, field in sites
        if field.cpp_type == field.CPPTYPE_STRING and field.type != field.TYPE_BYTES
        for text in (
            getattr(message, field.name) if field.is_repeated else [getattr(message, field.name)]
        )
        if text and isinstance(text, str)  # bytes, where it is no UTF-8
    ]
    if known and random.random() < 0.6:
        return str(random.choice(known))
    return random.choice((*_STRINGS, value + "x"))
