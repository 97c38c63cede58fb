"""The folders of the caches."""

import os
from pathlib import Path

import pytest
import torch

from grpaint.backends import embeddings
from grpaint.images import cache
from grpaint.storage.cache import cache_folder


@pytest.mark.parametrize("value", [None, ""])
def test_without_the_variable_it_lies_in_the_home(monkeypatch, value):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    if value is not None:
        monkeypatch.setenv("XDG_CACHE_HOME", value)
    assert cache_folder("images") == Path("/home/me/.cache/grpaint/images")


def test_the_variable_names_another_place(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("XDG_CACHE_HOME", "/fast")
    assert cache_folder("images") == cache.folder() == Path("/fast/grpaint/images")
    assert embeddings.default_folder() == Path("/fast/grpaint/embeddings")
    monkeypatch.setenv("XDG_CACHE_HOME", "~/fast")
    assert cache_folder("x") == Path("/home/me/fast/grpaint/x")


def test_a_link_under_a_foreseeable_name_is_replaced_and_not_followed(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")
    cache.write("a set", {"a": 1})
    (file,) = cache.folder().iterdir()
    file.unlink()
    file.symlink_to(mine)
    cache.write("a set", {"a": 2})
    assert (mine.read_text(), cache.read("a set"), file.is_symlink()) == ("mine", {"a": 2}, False)

    stored = embeddings.EmbeddingCache(tmp_path / "texts", "", lambda texts: iter([(torch.ones(1),)] * len(texts)))
    place = stored.file("a")
    place.parent.mkdir(parents=True)
    place.symlink_to(mine)
    stored.prepare(["a"])
    stored(["a"])
    assert (mine.read_text(), place.is_symlink()) == ("mine", False)


def test_a_pipe_in_the_cache_is_not_waited_for(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache.write("a set", {"a": 1})
    (file,) = cache.folder().iterdir()
    file.unlink()
    os.mkfifo(file)
    assert cache.read("a set") == {}
    cache.write("a set", {"a": 2})
    assert cache.read("a set") == {"a": 2}
