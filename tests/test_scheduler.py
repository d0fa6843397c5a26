"""Scheduler: words in, members out; members are their words."""

from __future__ import annotations

import pytest

from deepsched.errors import OptionError
from deepsched.scheduler import Scheduler


@pytest.mark.parametrize("word", ["single_stream", "multi_stream", "elastic"])
def test_member_is_its_word(word: str) -> None:
    member = Scheduler.from_str(word)
    assert member == word
    assert word == member
    assert hash(member) == hash(word)
    assert str(member) == f"{member}" == f"{member:s}" == word


def test_default_is_an_alias_of_single_stream() -> None:
    assert repr(Scheduler.default) == repr(Scheduler.single_stream)
    assert list(Scheduler) == ["single_stream", "multi_stream", "elastic"]


@pytest.mark.parametrize(
    ("word", "member"),
    [
        ("sync", Scheduler.single_stream),
        ("single", Scheduler.single_stream),
        ("default", Scheduler.single_stream),
        ("async", Scheduler.multi_stream),
        ("multi", Scheduler.multi_stream),
        ("singlestream", Scheduler.single_stream),
        ("multistream", Scheduler.multi_stream),
        ("Multi_Stream", Scheduler.multi_stream),
        ("ELASTIC", Scheduler.elastic),
        (Scheduler.elastic, Scheduler.elastic),
    ],
)
def test_from_str_takes_deepsparse_words_any_case_and_members(word: str, member: Scheduler) -> None:
    assert Scheduler.from_str(word) is member


def test_auto_is_said_to_be_compile_models() -> None:
    with pytest.raises(OptionError, match="compile_model takes 'auto'"):
        Scheduler.from_str("auto")


@pytest.mark.parametrize("word", ["", "elastic_stream", 2, None, b"sync"])
def test_from_str_names_the_value_and_the_accepted_words(word: object) -> None:
    with pytest.raises(OptionError, match="elastic .or DeepSparse's words sync, ") as error:
        Scheduler.from_str(word)  # type: ignore[arg-type]
    assert f"got {word!r}" in str(error.value)
