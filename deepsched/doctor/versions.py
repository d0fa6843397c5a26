"""Installed versions, and whether they are compatible."""

from __future__ import annotations

import platform

from deepsched.doctor.diagnosis import Check, ok, unknown, warn
from deepsched.doctor.host import NOT_LOCAL, Host
from deepsched.errors import DeepschedError
from deepsched.runtime.library import INSTALL_HINT, describe_library
from deepsched.version import __version__

_PACKAGES = ("numpy", "onnx", "onnxruntime", "ml_dtypes", "psutil", "threadpoolctl")


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
