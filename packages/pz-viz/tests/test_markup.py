"""Text from strangers."""

import html

import pytest
from hypothesis import given
from hypothesis import strategies as st
from viz_samples import HOSTILE

from pz_viz._markup import css_color_or_none, escaped, number, shortened, spaced, table, visible


@pytest.mark.smoke
@given(st.text())
def test_visible_text_is_printable_and_keeps_what_was_printable(text):
    shown = visible(text)
    assert shown.isprintable()
    shown.encode("utf-8")  # no lone surrogate is left
    if text.isprintable():
        assert shown == text


@pytest.mark.parametrize("text", HOSTILE)
def test_escaped_text_has_no_markup_and_reads_back(text):
    safe = escaped(text)
    assert not set(safe) & set("<>\"'")
    assert html.unescape(safe) == visible(text)


def test_bidirectional_and_control_characters_are_written_out():
    assert visible("a\u202eb\u2066\x00\n") == "a\\u202eb\\u2066\\x00\\n"


@pytest.mark.parametrize(
    "value, expected",
    [
        (0, "0"),
        (0.12345, "0.123"),
        (12345.6, "12346"),
        (1e-7, "1.00e-07"),
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
        (1e9, "1.00e+09"),
        (-0.5, "-0.5"),
    ],
)
def test_numbers_are_short(value, expected):
    assert number(value) == expected


def test_spaces_at_the_ends_are_visible():
    assert [spaced(x) for x in (" a ", "  ", "a b", "")] == ["␣a␣", "␣␣", "a b", ""]


def test_shortened_and_table():
    assert shortened("abcdef", 4) == "abc…"
    assert table([["a", "bb"], ["ccc", "d"]], "<>") == "a    bb\nccc   d"
    assert table([]) == ""


@pytest.mark.parametrize("color", ["red", "oklch(0.7 0.1 30 / 1.0)", "#fff"])
def test_css_colors_pass(color):
    assert css_color_or_none(color) == color


@pytest.mark.parametrize("color", ["", "a;b", "x'", '"', "url(<)", None, 3, "a}b"])
def test_what_cannot_be_one_css_value_does_not(color):
    assert css_color_or_none(color) is None
