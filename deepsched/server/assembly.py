"""Assembly: from the command line and a file of configuration to a server's parts."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import msgspec

from deepsched.errors import DeepschedError, ModelNotFoundError, OptionError
from deepsched.machine.partition import most_cores
from deepsched.machine.topology import Topology
from deepsched.server.repository.configuration import (
    Configuration,
    complaint,
    find_at,
    read_configuration,
)
from deepsched.server.repository.folder import Folder
from deepsched.server.repository.found import FoundModel
from deepsched.server.repository.model_options import (
    ENGINE_OPTIONS,
    LEASE_OPTIONS,
    STREAM_OPTIONS,
)
from deepsched.server.repository.paths import why_no_name
from deepsched.server.repository.sources import Named, Source, Sources
from deepsched.server.settings import Settings

_SHARED = (*STREAM_OPTIONS, *LEASE_OPTIONS, "queue_capacity", "spin")
"""Options of the Context that models share."""

OPTIONS = (*Settings.__struct_fields__, *_SHARED, *ENGINE_OPTIONS, "repository")
"""All that a server can be given, beside its models."""


class Assembly(NamedTuple):
    """What a server is made of, before anything is opened."""

    settings: Settings
    sources: Sources
    streams: dict[str, Any]
    """Options of the shared Context."""
    own_streams: dict[str, dict[str, Any]]
    """By model, options of a Context of its own."""
    engine: dict[str, Any]
    """Engine options of all models, unless a model has its own."""


def assemble(models: Sequence[str], config: str | None, given: Mapping[str, Any]) -> Assembly:
    """A server of the models that the user names.

    Args:
        models: [NAME=]PATH of a file, or of a folder: with NAME= one model's, else a repository.
        config: path of a YAML file; None for none.
        given: options by name; they count more than those of the file.

    Raises:
        OptionError: an option is unknown or not possible, or there is no model; names where it is.
        ModelNotFoundError: there is nothing at a path.
    """
    file = Configuration({}, str, {}, {}) if config is None else read_configuration(config, OPTIONS)
    options = {**file.settings, **given}
    repository = options.pop("repository", None)
    folders = [repository] if isinstance(repository, str) else []
    named: dict[str, Callable[[], FoundModel]] = {}
    for text in models:
        name, path = _named(text)
        if name is None:
            folders.append(path)
        elif name in named:
            raise OptionError(
                f"two models are named {name!r}; give one another name, as in other={path}"
            )
        else:
            named[name] = partial(find_at, name, path)
    if not folders and not named and not file.models:
        raise OptionError("no model to serve: give ONNX files, a folder of models, or --config")
    sources: list[Source] = [Named(named), Named(file.models), *map(Folder, folders)]
    every = Sources(sources)
    return Assembly(
        _settings(_only(options, Settings.__struct_fields__), file, given),
        every,
        {**_instances(every, options), **_only(options, _SHARED)},
        file.own_streams,
        _only(options, ENGINE_OPTIONS),
    )


def _only(options: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: options[name] for name in names if name in options}


def _instances(sources: Sources, options: Mapping[str, Any]) -> dict[str, Any]:
    """Streams for as many requests at once as a model's instance group asks for, unless the user
    says what streams there are."""
    if "scheduler" in options or "num_streams" in options:
        return {}
    counts = []
    for name in sources.names():
        with suppress(DeepschedError, OSError):  # told when it is opened
            found = sources.find(name)
            if found is not None and found.options.num_instances is not None:
                counts.append(found.options.num_instances)
    if not counts:
        return {}
    num_streams = min(max(counts), most_cores(Topology.detect(), options.get("num_cores")))
    return {"scheduler": "multi_stream", "num_streams": num_streams}


def _named(text: str) -> tuple[str | None, str]:
    """NAME and path of a model on the command line; None for a folder of models."""
    name, separator, path = text.partition("=")
    if not separator or os.path.exists(text):
        if os.path.isdir(text):
            return None, text
        if not os.path.exists(text):
            raise ModelNotFoundError(f"there is no {text}; expected an ONNX file or a folder")
        name, path = os.path.basename(text).rpartition(".")[0] or os.path.basename(text), text
    elif not os.path.exists(path):
        raise ModelNotFoundError(f"there is no {path}; expected an ONNX file or a folder")
    if why := why_no_name(name):
        raise OptionError(
            f"{text}: {name!r} cannot be a model's name: {why}; NAME={path} gives one"
        )
    return name, path


def _settings(values: Mapping[str, Any], file: Configuration, given: Mapping[str, Any]) -> Settings:
    for name, value in values.items():  # one by one, so that each error has a name
        try:
            msgspec.convert({name: value}, Settings)
        except msgspec.ValidationError as error:
            where = "" if name in given else f"{file.place(name)}: "
            raise OptionError(f"{where}{complaint(name, value, error)}") from None
    return msgspec.convert(dict(values), Settings)
