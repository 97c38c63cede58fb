"""Foreign text reaches a terminal only as characters that print."""

import pytest

from grpaint.core.text import printable, printable_lines, without_surrogates


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a red circle", "a red circle"),
        ("été 円 \U0001f600\u3000x", "été 円 \U0001f600\u3000x"),
        ("\U0001f469\u200d\U0001f680", "\U0001f469\u200d\U0001f680"),
        ("a\x1b]0;title\x07b", "a\\x1b]0;title\\x07b"),
        ("\x9b31m", "\\x9b31m"),
        ("a\nb\r\tc\u2028", "a\\nb\\r\\tc\\u2028"),
        ("abc\u202egnp.exe", "abc\\u202egnp.exe"),
        ("x\udcff.png", "x\\udcff.png"),
        ("\0", "\\x00"),
    ],
)
def test_characters_that_do_not_print_become_visible_escapes(text, line):
    assert printable(text) == line
    printable(text).encode()


def test_a_long_line_is_cut_and_marked():
    assert printable("abcdef", 3) == "abc .."
    assert printable("abc", 3) == "abc"


def test_line_feeds_separate_lines_where_lines_are_meant():
    assert printable_lines("a\nb\x1b") == "a\nb\\x1b"


def test_surrogates_without_their_partner_are_replaced():
    assert without_surrogates("a\ud800b\udfffc\ud83d\ude00") == "a\ufffdb\ufffdc\U0001f600"
