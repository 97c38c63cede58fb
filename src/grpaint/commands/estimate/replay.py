"""Run a pipeline's network and VAE once for each shape, and replay the memory cost at every later call.

A rollout calls the network hundreds of times with equal shapes. The first call of a shape runs the model's own code;
later ones record its peak in the ledger and return an output of the same shape. With gradients they also hold as many
bytes as its graph until their backward.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from grpaint.backends.fake import FakeRuntime
from grpaint.commands.estimate.ledger import Ledger, size
from grpaint.core.prediction import Prediction


@dataclass(frozen=True)
class Trace:
    """The output and the memory cost of a call, in bytes.

    ``forward``: the forward's peak above what was live before it; ``graph``: held by the graph until the backward;
    ``backward``: the backward's peak above what was live before it; ``accumulating``: the same if gradients exist
    already and are added to.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    forward: int
    graph: int = 0
    backward: int = 0
    accumulating: int = 0


Traces = dict[Any, Trace]  # of one model, for any recipe: by work, whether with gradients, and input shapes


class Replay:
    """Runs work on fake tensors once for each shape, and replays its trace at later calls."""

    def __init__(
        self, parameters: Iterable[nn.Parameter], runtime: FakeRuntime, ledger: Ledger, traces: Traces
    ) -> None:
        self.parameters, self.runtime, self.ledger, self.traces = list(parameters), runtime, ledger, traces

    def run(self, name: str, inputs: Any, work: Callable[[], Tensor]) -> Tensor:
        """Return a tensor like the output of ``work``, which runs only if no trace of these inputs exists.

        Its shapes must follow from those of the tensors in ``inputs`` and from the other values there.
        """
        grad = torch.is_grad_enabled()
        key = (name, grad, *map(_signature, tree_leaves(inputs)))
        if key not in self.traces:
            self.traces[key] = self._trace_with_gradients(work) if grad else self._trace(work)
        if grad:
            return _ReplayedCall.apply(self.parameters[0], self, self.traces[key])
        return self.replay_forward(self.traces[key])

    def predict(self, inputs: tuple[Tensor, Any, int, str], work: Callable[[], Prediction]) -> Prediction:
        """Return a prediction like that of ``work``, which splits its rows into calls of the network.

        Without gradients it runs only once for each number of rows; with gradients, each call is replayed by itself.
        """
        if torch.is_grad_enabled():
            return work()
        x, cond, batch, weights = inputs
        parts = [part for part in tree_leaves(list(vars(cond).values())) if isinstance(part, Tensor)]
        key = ("predict", tuple(x.shape), batch, weights, *map(_signature, parts))
        if key not in self.traces:
            before = self.ledger.live
            with self.ledger.watch() as peak:
                out = work().x0
            self.traces[key] = Trace(tuple(out.shape), out.dtype, peak.whole - before)
        trace = self.traces[key]
        return Prediction(self.replay_forward(trace), self.runtime.blank(trace.shape, trace.dtype))

    def replay_forward(self, trace: Trace) -> Tensor:
        """Record the peak of a call's forward, and return a tensor like its output."""
        self.ledger.record_spike(trace.forward)
        return self.runtime.blank(trace.shape, trace.dtype)

    def _trace(self, work: Callable[[], Tensor]) -> Trace:
        before = self.ledger.live
        with self.ledger.watch() as peak:
            out = work()
        return Trace(tuple(out.shape), out.dtype, peak.whole - before)

    def _trace_with_gradients(self, work: Callable[[], Tensor]) -> Trace:
        """Run a separate forward and backward, and discard the gradients."""
        grads = [parameter.grad for parameter in self.parameters]
        for parameter in self.parameters:
            parameter.grad = None
        before = self.ledger.live
        with self.ledger.watch() as forward:
            out = work()
        after = self.ledger.live
        with self._crediting_gradients(), self.ledger.watch() as backward:
            out.backward(torch.ones_like(out))
        for parameter, grad in zip(self.parameters, grads, strict=True):
            parameter.grad = grad
        costs = (
            forward.whole - before,
            after - before - size([out]),
            backward.whole - after,
            backward.uncredited - after,
        )
        return Trace(tuple(out.shape), out.dtype, *costs)

    @contextmanager
    def _crediting_gradients(self) -> Iterator[None]:
        """Credit gradients as they arrive, to know the peak without them: existing ones are added to in place."""

        def note(parameter: Tensor) -> None:
            assert parameter.grad is not None
            self.ledger.credit += size([parameter.grad])

        hooks = [parameter.register_post_accumulate_grad_hook(note) for parameter in self.parameters]
        try:
            yield
        finally:
            self.ledger.credit = 0
            for hook in hooks:
                hook.remove()

    def fill_gradients(self) -> None:
        """Give every trainable weight that has no gradient a fake one."""
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = self.runtime.blank(parameter.shape, parameter.dtype)


def _signature(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    has_values = type(value) is Tensor and not value.is_floating_point()  # caption lengths: shapes may depend on them
    return tuple(value.shape), value.dtype, tuple(value.flatten().tolist()) if has_values else None


class ReplayedFamily:
    """A pipeline family whose network and VAE calls are replayed."""

    def __init__(self, family: Any, replay: Replay) -> None:
        self._family, self._replay = family, replay

    def __getattr__(self, name: str) -> Any:
        return getattr(self._family, name)

    def call(self, pipe: Any, x: Tensor, t: Tensor, cond: tuple[Tensor, ...], guidance: float) -> Tensor:
        """The network's output."""
        return self._replay.run("call", (x, cond), lambda: self._family.call(pipe, x, t, cond, guidance))

    def decode(self, pipe: Any, latents: Tensor) -> Tensor:
        """The VAE's images of latents."""
        return self._replay.run("decode", latents, lambda: self._family.decode(pipe, latents))

    def encode_images(self, pipe: Any, images: Tensor) -> Tensor:
        """The VAE's latents of images."""
        return self._replay.run("encode", images, lambda: self._family.encode_images(pipe, images))


class _ReplayedCall(torch.autograd.Function):
    """A call that records the costs of its trace; ``_anchor`` is a trainable weight, so that autograd runs backward."""

    @staticmethod
    def forward(ctx: Any, _anchor: Tensor, replay: Replay, trace: Trace) -> Tensor:
        out = replay.replay_forward(trace)
        ctx.replay, ctx.trace, ctx.graph = replay, trace, replay.runtime.blank((trace.graph,), torch.uint8)
        return out

    @staticmethod
    def backward(ctx: Any, *_grads: Tensor) -> tuple[None, None, None]:
        first = ctx.replay.parameters[0].grad is None
        ctx.replay.ledger.record_spike(ctx.trace.backward if first else ctx.trace.accumulating)
        ctx.graph = None
        ctx.replay.fill_gradients()
        return None, None, None
