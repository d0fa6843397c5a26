"""The lowest versions of what deepsched needs: one list, in pyproject.toml."""

from __future__ import annotations

import re
from importlib import metadata

from deepsched import check_hardware
from deepsched.doctor.diagnosis import Status
from deepsched.runtime.library import INSTALL_HINT
from tests.support.floors import floors


def test_the_library_is_refused_below_the_floor_of_its_package():
    assert f"'onnxruntime>={floors()['onnxruntime']}'" in INSTALL_HINT


def test_every_requirement_has_a_floor_and_is_met_here():
    """Where these are the floors themselves, `.ci/run` shows that they hold."""
    for name, lowest in {**floors("build"), **floors()}.items():
        assert re.fullmatch(r"\d+(\.\d+)*", lowest), name
    assert check_hardware()["packages"].status == Status.ok


def test_doctor_names_packages_below_the_floor(tmp_path, monkeypatch):
    """As `pip install --no-deps` leaves them."""
    lowest = floors()["numpy"]
    for name, version in (("deepsched", "0.1.0"), ("numpy", "1.9.3"), ("onnx", "1.100.0rc1")):
        info = tmp_path / f"{name}-{version}.dist-info"
        info.mkdir()
        asked = "".join(f"Requires-Dist: {it}>={at}\n" for it, at in floors().items())
        (info / "METADATA").write_text(f"Name: {name}\nVersion: {version}\n{asked}")
    monkeypatch.syspath_prepend(tmp_path)
    assert metadata.version("numpy") == "1.9.3"
    check = check_hardware()["packages"]
    assert check.status == Status.warn and "older than deepsched asks for: numpy;" in check.found
    assert check.advice == f"pip install 'numpy>={lowest}'"
