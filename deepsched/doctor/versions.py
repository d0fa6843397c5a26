"""Installed versions, and whether they are compatible."""

from __future__ import annotations

import platform
import re

from deepsched.doctor.diagnosis import Check, ok, unknown, warn
from deepsched.doctor.host import NOT_LOCAL, Host
from deepsched.errors import DeepschedError
from deepsched.runtime.library import INSTALL_HINT, describe_library
from deepsched.version import __version__

_PACKAGES = (
    "numpy",
    "blake3",
    "onnx",
    "onnxruntime",
    "ml_dtypes",
    "psutil",
    "rich",
    "threadpoolctl",
)


def installed_packages() -> dict[str, str | None]:
    """Version of each package that deepsched uses; None if not installed."""
    from importlib.metadata import PackageNotFoundError, version

    packages: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            packages[package] = version(package)
        except PackageNotFoundError:
            packages[package] = None
    if packages["onnxruntime"] is None:  # builds for other hardware have other names
        for wheel in _wheels():
            packages.pop("onnxruntime", None)
            packages[wheel] = version(wheel)
    return packages


def too_old(versions: dict[str, str | None]) -> dict[str, str]:
    """The packages that are older than deepsched asks for, each with what it asks for: where pip's
    `--no-deps` or a later downgrade has ignored that."""
    from importlib.metadata import PackageNotFoundError, requires

    try:
        requirements = requires("deepsched") or []
    except PackageNotFoundError:  # sources that are not installed, or a frozen program
        return {}
    asked = {}
    for requirement in requirements:
        match = re.fullmatch(r"([\w-]+)>=([\d.]+)", requirement)  # those of extras end in a marker
        found = versions.get(match[1]) if match else None
        if match and found and _numbers(found) < _numbers(match[2]):
            asked[match[1]] = requirement
    return asked


def _numbers(version: str) -> list[int]:
    """As far as it is numbers: that of a release candidate counts as the release."""
    match = re.match(r"\d+(\.\d+)*", version)
    return [int(number) for number in match[0].split(".")] if match else []


def packages(host: Host) -> Check:
    """The versions of Python and of the packages that deepsched uses."""
    name = "packages"
    if not host.is_local:
        return unknown(name, NOT_LOCAL)
    versions = {
        "python": platform.python_version(),
        "deepsched": __version__,
        **installed_packages(),
    }
    found = ", ".join(
        f"{package} {number or 'not installed'}" for package, number in versions.items()
    )
    if old := too_old(versions):
        return warn(
            name,
            f"older than deepsched asks for: {', '.join(old)}; {found}",
            "Models may fail, or have weights of their own for each stream.",
            "pip install " + " ".join(f"'{requirement}'" for requirement in old.values()),
            versions=versions,
        )
    meaning = ""
    if versions["ml_dtypes"] is None:
        meaning = "bfloat16, float8 and 4-bit tensors need ml_dtypes: pip install ml_dtypes"
    return ok(name, found, meaning, versions=versions)


def onnxruntime(host: Host) -> Check:
    """Whether ONNX Runtime's library loads, and whether only one is installed."""
    name = "onnxruntime"
    if not host.is_local:
        return unknown(name, NOT_LOCAL)
    wheels = _wheels()
    try:
        library = describe_library()
    except DeepschedError as error:
        return warn(
            name,
            str(error).removesuffix(f"; {INSTALL_HINT}"),
            "No model can run.",
            INSTALL_HINT,
            wheels=wheels,
        )
    found, data = f"{library['version']}, {library['path']}", {**library, "wheels": wheels}
    if len(wheels) > 1:
        return warn(
            name,
            f"{found}; installed: {' and '.join(wheels)}",
            "These packages install into the same folder: the last one installed has overwritten "
            "files of the others, and removing one breaks the others.",
            f"pip uninstall -y {' '.join(wheels)}, then pip install the one that you need",
            **data,
        )
    return ok(name, found, **data)


def _wheels() -> list[str]:
    """The installed packages that contain the folder onnxruntime."""
    from importlib.metadata import distributions

    return sorted(
        {
            distribution.name
            for distribution in distributions()
            if (distribution.name or "").lower().startswith("onnxruntime")
            and any(str(file) == "onnxruntime/__init__.py" for file in distribution.files or ())
        }
    )
