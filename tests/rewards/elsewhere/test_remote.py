"""A reward in another process, reached over HTTP, and all that may go wrong on the way."""

import asyncio
import contextlib
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import tiny_runs
from grpaint.core import Prompt, RewardError
from grpaint.core.errors import ConfigError
from grpaint.learn import RewardSet
from grpaint.rewards.elsewhere.remote import Remote
from tiny_runs import TINY, command, status

pytestmark = pytest.mark.usefixtures("small_network")

SERVER = Path(__file__).with_name("faulty_server.py")
IMAGES = torch.rand(5, 3, 4, 4, generator=torch.Generator().manual_seed(0))
PROMPTS = [Prompt(f"prompt {n}") for n in range(5)]
FAULTS = {
    "error": "answered 500: CUDA error: an illegal memory access",
    "hang": "no whole answer within 5 s",
    "drip": "no whole answer within 5 s",
    "drip_header": "no whole answer within 5 s",
    "half": "closed the connection before its answer was whole",
    "gone": "closed the connection before its answer was whole",
    "nan": "holds NaN, which is no score",
    "text": "gave 'high' for a score",
    "count": "gave 4 scores for 5 images",
    "garbage": 'its answer is no JSON: "<html><body>502 Bad Gateway',
    "nothttp": "its answer is no HTTP (illegal status line",
    "deep": "its answer is no JSON",
    "huge": "its answer is longer than",
}


def patience(name):
    """Seconds to wait: few only where waiting is what is tested, so that a busy machine shows no other fault."""
    return 5.0 if name in ("hang", "drip", "drip_header") else 600.0


@contextlib.contextmanager
def server(folder, *words):
    """A server process in ``folder``; gives its address."""
    folder.mkdir(exist_ok=True)
    process = subprocess.Popen([sys.executable, str(SERVER), *words], cwd=folder, stdout=subprocess.PIPE, text=True)
    try:
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def url(home):
    with server(home) as address:
        yield address


@pytest.fixture
def fault(home):
    """Sets the module's server's fault for a test."""
    yield lambda text: (home / "fault").write_text(text)
    (home / "fault").unlink(missing_ok=True)


def expected(images, batch):
    parts = [
        images[i : i + batch].mean((1, 2, 3)) + 0.1 * (torch.arange(len(images[i : i + batch])) % 4)
        for i in range(0, len(images), batch)
    ]
    return torch.cat(parts)


@pytest.mark.parametrize("batch", [1, 2, 64])
def test_scores_come_back_in_order_batch_by_batch(url, batch):
    torch.testing.assert_close(Remote((url,), batch=batch)(IMAGES, PROMPTS), expected(IMAGES, batch))


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_has_its_message_and_nothing_hangs(url, fault, name):
    fault(name)
    remote = Remote((url,), timeout_s=patience(name), retries=1, backoff_s=0.01)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(RewardError) as raised:
        RewardSet({"far": remote}, {}).score(IMAGES, PROMPTS)
    message = str(raised.value)
    assert message.startswith(f"reward far: {url}: ")
    assert FAULTS[name] in message
    assert "asked 2 times" in message
    assert "--resume" in message
    assert '"prompt 0", "prompt 1", "prompt 2"' in message
    assert "\n" not in message
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10  # KiB: no gigabyte was read


def test_a_passing_fault_is_retried(url, fault, home):
    calls = int((home / "calls").read_text())
    remote = Remote((url,), retries=8, backoff_s=0.3)
    remote.start()
    fault("error")
    from grpaint.parallel.background import BackgroundCall

    later = BackgroundCall(lambda: remote(IMAGES, PROMPTS))
    while int((home / "calls").read_text()) == calls:
        time.sleep(0.01)
    (home / "fault").unlink()
    torch.testing.assert_close(later.result(), expected(IMAGES, 64))


def test_several_servers_give_what_one_gives_and_stand_in_for_each_other(url, tmp_path):
    alone = Remote((url,), batch=2)(IMAGES, PROMPTS)
    with server(tmp_path) as second:
        both = Remote((url, second), batch=2, concurrency=2, retries=1, backoff_s=0.01)
        assert torch.equal(both(IMAGES, PROMPTS), alone)
        assert (tmp_path / "calls").read_text() == "1"  # the middle batch of three
        (tmp_path / "fault").write_text("error")
        assert torch.equal(both(IMAGES, PROMPTS), alone)
    assert torch.equal(both(IMAGES, PROMPTS), alone)
    notes = both.start()
    assert "continues without one server" in notes[1]
    assert "cannot be reached (Connection refused)" in notes[1]


def test_neither_proxies_nor_an_event_loop_around_it_matter(url, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")

    async def notebook():
        return Remote((url,))(IMAGES, PROMPTS)

    torch.testing.assert_close(asyncio.run(notebook()), expected(IMAGES, 64))


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("http://localhost:1", "cannot be reached (Connection refused)"),
        ("http://127.0.0.1:1/a%20b", "cannot be reached (Connection refused)"),
        ("http://xn--a-ecp.ru-:1", "its address or a header is not valid"),
    ],
)
def test_an_unreachable_address_has_its_reason(address, words):
    with pytest.raises(RewardError, match=re.escape(words)):
        Remote((address,), retries=0).start()


