"""Which numbers of cores to look at, and which of them help."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from deepsched.scheduling.scaling import useful_cores, widths


@given(st.dictionaries(st.sampled_from([1, 2, 4, 8]), st.floats(0.1, 100), min_size=1))
def test_useful_cores_are_the_fewest_near_the_fastest(scaling):
    enough = useful_cores(scaling)
    assert scaling[enough] <= min(scaling.values()) / 0.95
    assert all(scaling[c] > scaling[enough] for c in scaling if c < enough)


@given(st.integers(1, 10_000))
def test_widths_double_up_to_all_cores(most):
    found = widths(most)
    assert found[0] == 1
    assert found[-1] == most
    assert all(low < high <= 2 * low for low, high in zip(found, found[1:], strict=False))
