"""A pipeline's network and VAE, run once for each shape: what they took then is booked at every further call.

A rollout calls the network hundreds of times alike. The first call of a shape runs the model's own code; the next ones
book its peak, give an output of the same shape, and with gradients hold as much as its graph held until their backward.
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


@dataclass(frozen=True)
class Trace:
    """What a call took, in bytes: above what was live in the forward, held by its graph, above that in the backward.

    ``again``: the backward's where gradients are there already and are added to.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    forward: int
    kept: int = 0
    backward: int = 0
    again: int = 0


Traces = dict[Any, Trace]  # by work, whether with gradients, and shapes; of one model, whatever recipe it serves


class Recall:
    """Work on hollow tensors, done once for each shape."""

    def __init__(
        self, parameters: Iterable[nn.Parameter], runtime: FakeRuntime, ledger: Ledger, traces: Traces
    ) -> None:
        self.parameters, self.runtime, self.ledger, self.traces = list(parameters), runtime, ledger, traces

    def run(self, name: str, given: Any, work: Callable[[], Tensor]) -> Tensor:
        """What ``work`` gives, whose shapes follow from those of the tensors in ``given`` and from its real numbers."""
        grad = torch.is_grad_enabled()
        key = (name, grad, *map(_signature, tree_leaves(given)))
        if key not in self.traces:
            self.traces[key] = self._graph(work) if grad else self._plain(work)
        if grad:
            return _Echo.apply(self.parameters[0], self, self.traces[key])
        return self.again(self.traces[key])

    def again(self, trace: Trace) -> Tensor:
        """The forward of a call."""
        self.ledger.spike(trace.forward)
        return self.runtime.blank(trace.shape, trace.dtype)

    def _plain(self, work: Callable[[], Tensor]) -> Trace:
        before = self.ledger.live
        with self.ledger.watch() as peak:
            out = work()
        return Trace(tuple(out.shape), out.dtype, peak.whole - before)

    def _graph(self, work: Callable[[], Tensor]) -> Trace:
        """A forward and backward of its own, whose gradients are thrown away."""
        grads = [parameter.grad for parameter in self.parameters]
        for parameter in self.parameters:
            parameter.grad = None
        before = self.ledger.live
        with self.ledger.watch() as forward:
            out = work()
        after = self.ledger.live
        with self._credited(), self.ledger.watch() as backward:
            out.backward(torch.ones_like(out))
        for parameter, grad in zip(self.parameters, grads, strict=True):
            parameter.grad = grad
        kept = after - before - size([out])
        added = (forward.whole - before, kept, backward.whole - after, backward.less - after)
        return Trace(tuple(out.shape), out.dtype, *added)

    @contextmanager
    def _credited(self) -> Iterator[None]:
        """Gradients are credited as they arrive: where they are there already, they take no more."""

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

    def grown(self) -> None:
        """Every trainable weight has its gradient."""
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = self.runtime.blank(parameter.shape, parameter.dtype)


def _signature(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    real = type(value) is Tensor and not value.is_floating_point()  # lengths of captions: shapes may follow them
    return tuple(value.shape), value.dtype, tuple(value.flatten().tolist()) if real else None


class RecalledFamily:
    """A pipeline family whose network and VAE are recalled."""

    def __init__(self, family: Any, recall: Recall) -> None:
        self._family, self._recall = family, recall

    def __getattr__(self, name: str) -> Any:
        return getattr(self._family, name)

    def call(self, pipe: Any, x: Tensor, t: Tensor, cond: tuple[Tensor, ...], guidance: float) -> Tensor:
        """The network's output."""
        return self._recall.run("call", (x, cond), lambda: self._family.call(pipe, x, t, cond, guidance))

    def decode(self, pipe: Any, latents: Tensor) -> Tensor:
        """Images."""
        return self._recall.run("decode", latents, lambda: self._family.decode(pipe, latents))

    def encode_images(self, pipe: Any, images: Tensor) -> Tensor:
        """Latents."""
        return self._recall.run("encode", images, lambda: self._family.encode_images(pipe, images))


class _Echo(torch.autograd.Function):
    """A call that books what its trace says. ``_anchor`` is a weight, so that a gradient is asked of it."""

    @staticmethod
    def forward(ctx: Any, _anchor: Tensor, recall: Recall, trace: Trace) -> Tensor:
        out = recall.again(trace)
        ctx.recall, ctx.trace, ctx.kept = recall, trace, recall.runtime.blank((trace.kept,), torch.uint8)
        return out

    @staticmethod
    def backward(ctx: Any, *_grads: Tensor) -> tuple[None, None, None]:
        fresh = ctx.recall.parameters[0].grad is None
        ctx.recall.ledger.spike(ctx.trace.backward if fresh else ctx.trace.again)
        ctx.kept = None
        ctx.recall.grown()
        return None, None, None
