"""models.yaml: the server's settings, and the models with their options."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Literal, NamedTuple

import msgspec

from deepsched.errors import OptionError
from deepsched.server.repository.folder import find_in, one_file
from deepsched.server.repository.found import FoundModel
from deepsched.server.repository.model_options import (
    ENGINE_OPTIONS,
    STREAM_OPTIONS,
    ModelOptions,
    VersionPolicy,
)
from deepsched.server.repository.paths import why_no_name
from deepsched.server.repository.yaml_text import YamlText
from deepsched.server.request_limits import RequestLimits
from deepsched.server.settings import Patience

PATHS = ("tls_cert", "tls_key", "tls_client_ca", "token_file", "repository")
"""Settings that are paths: relative to the folder of the file."""


class Configuration(NamedTuple):
    """What a file says."""

    settings: dict[str, Any]
    """Values of Settings by name, as they were written."""
    place: Callable[[str], str]
    """Where a setting stands, for messages."""
    models: dict[str, Callable[[], FoundModel]]
    """By name, what finds its versions."""
    own_streams: dict[str, dict[str, Any]]
    """By name, of models with cores of their own, the options of their Context."""


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    """A model in the file, beside its engine's options."""

    path: str | None = None
    versions: dict[Annotated[int, msgspec.Meta(ge=1)], str] | None = None
    version_policy: (
        Literal["all"]
        | dict[Literal["latest"], Annotated[int, msgspec.Meta(ge=1)]]
        | list[Annotated[int, msgspec.Meta(ge=1)]]
        | None
    ) = None
    max_batch_size: Annotated[int, msgspec.Meta(ge=0)] | None = None
    timeout: Patience | None = None


_OWN = tuple(_Entry.__struct_fields__)


def read_configuration(path: str, settings: Iterable[str]) -> Configuration:
    """What the file at `path` says. `settings`: the names that it may give beside `models`.

    Raises:
        OptionError: the file cannot be read, or holds what is not allowed; names file and line.
    """
    try:
        with open(path, encoding="utf-8") as file:
            text = YamlText(file.read(), path)
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"--config: {path} cannot be read: {error}") from None
    folder = os.path.dirname(os.path.abspath(path))
    values = dict(text.data)
    models = values.pop("models", None) or {}
    if not isinstance(models, dict):
        raise OptionError(f"{text.place('models')}: models must be a mapping by name")
    for key in values:
        _check_key(key, ("models", *settings), text.place(key))
        if key in PATHS and isinstance(values[key], str):
            values[key] = os.path.join(folder, values[key])
    found = {name: _model(text, name, entry, folder) for name, entry in models.items()}
    own_streams = {
        name: {key: entry[key] for key in STREAM_OPTIONS if key in entry}
        for name, entry in models.items()
        if isinstance(entry, dict) and not entry.keys().isdisjoint(STREAM_OPTIONS)
    }
    return Configuration(values, text.place, found, own_streams)


def _model(text: YamlText, name: Any, entry: Any, folder: str) -> Callable[[], FoundModel]:
    place = text.place("models", name)
    if why := why_no_name(name) if isinstance(name, str) else "it is no text; put it in quotes":
        raise OptionError(f"{place}: {name!r} cannot be a model's name: {why}")
    if isinstance(entry, str):
        entry = {"path": entry}
    if not isinstance(entry, dict):
        raise OptionError(f"{place}: expected a path, or a mapping with path or versions")
    for key in entry:
        _check_key(key, (*_OWN, *ENGINE_OPTIONS, *STREAM_OPTIONS), text.place("models", name, key))
    values = {key: entry[key] for key in _OWN if key in entry}
    for key, value in values.items():
        try:
            msgspec.convert({key: value}, _Entry)
        except msgspec.ValidationError as error:
            raise OptionError(
                f"{text.place('models', name, key)}: {complaint(key, value, error)}"
            ) from None
    own = msgspec.convert(values, _Entry)
    if (own.path is None) == (own.versions is None):
        raise OptionError(f"{place}: model {name!r} needs either path or versions")
    options = ModelOptions(
        engine={key: value for key, value in entry.items() if key in ENGINE_OPTIONS},
        version_policy=_policy(own.version_policy),
        max_batch_size=own.max_batch_size,
        limits=RequestLimits(timeout=own.timeout),
    )
    if own.versions is not None:
        paths = {str(v): os.path.join(folder, path) for v, path in own.versions.items()}
        return lambda: _from_files(name, paths, options)
    return lambda: find_at(name, os.path.join(folder, own.path or ""), options)


def complaint(key: str, value: Any, error: msgspec.ValidationError) -> str:
    """msgspec's error about `value`, in our words."""
    what = str(error).partition(" - at `")[0].partition(", got ")[0].replace("`", "")
    if what.startswith("Expected "):
        what = f"must be {what.removeprefix('Expected ').removesuffix(' | null')}"
    else:
        what = f"is not possible: {what}"
    return f"{key} {what}, got {value!r:.80}"


def find_at(name: str, path: str, options: ModelOptions | None = None) -> FoundModel:
    """A model at a path that the user gave: a file, or a folder with versions.

    Raises:
        OptionError, ModelError: it cannot be served; says why.
    """
    path = os.path.abspath(path)
    if os.path.isdir(path):
        return find_in(name, path, path, options)
    return one_file(name, path, options)


def _from_files(name: str, paths: Mapping[str, str], options: ModelOptions) -> FoundModel:
    for path in paths.values():
        one_file(name, path)
    return FoundModel(name=name, versions=paths, options=options, is_folder=False)


def _policy(policy: Any) -> VersionPolicy:
    if isinstance(policy, list):
        return VersionPolicy(specific=tuple(map(str, policy)))
    if isinstance(policy, dict):
        return VersionPolicy(latest=policy["latest"])
    return VersionPolicy(latest=None if policy == "all" else 1)


def _check_key(key: Any, known: Iterable[str], place: str) -> None:
    known = list(known)
    if key in known:
        return
    near = difflib.get_close_matches(str(key), known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(sorted(known))}"
    raise OptionError(f"{place}: unknown option {key!r}{hint}")
