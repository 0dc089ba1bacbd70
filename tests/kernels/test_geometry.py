"""Windows and the classes that they read, against loops over pixels."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from brute_force import output_extent, under
from hypothesis import given, settings
from hypothesis import strategies as st

from ntkpipe.errors import ConfigError
from ntkpipe.kernels.geometry import Window, every_class, including_variances, paired_window, union

PADDINGS = ("SAME", "VALID", "CIRCULAR")


@st.composite
def windows(draw):
    """Even and odd sizes, larger than the axis as well; strides that divide the axis and others; axes of one pixel."""
    extent, padding = draw(st.integers(1, 9)), draw(st.sampled_from(PADDINGS))
    size = draw(st.integers(1, extent if padding == "VALID" else 11))
    return Window(extent, size, draw(st.integers(1, 4)), padding)


def taps_under(window, position):
    return [
        under(position, tap, window.extent, window.size, window.stride, window.padding) for tap in range(window.size)
    ]


@settings(deadline=None)
@given(window=windows())
def test_positions_are_those_of_the_definition(window):
    assert window.out == output_extent(window.extent, window.size, window.stride, window.padding)
    for tap in range(window.size):
        for position, at in enumerate(window.positions(tap)):
            expected = taps_under(window, position)[tap]
            assert at == expected if expected is not None else not 0 <= at < window.extent
    expected = [sum(at is not None for at in taps_under(window, position)) for position in range(window.out)]
    assert window.counts().tolist() == expected


@settings(deadline=None)
@given(window=windows())
def test_windows_and_pads_cover_the_axis(window):
    low, high = window.pads
    assert low >= 0
    assert low + window.extent + high == (window.out - 1) * window.stride + window.size or window.padding != "VALID"
    if window.padding == "SAME":
        # As many zeros as the windows reach beyond the axis, the odd one after it.
        reach = max((window.out - 1) * window.stride + window.size - window.extent, 0)
        assert low == reach // 2
        assert max(high, 0) == reach - reach // 2
    elif window.padding == "VALID":
        assert low == 0
        assert -window.stride < high <= 0


@settings(deadline=None)
@given(window=windows(), shared=st.booleans(), data=st.data())
def test_incoming_classes_are_those_that_are_read(window, shared, data):
    """And every entry is read from where the definition says: output pixels (o, o') below taps (a, b)."""
    outgoing = tuple(sorted(data.draw(st.sets(st.integers(0, window.out - 1), min_size=1))))
    paired = paired_window(window, shared, outgoing)
    assert sorted(paired.taps) == [
        (a, b) for a, b in itertools.product(range(window.size), repeat=2) if not shared or a == b
    ]
    read, single = set(), {c: set() for c in outgoing}
    for a, b in paired.taps:
        classes, at, inside = window.sources(outgoing, a, b)
        for (row, c), o in itertools.product(enumerate(outgoing), range(window.out)):
            one, two = taps_under(window, o)[a], taps_under(window, (o - c) % window.out)[b]
            assert inside[row, o] == (one is not None and two is not None)
            if inside[row, o]:
                assert at[row, o] == one
                assert classes[row, o] == (one - two) % window.extent
                read.add((one - two) % window.extent)
                single[c].add((one - two) % window.extent)
    assert paired.incoming == (tuple(sorted(read)) or (0,))
    if paired.keeps_classes:
        assert shared
        for source, c in zip(paired.incoming, outgoing, strict=True):
            assert single[c] <= {source}


@pytest.mark.parametrize(
    ("window", "shared", "outgoing", "incoming", "keeps"),
    [
        (Window(8, 3, 1, "SAME"), True, (0,), (0,), True),
        (Window(8, 3, 1, "SAME"), True, every_class(8), every_class(8), True),
        (Window(8, 3, 2, "SAME"), True, every_class(4), (0, 2, 4, 6), True),
        (Window(8, 1, 2, "SAME"), True, (0, 1), (0, 2), True),
        (Window(9, 3, 2, "SAME"), True, (0,), (0,), True),
        (Window(9, 3, 2, "SAME"), True, (0, 1), (0, 1, 2), False),  # 5 outputs: o - o' = -4 is class 1 as well
        (Window(8, 2, 2, "VALID"), False, (0,), (0, 1, 7), False),  # a band of 2f - 1
        (Window(8, 8, 8, "VALID"), False, (0,), every_class(8), False),
        (Window(32, 3, 3, "VALID"), False, (0,), (0, 1, 2, 30, 31), False),
        (Window(1, 3, 1, "SAME"), True, (0,), (0,), True),
        (Window(1, 3, 2, "CIRCULAR"), False, (0,), (0,), False),
    ],
)
def test_classes_of_known_layers(window, shared, outgoing, incoming, keeps):
    paired = paired_window(window, shared, outgoing)
    assert paired.incoming == incoming
    assert paired.keeps_classes == keeps


def test_a_window_that_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="window of 5 pixels, but its input has 4: use padding SAME"):
        Window(4, 5, 1, "VALID")


def test_supports():
    assert union([((0, 2), (1,)), ((1,), (1, 3))]) == ((0, 1, 2), (1, 3))
    assert including_variances((4, 4), ((1,), (2,)), own=True) == ((0, 1), (0, 2))
    assert including_variances((4, 4), ((1,), (2,)), own=False) == ((1,), (2,))
    assert including_variances((), (), own=True) == ()


def test_the_same_paired_window_is_derived_once():
    window = Window(8, 3, 1, "SAME")
    assert paired_window(window, True, (0,)) is paired_window(Window(8, 3, 1, "SAME"), True, (0,))
    assert np.array_equal(window.counts(), [2, 3, 3, 3, 3, 3, 3, 2])