def test_servers_of_different_rewards_are_refused(url, tmp_path, fault):
    with server(tmp_path, "fedcba9876543210") as second:
        with pytest.raises(RewardError, match=r"identity fedcba9876543210, and http://.* serves 0123456789abcdef"):
            Remote((url, second)).start()
        with pytest.raises(RewardError, match="and the recipe asks for 0123456789abcdef"):
            Remote((second,), identity="0123456789abcdef").start()
    fault("other")
    with pytest.raises(RewardError, match="now serves another reward, identity 'another'; asked once"):
        Remote((url,))(IMAGES, PROMPTS)


def test_the_token_comes_from_the_environment(tmp_path, monkeypatch):
    with server(tmp_path, "0123456789abcdef", "sesame-sesame-sesame") as guarded:
        with pytest.raises(RewardError, match="answered 401: wrong or no token; asked once"):
            Remote((guarded,))(IMAGES, PROMPTS)
        with pytest.raises(ConfigError, match=r"FAR_TOKEN.*not set"):
            Remote((guarded,), token_env="FAR_TOKEN").start()
        monkeypatch.setenv("FAR_TOKEN", "sesame-sesame-sesame\n")
        assert len(Remote((guarded,), token_env="FAR_TOKEN")(IMAGES, PROMPTS)) == 5


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"urls": ()}, "urls must name"),
        ({"urls": ("127.0.0.1:80",)}, "is no address"),
        ({"urls": ("http://me:secret@host",)}, "token_env"),
        ({"urls": ("http://a b:1",)}, r'urls: "http://a b:1" is no address \(a blank or a control character\)'),
        ({"urls": ("http://a:1/\t",)}, "a blank or a control character"),
        ({"urls": ("http://\x1b[31ma:1",)}, r'"http://\\x1b\[31ma:1" is no address'),
        ({"urls": ("http://a\u202eb:1",)}, r'"http://a\\u202eb:1" is no address'),
        ({"urls": ("http://a..b:1",)}, "label empty"),
        ({"urls": (f"http://{'a' * 64}:1",)}, "label too long"),
        ({"urls": ("http://a:99999",)}, "out of range"),
        ({"urls": ("http://[::1",)}, "IPv6"),
        ({"urls": ("http://\ud800:1",)}, r'"http://\\ud800:1" is no address'),
        ({"urls": ("http://a",), "batch": 0}, "batch"),
        ({"urls": ("http://a",), "timeout_s": 0}, "timeout_s"),
        ({"urls": ("http://a",), "retries": -1}, "retries"),
        ({"urls": ("http://a",), "backoff_s": -0.5}, "backoff_s"),
    ],
)
def test_bad_settings_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        Remote(**settings)


# -- runs --------------------------------------------------------------------------------------------------------


def sets_of(url, name=""):
    table = f'kind="remote",urls=["{url}"],timeout_s={patience(name)},retries=1,backoff_s=0.01'
    return [*TINY, f"rewards={{far={{{table}}}}}"]


@pytest.fixture(scope="module")
def unharmed(tmp_path_factory):
    """A run whose server never failed."""
    here = tmp_path_factory.mktemp("unharmed")
    with tiny_runs.folder(here), server(here / "server") as address:
        assert command("train", "flow-grpo-fast", "--name", "it", sets=sets_of(address)).code == 0
    return here / "runs/it"


@pytest.mark.parametrize("name", ["error", "hang", "half", "nan", "count", "garbage", "huge"])
def test_a_stopped_run_continues_with_equal_numbers(name, unharmed, tmp_path):
    with tiny_runs.folder(tmp_path, keep=False), server(tmp_path / "server") as address:
        (tmp_path / "server/fault").write_text(f"{name} 5")  # a self-test, evaluations around two iterations, then it
        end = command("train", "flow-grpo-fast", "--name", "it", sets=sets_of(address, name))
        assert end.code == 1
        assert end.err.startswith(f"grpaint: reward far: {address}: ")
        message = FAULTS[name].replace("4 scores for 5", "11 scores for 12")
        assert message in end.err
        assert end.err.count("\n") == 1
        assert status(Path("runs/it"))["status"] == "failed"
        assert [path.name for path in Path("runs/it/checkpoints").iterdir()] == ["000002"]
        (tmp_path / "server/fault").unlink()
        end = command("train", "--name", "it", "--resume")
        assert (end.code, end.err) == (0, "")
        tiny_runs.same(unharmed, Path("runs/it"))


def test_a_missing_server_is_reported_before_weights_load_and_may_move(unharmed, tmp_path, monkeypatch):
    with tiny_runs.folder(tmp_path, keep=False), server(tmp_path / "server") as address:
        with monkeypatch.context() as patch:
            patch.setattr("grpaint.backends.scenes.Scenes.load", None)
            end = command("train", "flow-grpo-fast", "--name", "it", sets=sets_of("http://127.0.0.1:1"))
        assert end.code == 1
        assert "reward far: http://127.0.0.1:1: cannot be reached (Connection refused); asked 2 times" in end.err
        end = command("train", "--name", "it", "--resume", sets=[f'rewards.far.urls=["{address}"]'])
        assert (end.code, end.err) == (0, "")
        tiny_runs.same(unharmed, Path("runs/it"))
