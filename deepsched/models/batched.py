"""A prepared model with its batch open, where requests that run together cost less."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from deepsched.errors import InferenceError, InputError, ModelError, OptionError
from deepsched.machine.partition import Stream
from deepsched.models.batching.option import AUTO, OFF, BatchingOption
from deepsched.models.batching.record import Batching
from deepsched.models.prepare import PreparedModel
from deepsched.models.rewritten import OpenPrepared


def open_batch(
    plain: PreparedModel,
    prepare_opened: Callable[[], PreparedModel],
    batching: BatchingOption,
    needs_same_bits: bool,
    open_prepared: OpenPrepared,
    streams: Sequence[Stream],
) -> tuple[PreparedModel, Batching]:
    """The form to be compiled, and what was found: the plain one, unless batches serve.

    Where batches are used, lone requests run in the form with the open batch as well: two forms
    would be two sets of sessions, with threads, arenas, and often weights of their own.

    Args:
        plain: the model as it was asked for, rewritten.
        prepare_opened: makes the form whose first dimensions are open as the model's file has them.
        needs_same_bits: whether "auto" is to keep every bit.

    Raises:
        OptionError: `batching` is a number, and the model's requests cannot run together.
        ThreadError: as for opening the plain form.
    """
    if batching == OFF:
        return plain, Batching()
    from deepsched.models.batching.search import Search
    from deepsched.models.batching.trial import Unfit

    try:
        opened = prepare_opened()
        search = Search(plain, opened, batching != AUTO, needs_same_bits, open_prepared, streams)
        found = search.find()
    except (Unfit, ModelError, InferenceError, InputError) as error:
        if batching != AUTO:
            raise OptionError(
                f"batching={batching}, but requests of this model cannot run together: {error}; "
                'leave it at "auto", or "off"'
            ) from error
        return plain, Batching(why_not=str(error))
    return (opened if found.sizes else plain), found
