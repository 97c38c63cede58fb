"""Whatever a text, JSON or TOML file holds: values, or one line with the file and the place."""

import os

import hypothesis
import pytest
from hypothesis import strategies

from grpaint.core.errors import ConfigError
from grpaint.storage.reading import (
    json_lines,
    parse_json,
    parse_toml,
    read_end_lines,
    read_object,
    read_regular,
    read_text,
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("\x00", "not JSON"),
        ("[" * 101 + "]" * 101, "more than 100 levels"),
        ('{"a":' * 100_000, "more than 100 levels"),
        ("9" * 5000, "a number of 5000 digits"),
        ("-" + "9" * 309, "a number of 310 digits"),
    ],
)
def test_json_that_cannot_be_used_is_one_line_with_its_place(text, reason):
    with pytest.raises(ConfigError) as error:
        parse_json(text, "data.json", 7)
    assert str(error.value).startswith("data.json:7: ")
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


def test_json_of_a_hundred_levels_and_numbers_that_fp64_holds_are_read():
    assert parse_json("[" * 100 + "]" * 100, "f") is not None
    assert float(parse_json("9" * 308, "f")) == pytest.approx(1e308)


def test_a_lone_surrogate_becomes_the_replacement_character_and_a_pair_its_character():
    value = parse_json('{"a \\uD83D": ["b \\ud800 c", "\\ud83d\\ude00"]}', "f")
    assert value == {"a \ufffd": ["b \ufffd c", "\U0001f600"]}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a", "not TOML"),
        ("\x00", "not TOML"),
        ("a = " + "[" * 5000, "more than 100 levels"),
        ("a." * 101 + "b = 1", "more than 100 levels"),
        ("a = " + "9" * 5000, "digits"),
        ("a = 0o" + "7" * 5000, "digits"),
    ],
)
def test_toml_that_cannot_be_used_is_one_line(text, reason):
    with pytest.raises(ConfigError) as error:
        parse_toml(text, "recipe.toml")
    assert str(error.value).startswith("recipe.toml: ")
    assert reason in str(error.value)


def test_what_is_no_regular_file_is_refused_and_never_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path / "pipe", tmp_path, tmp_path / "none", tmp_path / "a\0b", "/dev/zero"):
        with pytest.raises(ConfigError) as error:
            read_regular(place)
        assert len(str(error.value).split("\n")) == 1
    (tmp_path / "long").write_bytes(b"1234")
    with pytest.raises(ConfigError, match="more than 3 bytes"):
        read_regular(tmp_path / "long", 3)


def test_text_is_utf8_with_or_without_a_mark_and_errors_name_the_line(tmp_path):
    file = tmp_path / "a.txt"
    file.write_bytes(b"\xef\xbb\xbfa\nb")
    assert read_text(file) == "a\nb"
    file.write_bytes(b"\xef\xbb\xbf\xef\xbb\xbfa\n\xef\xbb\xbfb")  # files with marks, joined
    assert read_text(file) == "a\nb"
    for coding in ("utf-16", "utf-16-le", "utf-16-be"):
        file.write_bytes("a\nb".encode(coding))
        with pytest.raises(ConfigError, match=r"a\.txt:1: not UTF-8, but UTF-16; save it as UTF-8"):
            read_text(file)
    file.write_bytes(b"a\nb\n\xff")
    with pytest.raises(ConfigError, match=r"a\.txt:3: not UTF-8; save it as UTF-8"):
        read_text(file)


def test_a_line_or_file_that_is_no_object_is_refused_with_its_place(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"a": 1}\n\n[2]\n')
    lines = json_lines(file)
    assert next(lines) == (1, {"a": 1})
    with pytest.raises(ConfigError, match=r"a\.jsonl:3: must be a JSON object"):
        next(lines)
    file.write_text("null")
    with pytest.raises(ConfigError, match="not NoneType"):
        read_object(file)


@hypothesis.given(
    strategies.lists(strategies.sampled_from([b"", b"a", b"bb", bytes(70_000), bytes(300_000)]), max_size=4),
    strategies.sampled_from([b"", b"\n", b"\n\n", b"cut short"]),
)
def test_the_end_lines_of_a_file_are_those_of_all_its_lines(tmp_path_factory, lines, end):
    file = tmp_path_factory.getbasetemp() / "ends.jsonl"
    raw = b"".join(line + b"\n" for line in lines) + end
    file.write_bytes(raw)
    whole = raw[: raw.rfind(b"\n") + 1].split(b"\n")[:-1]
    first = whole[0] if whole else b""
    last = next((line for line in reversed(whole) if line), b"")
    assert read_end_lines(file) == (first, last)


def test_the_ends_of_what_is_no_regular_file_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="pipe: no regular file"):
        read_end_lines(tmp_path / "pipe")
