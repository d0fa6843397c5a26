"""Which versions of what are installed, and whether they go together."""

from __future__ import annotations

import platform

from deepsched.doctor.diagnosis import Check, ok, unknown, warn
from deepsched.doctor.host import NOT_LOCAL, Host
from deepsched.errors import DeepschedError
from deepsched.runtime.library import INSTALL_HINT, describe_library
from deepsched.version import __version__

_PACKAGES = ("numpy", "onnx", "onnxruntime", "ml_dtypes", "psutil", "threadpoolctl")


def installed_packages() -> dict[str, str | None]:
    """The packages that deepsched uses -> their versions; None where one is missing."""
    from importlib.metadata import PackageNotFoundError, version

    packages: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            packages[package] = version(package)
        except PackageNotFoundError:
            packages[package] = None
    if packages["onnxruntime"] is None:  # it has other names, for other hardware
        for wheel in _wheels():
            packages.pop("onnxruntime", None)
            packages[wheel] = version(wheel)
    return packages


def packages(host: Host) -> Check:
    """The versions of Python and of what deepsched uses."""
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
        meaning = "bfloat16, float8 and 4-bit tensors need it: pip install ml_dtypes"
    return ok(name, found, meaning, versions=versions)


def onnxruntime(host: Host) -> Check:
    """Whether ONNX Runtime's library can be used, and whether it is the only one."""
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
            "No model can be run.",
            INSTALL_HINT,
            wheels=wheels,
        )
    found, data = f"{library['version']}, {library['path']}", {**library, "wheels": wheels}
    if len(wheels) > 1:
        return warn(
            name,
            f"{found}; installed: {' and '.join(wheels)}",
            "These packages write into the same folder: what was installed last has overwritten "
            "files of the others, and to remove one breaks the others.",
            f"pip uninstall -y {' '.join(wheels)}, then pip install the one that is wanted",
            **data,
        )
    return ok(name, found, **data)


def _wheels() -> list[str]:
    """The installed packages that bring the folder onnxruntime."""
    from importlib.metadata import distributions

    return sorted(
        {
            distribution.name
            for distribution in distributions()
            if (distribution.name or "").lower().startswith("onnxruntime")
            and any(str(file) == "onnxruntime/__init__.py" for file in distribution.files or ())
        }
    )
