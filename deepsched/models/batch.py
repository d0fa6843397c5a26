"""The batch size: what may be asked for, and which dimensions of a model's inputs it is."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

from deepsched.checks import check_optional_integer
from deepsched.errors import OptionError

AUTO: Literal["auto"] = "auto"
"""Nobody asked for a batch: 1 where the model leaves it open, and nothing that may break it."""

BatchSize: TypeAlias = int | Literal["auto"] | None
"""Items in a request; None for any number that the model's file takes."""

Sizes: TypeAlias = Sequence[int | str | None]
"""A shape as the model states it: a symbol's name or None stand for any size."""

_NAMES_THE_BATCH = re.compile("batch|^(b|bs|n)$", re.IGNORECASE)
_NAMES_SOMETHING_ELSE = re.compile(
    "seq|len|time|step|frame|token|sample|height|width|head|point|node|edge|box"
    "|[+*/]|_x_|^[lst]$",  # products with the batch, too
    re.IGNORECASE,
)


def check_batch_size(batch_size: BatchSize) -> BatchSize:
    """Returns it, a number as a plain int; raises OptionError."""
    if isinstance(batch_size, str) and batch_size == AUTO:
        return AUTO
    return check_optional_integer(
        "batch_size", batch_size, 1, otherwise='None for any batch, or "auto"'
    )


def settle_batch(
    batch_size: BatchSize, shapes: Sequence[list[int] | None], sizes: Mapping[str, Sizes]
) -> tuple[int | None, list[str]]:
    """The batch size that agrees with `shapes`, and the inputs whose first dimension it is to be.

    Args:
        batch_size: as it was asked for, checked.
        shapes: for each input the shape to replace the file's, or None.
        sizes: of each input, as the file states them.

    Raises:
        OptionError: batch_size contradicts `shapes`.

    Example:
        >>> sizes = {"x": ["n", 3], "state": [2, 1, 8]}
        >>> settle_batch(AUTO, [None, None], sizes), settle_batch(None, [None, None], sizes)
        ((1, ['x']), (None, []))
    """
    batches = [shape[0] for shape in shapes if shape]
    opened = [name for name in sizes if sizes[name] and not isinstance(sizes[name][0], int)]
    inputs = batch_inputs(sizes)
    if batch_size is None:
        return None, []
    if batch_size == AUTO:
        inputs = [name for name in inputs if name in opened]
        if not batches:
            return (1, inputs) if inputs else (_stated_batch(sizes), [])
        batch_size, opened = 1, []
    if batches and batch_size not in batches:
        if batch_size != 1:
            raise OptionError(
                f"batch_size={batch_size} contradicts input_shapes, whose first dimensions are "
                f"{batches}; give one of the two, or the same batch in both"
            )
        batch_size = batches[0]
    return batch_size, inputs or opened


def batch_inputs(shapes: Mapping[str, Sizes]) -> list[str]:
    """The inputs whose first dimension is the batch, as far as their shapes tell.

    Where first dimensions are open, these are looked at, and no others: beside an open batch the
    fixed ones are states, tables and the like. A symbol that names the batch is it, unless it is
    two dimensions of one input. Else those are left out that name something else, that are another
    dimension after an open first one, or that only inputs of one dimension have (lists, whose
    length that is); of the rest, those that most inputs share.

    >>> batch_inputs({"ids": ["batch", "length"], "state": [2, "batch", 128], "rate": []})
    ['ids']
    >>> batch_inputs({"frames": ["frames", 576], "h": [1, 1, 128]})
    []
    >>> batch_inputs({"a": ["d0", 3], "b": ["d0", 3], "index": ["d1"]})
    ['a', 'b']
    >>> batch_inputs({"x": [1, 576], "state": [2, 1, 128]})
    ['x']
    """
    firsts = {name: sizes[0] for name, sizes in shapes.items() if sizes}
    opened = {name: first for name, first in firsts.items() if not isinstance(first, int)}
    if not opened:
        return _most_shared(firsts)
    squares = {size for sizes in shapes.values() for size in sizes if sizes.count(size) > 1}
    named = [
        name
        for name, symbol in opened.items()
        if _names_the_batch(symbol) and symbol not in squares
    ]
    if named:
        return named
    followers = {size for name in opened for size in shapes[name][1:] if isinstance(size, str)}
    not_lists = {symbol for name, symbol in opened.items() if len(shapes[name]) > 1}
    return _most_shared(
        {
            name: symbol
            for name, symbol in opened.items()
            if symbol in not_lists - followers
            and not (symbol and _NAMES_SOMETHING_ELSE.search(symbol))
        }
    )


def _stated_batch(shapes: Mapping[str, Sizes]) -> int | None:
    """The batch that a model has of itself; None if it leaves that open, or does not tell."""
    firsts = [sizes[0] for sizes in shapes.values() if sizes]
    found = {shapes[name][0] for name in batch_inputs(shapes)} if firsts else {1}
    stated = next(iter(found)) if len(found) == 1 else None
    return stated if isinstance(stated, int) else None


def _names_the_batch(symbol: int | str | None) -> bool:
    return (
        isinstance(symbol, str)
        and _NAMES_THE_BATCH.search(symbol) is not None
        and _NAMES_SOMETHING_ELSE.search(symbol) is None
    )


def _most_shared(firsts: Mapping[str, int | str | None]) -> list[str]:
    """The inputs whose first dimension most others have as well; of two sizes that are shared
    alike, 1 is more likely the batch."""
    groups: dict[int | str | None, list[str]] = defaultdict(list)
    for name, first in firsts.items():
        groups[first].append(name)
    most = max(map(len, groups.values()), default=0)
    shared = [first for first, names in groups.items() if len(names) == most]
    return [name for name, first in firsts.items() if first in ([1] if 1 in shared else shared)]
