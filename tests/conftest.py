"""What every test runs under: one thread, no network, and the shapes of grpaint.core checked at every call."""

import os
import runpy
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}

NOSOCKET = Path(__file__).parent / "nosocket"
runpy.run_path(str(NOSOCKET / "sitecustomize.py"))
_paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
if str(NOSOCKET) not in _paths:  # child processes run the same guard at start-up
    os.environ["PYTHONPATH"] = os.pathsep.join([str(NOSOCKET), *filter(None, _paths)])

import hypothesis  # noqa: E402  what follows may read the settings above
import jaxtyping  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from beartype import BeartypeConf, beartype  # noqa: E402
from beartype.roar import BeartypeDecorHintException  # noqa: E402

pytest.register_assert_rewrite("equality", "open_pages")  # modules of asserts that are no tests
torch.set_num_threads(1)
hypothesis.settings.register_profile("grpaint", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("grpaint")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what needs a GPU where there is none."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="module")
def small_network() -> Iterator[None]:
    """The built-in model in a small size, for a module whose tests are about runs; see ``small_network.py``."""
    from small_network import small_network  # after the hook below

    with small_network():
        yield


@pytest.fixture(scope="module")
def small_bases(small_network: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """And small bases in the place of the shipped ones."""
    from small_network import small_bases

    with small_bases(tmp_path_factory.mktemp("bases")):
        yield


_WHOLE_NUMBERS_ARE_FLOATS = beartype(conf=BeartypeConf(is_pep484_tower=True))


def _check(function: Callable[..., object]) -> Callable[..., object]:
    """Check the calls of ``function``, unless it names a protocol, which nothing can check at run time."""
    try:
        return _WHOLE_NUMBERS_ARE_FLOATS(function)
    except BeartypeDecorHintException:
        return function


_checker = types.ModuleType("grpaint_checker")  # the hook takes its checker by the name of a module
_checker.check = _check
sys.modules[_checker.__name__] = _checker
jaxtyping.install_import_hook("grpaint.core", "grpaint_checker.check")
