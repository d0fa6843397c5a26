"""The README of the native core lists what is modelled of it, as the models themselves say."""

from __future__ import annotations

import re

import pytest

from proofs.__main__ import proofs
from proofs.proof import README

# Of one thread, of the kernel's and ORT's promises, of figures, or of a child with one thread.
NOT_MODELLED = {
    "CPUs that go",
    "NUMA",
    "Spinning",
    "What the GIL costs",
    "Giving memory back",
    "Fork",
    "Without a GIL",
    "Memory ordering",
    "Proofs",
}


def test_every_section_with_a_protocol_has_a_model():
    sections = set(re.findall(r"^## (.+)$", README.read_text(), re.M))
    assert sections >= NOT_MODELLED
    assert {proof.section for proof in proofs()} == sections - NOT_MODELLED


def test_the_table_lists_every_model_with_its_property():
    listed = re.findall(
        r"^(\| [^|]+ \| `\w+/\S+` \| [^|]+ \| \d+ \|) [\d,]+ \|$", README.read_text(), re.M
    )
    assert listed == [proof.row(0).removesuffix(" 0 |") for proof in proofs()]


@pytest.mark.parametrize("proof", proofs(), ids=lambda proof: proof.path.name)
def test_every_model_has_mutants_that_it_knows(proof):
    code = proof.text.partition("*/")[2]
    assert proof.mutants
    for mutant in proof.mutants:
        assert len(re.findall(rf"\b{mutant}\b", code)) >= 1, mutant
