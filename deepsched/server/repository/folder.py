"""A folder of models in Triton's layout: NAME/VERSION/model.onnx, and NAME/config.pbtxt."""

from __future__ import annotations

import logging
import os
from dataclasses import replace

from deepsched.errors import ModelNotFoundError
from deepsched.server.repository.found import FoundModel
from deepsched.server.repository.model_options import ModelOptions
from deepsched.server.repository.paths import inside, is_version, why_no_name
from deepsched.server.repository.pbtxt import read_text

logger = logging.getLogger("deepsched.server")

CONFIG = "config.pbtxt"
MODEL = "model.onnx"
SUFFIX = ".onnx"


class Folder:
    """A repository: each folder in it is a model, and so is each ONNX file, with one version."""

    def __init__(self, path: str) -> None:
        if not os.path.isdir(path):
            raise ModelNotFoundError(f"there is no folder {path}")
        self.path = os.path.abspath(path)
        self._refused: set[str] = set()
        """Names that a log line has been written for."""

    def names(self) -> list[str]:
        """The models that there are now, sorted."""
        return sorted(self._entries())

    def find(self, name: str) -> FoundModel | None:
        """The model of that name; None if there is none. `name` is looked up among those that the
        folder holds.

        Raises:
            OptionError, ModelError: it is there, but cannot be served; says why.
        """
        entry = self._entries().get(name)
        if entry is None:
            return None
        path = inside(self.path, os.path.join(self.path, entry))
        if entry.endswith(SUFFIX) and os.path.isfile(path):
            return one_file(name, path)
        return find_in(name, path, self.path)

    def _entries(self) -> dict[str, str]:
        """Names of models, and what they are called in the folder."""
        entries: dict[str, str] = {}
        with os.scandir(self.path) as found:
            for entry in sorted(found, key=lambda it: it.name):
                if entry.name.startswith("."):
                    continue
                name = entry.name
                if not entry.is_dir():
                    if not name.endswith(SUFFIX):
                        continue
                    name = name.removesuffix(SUFFIX)
                why = why_no_name(name) or (
                    f"it is the name of {entries[name]} too" if name in entries else ""
                )
                if not why:
                    entries[name] = entry.name
                elif entry.name not in self._refused:
                    self._refused.add(entry.name)
                    logger.warning("%a in %s is not served: %s", entry.name, self.path, why)
        return entries


def one_file(name: str, path: str, options: ModelOptions | None = None) -> FoundModel:
    """A model that is one ONNX file, as its version 1.

    Raises:
        ModelNotFoundError: there is no such file.
    """
    if not os.path.isfile(path):
        raise ModelNotFoundError(f"model {name!r}: there is no file {path}")
    return FoundModel(
        name=name, versions={"1": path}, options=options or ModelOptions(), is_folder=False
    )


def find_in(name: str, folder: str, root: str, options: ModelOptions | None = None) -> FoundModel:
    """A model that is a folder, with a folder for each version, or with one version's file in it.

    Args:
        root: the folder that links must not lead out of.
        options: what is said of it elsewhere, instead of in a config.pbtxt.

    Raises:
        OptionError, ModelError: it cannot be served; says why.
    """
    file_name = None
    if options is None:
        options, file_name = _configured(name, folder, root)
    versions = {}
    with os.scandir(folder) as found:
        for entry in found:
            if is_version(entry.name) and entry.is_dir():
                path = _model_in(inside(root, entry.path), file_name)
                if path is not None:
                    versions[entry.name] = inside(root, path)
    if versions:
        return FoundModel(name=name, versions=versions, options=options, is_folder=True)
    path = _model_in(folder, file_name)
    if path is not None:
        return FoundModel(
            name=name, versions={"1": inside(root, path)}, options=options, is_folder=True
        )
    raise ModelNotFoundError(
        f"model {name!r}: {folder} holds no model; expected {file_name or MODEL} in a folder for "
        f"each version, such as {os.path.join(folder, '1', file_name or MODEL)}"
    )


def _configured(name: str, folder: str, root: str) -> tuple[ModelOptions, str | None]:
    """What config.pbtxt says, and what it calls the models' files; defaults without one."""
    path = os.path.join(folder, CONFIG)
    if not os.path.exists(path):
        return ModelOptions(), None
    inside(root, path)
    with open(path, encoding="utf-8", errors="replace") as file:
        options, file_name = read_text(file.read(), path, name, folder)
    return replace(options, files=(path, *options.files)), file_name


def _model_in(folder: str, file_name: str | None) -> str | None:
    """The path of the model's file in the folder of a version: as it is named, or model.onnx, or
    the only one; None if there is none."""
    path = os.path.join(folder, file_name or MODEL)
    if os.path.isfile(path):
        return path
    if file_name is not None:
        return None
    others = [name for name in os.listdir(folder) if name.endswith(SUFFIX)]
    return os.path.join(folder, others[0]) if len(others) == 1 else None
