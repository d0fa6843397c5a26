"""Mutations of JSON: of its values instead of bytes."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from random import Random
from typing import Any

_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 0.5, 1e308, 2**31, 2**53 + 1, 2**63, 2**64, -(2**63) - 1),
    *("", "x", "1", "\0", "ä", "\ud800", "1" * 5000),
    *([], {}, [[]], [0] * 700, [[1], 2], {"binary_data_size": 4}),
)


def mutated(data: bytes, random: Random) -> bytes:
    """JSON with one to four changes; what is no JSON stays as it is."""
    try:
        value = [json.loads(data)]
    except (ValueError, RecursionError):
        return data
    for _ in range(random.randint(1, 4)):
        _change(value, random)
    text = json.dumps(value[0], ensure_ascii=random.random() < 0.8)
    return text.encode("utf-8", "surrogatepass")


def _change(root: list[Any], random: Random) -> None:
    sites = list(_sites(root))
    container, key = random.choice(sites)
    choice = random.randrange(6)
    if choice == 0 and container is not root:
        del container[key]
    elif choice == 1:
        container[key] = [container[key]] * random.choice((1, 1, 2))
    elif choice == 2:
        other, its_key = random.choice(sites)
        container[key] = copy.deepcopy(other[its_key])
    elif choice == 3 and isinstance(container, dict):
        container[random.choice([str(at) for _, at in sites])] = container.pop(key)
    elif choice == 4 and isinstance(container, list) and container is not root:
        container.insert(key, copy.deepcopy(random.choice(_VALUES)))
    else:
        container[key] = copy.deepcopy(random.choice(_VALUES))


def _sites(container: Any) -> Iterator[tuple[Any, Any]]:
    """Each value below a container, as the container that has it and its key."""
    items = container.items() if isinstance(container, dict) else enumerate(container)
    for key, value in list(items):
        yield container, key
        if isinstance(value, (dict, list)):
            yield from _sites(value)
