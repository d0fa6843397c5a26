"""Ray Data: batch inference by actors that hold cores of their own."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import ray.data

from deepsched.engine import Engine
from deepsched.errors import InputError, OptionError
from deepsched.ray.deployments import LEASE_SECONDS

Columns = Mapping[str, Any]
"""A batch of Ray Data's: an array for each column, with a row in each place of its first axis."""


class Predictor:
    """A callable for `Dataset.map_batches`: adds the model's outputs to each row, as columns.

    Each row is one item of the model: a request gets as many rows as its batch has, by default one,
    and all cores of the worker are kept busy while there are rows in the batch.

    Args:
        model: as in Engine; a path must exist on every node.
        inputs: the column of each of the model's inputs that has another name; others are taken
            from the column of the same name.
        outputs: the column for each output that is to have another name.
        keep: the columns that the result has beside the outputs; None for all. What is left out,
            such as the images, need not be written once more.
        num_cores: how many cores the worker leases on its node.
        engine: Engine's further options.

    Raises:
        OptionError: a name in `inputs` or `outputs` is none of the model's, or a column would get
            two outputs.
        LeaseError: the cores are not free for a minute.
    """

    def __init__(
        self,
        model: Any,
        *,
        inputs: Mapping[str, str] | None = None,
        outputs: Mapping[str, str] | None = None,
        keep: Collection[str] | None = None,
        num_cores: int = 1,
        **engine: Any,
    ) -> None:
        engine = {"scheduler": "multi_stream", "cores": "lease", **engine}
        engine.setdefault("lease_timeout", LEASE_SECONDS)
        self._engine = Engine(model, num_cores=num_cores, **engine)
        self._inputs = _columns("inputs", self._engine.input_names, inputs)
        self._outputs = _columns("outputs", self._engine.output_names, outputs)
        self._keep = keep

    def __call__(self, batch: Columns) -> dict[str, Any]:
        """The columns of the batch that are kept, and the outputs beside them.

        Raises:
            InputError: a column is missing, or does not fit the model.
        """
        kept = list(batch) if self._keep is None else self._keep
        missing = [column for column in (*self._inputs.values(), *kept) if column not in batch]
        if missing:
            raise InputError(
                f"no column {missing[0]!r} in the data, which has {', '.join(batch) or 'none'}; "
                "inputs= says which column an input is taken from, keep= which ones stay"
            )
        others = {name: batch[name] for name in kept}
        columns = [_tensor(batch[column]) for column in self._inputs.values()]
        num_rows = len(columns[0])
        if num_rows == 0:
            return {**others, **{name: np.empty(0) for name in self._outputs.values()}}
        size = self._engine.batch_size or 1
        results = list(self._engine.map(_items(columns, size)))
        found = {
            name: _rows([result[at] for result in results], size, num_rows)
            for at, name in enumerate(self._outputs.values())
        }
        return {**others, **found}

    def __del__(self) -> None:
        if hasattr(self, "_engine"):
            self._engine.close()


def map_batches(
    dataset: ray.data.Dataset,
    model: Any,
    *,
    inputs: Mapping[str, str] | None = None,
    outputs: Mapping[str, str] | None = None,
    keep: Collection[str] | None = None,
    num_cores: int = 1,
    workers: int | tuple[int, int] = 1,
    rows: int = 64,
    **engine: Any,
) -> ray.data.Dataset:
    """The data set with the model's outputs as further columns; lazy, as all of Ray Data is.

    Ray Data bounds what is under way. It starts a worker that was killed anew and repeats the batch
    that was lost with it, so each row is in the result once.

    Args:
        dataset: with a column for each input, of one array a row without the batch's dimension.
        model, inputs, outputs, keep, num_cores, engine: see Predictor.
        workers: how many; or the least and the most, between which Ray Data chooses.
        rows: how many rows a worker gets at a time.

    Raises:
        OptionError: `workers` or `rows` is not positive. What is wrong with the model is raised
            when the data set is read.
    """
    least, most = (workers, workers) if isinstance(workers, int) else workers
    if not 1 <= least <= most:
        raise OptionError(f"workers must be a positive number, or two of them, got {workers!r}")
    if rows < 1:
        raise OptionError(f"rows must be a positive number, got {rows!r}")
    return dataset.map_batches(
        Predictor,
        fn_constructor_args=(model,),
        fn_constructor_kwargs={
            "inputs": inputs,
            "outputs": outputs,
            "keep": keep,
            "num_cores": num_cores,
            **engine,
        },
        compute=ray.data.ActorPoolStrategy(min_size=least, max_size=most),
        num_cpus=num_cores,
        batch_size=rows,
        batch_format="numpy",
        udf_modifying_row_count=False,
    )


def _columns(option: str, names: Sequence[str], given: Mapping[str, str] | None) -> dict[str, str]:
    """The column of each of the model's inputs or outputs."""
    for name in given or {}:
        if name not in names:
            raise OptionError(
                f"{option}: the model has no {name!r}; it has {', '.join(map(repr, names))}"
            )
    columns = {name: (given or {}).get(name, name) for name in names}
    if option == "outputs" and len(set(columns.values())) < len(columns):
        raise OptionError(f"outputs: two of them in one column: {columns}")
    return columns


def _tensor(column: Any) -> np.ndarray[Any, Any]:
    """Rows of arrays as one array; Ray Data gives arrays of arrays where shapes may differ."""
    array = np.asarray(column)
    if array.dtype == object and len(array) and isinstance(array[0], np.ndarray):
        shapes = {row.shape for row in array}
        if len(shapes) > 1:
            raise InputError(
                f"rows of one column have several shapes, {sorted(shapes)[:3]}; resize or pad them"
            )
        return np.stack(list(array))
    return array


def _items(columns: Sequence[np.ndarray[Any, Any]], size: int) -> Iterator[list[Any]]:
    """Requests of `size` rows; the last is filled up with its last row."""
    num_rows = len(columns[0])
    for begin in range(0, num_rows, size):
        items = [column[begin : begin + size] for column in columns]
        missing = size - len(items[0])
        yield [
            np.concatenate([item, np.repeat(item[-1:], missing, axis=0)]) if missing else item
            for item in items
        ]


def _rows(results: Sequence[Any], size: int, num_rows: int) -> Any:
    """The outputs of all requests, with a row in each place of the first axis."""
    if all(isinstance(it, np.ndarray) and it.shape[:1] == (size,) for it in results):
        return np.concatenate(results)[:num_rows]
    if size > 1:
        raise InputError(
            f"an output of a batch of {size} has no row for each item, so it cannot be a column"
        )
    rows = np.empty(num_rows, object)
    for at, result in enumerate(islice(results, num_rows)):
        rows[at] = result
    return rows
