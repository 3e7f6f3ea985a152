"""Sub-pixel phases: which taps meet which entries."""

import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jaxconv.algorithms.subpixel import phases


@given(
    size=st.integers(1, 6),
    taps=st.integers(1, 6),
    outputs=st.integers(1, 9),
    stride=st.integers(1, 6),
    low=st.integers(-7, 9),
    lhs_dilation=st.integers(1, 6),
    rhs_dilation=st.integers(1, 6),
)
@example(
    size=1, taps=2, outputs=2, stride=2, low=4, lhs_dilation=6, rhs_dilation=6
)  # fewer outputs than phases
def test_phases_solve_the_position_equation(
    size, taps, outputs, stride, low, lhs_dilation, rhs_dilation
):
    # Every tap of every output reads the entry that L·i = s·o + d·t − p says, or none.
    solved = phases(size, taps, outputs, stride, low, lhs_dilation, rhs_dilation)
    for o in range(outputs):
        expected = {
            t: (stride * o + rhs_dilation * t - low) // lhs_dilation
            for t in range(taps)
            if (stride * o + rhs_dilation * t - low) % lhs_dilation == 0
        }
        got = {}
        if solved is not None:
            q, r = divmod(o + solved.shift, len(solved.taps))
            assert q < solved.repeats
            for w, t in enumerate(solved.taps[r]):
                if t < taps:
                    start = solved.stride * q - solved.padding[0]
                    got[int(t)] = start + solved.dilation * w
        assert got == expected
    if solved is not None:
        window = solved.dilation * (solved.taps.shape[1] - 1) + 1
        extent = size + sum(solved.padding) - window
        assert extent // solved.stride + 1 == solved.repeats or extent < 0


@pytest.mark.parametrize("low", range(3))
def test_phases_of_kernels_below_their_stride_have_one_tap(low):
    # 3 taps with stride 4: wherever the padding puts them, no two meet two entries.
    solved = phases(14, 3, 56, 1, low, 4, 1)
    assert solved is not None
    assert solved.taps.shape == (4, 1)


@pytest.mark.parametrize("low", range(-3, 12))
def test_periods_cut_short_occur_once(low):
    # Fewer outputs than phases: there is no second period to begin the first earlier.
    for outputs in range(1, 6):
        solved = phases(7, 5, outputs, 1, low, 6, 5)
        assert solved is None or (solved.repeats, solved.shift) == (1, 0)


def test_phases_of_a_large_stride_are_solved_soon():
    # A transposed layer of audio. Each shift's phases on their own took a minute.
    start = time.monotonic()
    solved = phases(10, 8192, 20480, 1, 8191, 2048, 1)
    assert time.monotonic() - start < 20
    assert solved is not None
    assert solved.taps.shape == (2048, 4)


def test_subpixel_of_kernel_equal_to_stride_wastes_nothing():
    # The input gradient of a patch embedding: each phase has exactly one tap.
    solved = phases(14, 16, 224, 1, 15, 16, 1)
    assert solved is not None
    assert solved.taps.shape == (16, 1)
    assert sorted(solved.taps.ravel()) == list(range(16))
    assert solved.padding == (0, 0)
