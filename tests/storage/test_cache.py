"""The folders of the caches."""

from pathlib import Path

import pytest

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
