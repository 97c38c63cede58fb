"""What the ledger books, against closed forms."""

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from grpaint.backends.fake import FakeRuntime, emulate_device
from grpaint.commands.estimate.ledger import Ledger, size
from grpaint.commands.estimate.replay import Replay

ROWS, WIDTH, DEPTH = 64, 128, 3
FLOAT = 4


def mlp() -> nn.Sequential:
    return nn.Sequential(*[layer for _ in range(DEPTH) for layer in (nn.Linear(WIDTH, WIDTH, bias=False), nn.Tanh())])


def test_an_mlp_needs_the_computed_bytes() -> None:
    """Weights; a row of activations a layer (what tanh gives, the next layer reads); gradients; Adam's two."""
    runtime = FakeRuntime()
    weights, row = DEPTH * WIDTH * WIDTH * FLOAT, ROWS * WIDTH * FLOAT
    with Ledger() as ledger, emulate_device(runtime.target):
        with runtime.building():
            net = mlp()
        runtime.place(net)
        assert ledger.live == size(net.parameters()) == weights
        x = runtime.blank((ROWS, WIDTH))
        before = ledger.live
        with ledger.phase("forward"):
            out = net(x)
        # each tanh's output is the next layer's input and kept for both; the linear outputs are freed but for a moment
        assert ledger.live - before == DEPTH * row
        assert ledger.peaks["forward"] - before == (DEPTH + 1) * row
        loss = out.sum()
        loss.backward()
        del out, loss
        assert ledger.live - before == weights
        optimizer = torch.optim.AdamW(net.parameters(), fused=True)
        optimizer.step()
        assert 3 * weights <= ledger.live - before <= 3 * weights + 64 * DEPTH
        optimizer.zero_grad(set_to_none=True)
        assert 2 * weights <= ledger.live - before <= 2 * weights + 64 * DEPTH


def test_half_precision_is_half() -> None:
    runtime = FakeRuntime("cpu", "bf16")
    with Ledger() as ledger:
        runtime.blank((8, 8))
        stored = runtime.blank((8, 8), torch.bfloat16)
        assert ledger.live == size([stored]) == 128


def test_cuda_normalises_in_fp32_and_a_cpu_does_not() -> None:
    for target, dtype in (("cuda", torch.float32), ("cpu", torch.bfloat16)):
        runtime = FakeRuntime("cpu", "bf16", target=target)
        with emulate_device(runtime.target), runtime.autocast():
            x = runtime.blank((2, 8, 4), torch.bfloat16)
            assert nn.functional.group_norm(x, 2).dtype == dtype
            assert nn.functional.linear(runtime.blank((2, 8)), runtime.blank((8, 8))).dtype == torch.bfloat16


def test_checkpointing_computes_again_as_it_did_before() -> None:
    runtime = FakeRuntime("cpu", "bf16", target="cuda")
    with emulate_device(runtime.target), runtime.autocast():
        x = runtime.blank((2, 8, 4), torch.bfloat16).requires_grad_()
        again = checkpoint(lambda x: nn.functional.group_norm(x, 2).square(), x, use_reentrant=False)
        again.sum().backward()
    assert x.grad is not None


def test_attention_keeps_no_scores() -> None:
    runtime, length = FakeRuntime(), 512
    with Ledger() as ledger, emulate_device(runtime.target):
        q = runtime.blank((1, 2, length, 16)).requires_grad_()
        before = ledger.live
        out = nn.functional.scaled_dot_product_attention(q, q, q)
        assert ledger.live - before < 2 * length * length * FLOAT / 8
        assert out.shape == q.shape


def test_a_real_mask_picks_rows_of_a_fake_tensor() -> None:
    runtime = FakeRuntime()
    with emulate_device(runtime.target):
        assert runtime.blank((4, 3))[torch.tensor([True, False, True, True])].shape == (3, 3)


def _peak(recalled: bool) -> tuple[int, int]:
    """The peak and the end of three calls in one graph, twice, so that the second time gradients are there."""
    runtime = FakeRuntime()
    with Ledger() as ledger, emulate_device(runtime.target):
        with runtime.building():
            net = mlp()
        runtime.place(net)
        replay = Replay(net.parameters(), runtime, ledger, {})
        for _ in range(2):
            with ledger.phase("update"):
                x = runtime.blank((ROWS, WIDTH))
                work = lambda x=x: net(x)  # noqa: E731
                outs = [replay.run("call", x, work) if recalled else work() for _ in range(3)]
                torch.cat(outs).square().sum().backward()
        del outs, x, work
        return ledger.peaks["update"], ledger.live


def test_recalled_calls_take_what_real_ones_take() -> None:
    (once, end), (real, real_end) = _peak(True), _peak(False)
    assert end == real_end
    assert abs(once - real) <= 0.05 * real
