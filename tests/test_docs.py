"""What is written about the code is true of it."""

from __future__ import annotations

import doctest
import importlib
import re
from pathlib import Path

import pytest

import deepsched

ROOT = Path(__file__).parent.parent
RUNTIME = ROOT / "deepsched" / "runtime"
MODULES = sorted(path.stem for path in RUNTIME.glob("*.pyx"))


def test_every_heading_that_the_core_cites_exists():
    headings = set(re.findall(r"^## (.+)$", (RUNTIME / "README.md").read_text(), re.M))
    cited = set()
    for source in [*RUNTIME.glob("*.pyx"), *RUNTIME.glob("*.pxd")]:
        for citation in re.findall(
            r"README(?:\.md)?,((?: (?:and )?\"[^\"]+\",?)+)", source.read_text()
        ):
            cited.update(re.findall(r'"([^"]+)"', citation))
    assert len(cited) > 5
    assert cited <= headings


@pytest.mark.parametrize("module", MODULES)
def test_every_compiled_module_has_a_stub_that_names_what_it_has(module):
    stub = (RUNTIME / f"{module}.pyi").read_text()
    compiled = importlib.import_module(f"deepsched.runtime.{module}")
    for name in re.findall(r"^(?:class|def) (\w+)", stub, re.M):
        assert hasattr(compiled, name)
    for name, value in vars(compiled).items():
        if isinstance(value, type) and value.__module__ == compiled.__name__:
            assert f"class {name}" in stub


@pytest.mark.parametrize("module", MODULES)
def test_examples_in_compiled_modules_run(module):
    results = doctest.testmod(importlib.import_module(f"deepsched.runtime.{module}"))
    assert results.failed == 0


def test_the_public_names_are_the_contract():
    assert set(deepsched.__all__) >= {
        "Context",
        "Engine",
        "MultiModelEngine",
        "Scheduler",
        "Topology",
        "compile_model",
        "partition",
    }
    for name in deepsched.__all__:
        assert getattr(deepsched, name).__doc__


DOCUMENTS = [
    "README.md",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "LICENSE",
    "deploy/README.md",
    "examples/README.md",
    "deepsched/runtime/README.md",
    *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md")),
]


def anchors_of(document):
    """Anchors that GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_documents_are_there_and_their_links_lead_somewhere(name):
    document = ROOT / name
    for target, _, anchor in re.findall(r"\]\(([^)#]*)(#([^)]+))?\)", document.read_text()):
        if "://" not in target:
            found = document.parent / target if target else document
            assert found.exists(), target
            assert not anchor or anchor in anchors_of(found), f"{target}#{anchor}"


def test_every_page_and_picture_of_the_guide_is_linked():
    linked = {
        (ROOT / name).parent.joinpath(target).resolve()
        for name in DOCUMENTS
        for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / name).read_text())
    }
    files = [path for path in (ROOT / "docs").rglob("*") if path.suffix in (".md", ".png", ".svg")]
    assert len(files) > 20
    for path in files:
        assert path.resolve() in linked, path.name


def test_the_site_has_every_document():
    listed = set(re.findall(r"(?:root|file): (\S+)", (ROOT / "docs" / "_toc.yml").read_text()))
    assert listed == {name.removesuffix(".md") for name in DOCUMENTS if name.endswith(".md")}


def pages_of_the_reference():
    return "".join(path.read_text() for path in (ROOT / "docs" / "reference").glob("*.md"))


@pytest.mark.parametrize("name", sorted({*deepsched.__all__} - {"__version__"}))
def test_the_reference_has_every_public_name(name):
    home = getattr(deepsched, name).__module__
    directive = rf"^\.\. (auto\w+:: deepsched\.(\w+\.)?{name}|automodule:: {home})$"
    assert re.search(directive, pages_of_the_reference(), re.M)


@pytest.mark.parametrize(
    "module", ["advice", "analysis", "backend", "benchmark", "doctor", "errors", "timeline"]
)
def test_the_reference_has_every_public_module(module):
    assert f".. automodule:: deepsched.{module}\n" in pages_of_the_reference()


def test_the_modules_in_architecture_exist():
    listed = re.findall(r"^  (\S+\.py|\S+/)\s", (ROOT / "ARCHITECTURE.md").read_text(), re.M)
    assert listed
    for name in listed:
        assert (ROOT / "deepsched" / name).exists(), name
    there = {path.name for path in (ROOT / "deepsched").glob("*.py")} - {"version.py"}
    assert there <= set(listed)
