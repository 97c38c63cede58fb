"""The four sets of weights of a policy, kept as cheaply as the trainable part allows."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from grpaint.core.policy import Weights


class WeightSets:
    """Current weights live in the module; the others are fp32 copies of the trainable tensors alone.

    With adapters (peft layers) the reference is the adapter switched off and costs nothing.
    """

    def __init__(self, module: nn.Module, trainable: Mapping[str, nn.Parameter], *, adapters: bool) -> None:
        self.module = module
        self.trainable = dict(trainable)
        self.adapters = adapters
        kept: tuple[Weights, ...] = ("average",) if adapters else ("average", "reference")
        self.copies: dict[Weights, dict[str, Tensor]] = {name: self._copy() for name in kept}

    def _copy(self) -> dict[str, Tensor]:
        return {name: parameter.detach().clone() for name, parameter in self.trainable.items()}

    @contextmanager
    def use(self, weights: Weights) -> Iterator[None]:
        """Let the module answer with ``weights`` inside the block."""
        if weights == "current":
            yield
        elif weights == "reference" and self.adapters:
            self._switch(on=False)
            try:
                yield
            finally:
                self._switch(on=True)
        else:
            copies = self.copies.get(weights)
            if copies is None:
                raise KeyError(f"no {weights} weights are kept; blend(into={weights!r}, keep=0) makes them")
            current = {name: parameter.data for name, parameter in self.trainable.items()}
            self._point(copies)
            try:
                yield
            finally:
                self._point(current)

    def _point(self, tensors: Mapping[str, Tensor]) -> None:
        for name, parameter in self.trainable.items():
            parameter.data = tensors[name]

    def _switch(self, *, on: bool) -> None:
        from peft.tuners.tuners_utils import BaseTunerLayer

        for layer in self.module.modules():
            if isinstance(layer, BaseTunerLayer):
                layer.enable_adapters(on)
        for parameter in self.trainable.values():
            parameter.requires_grad_(True)  # peft freezes an adapter that it switches off

    def blend(self, into: Weights, keep: float) -> None:
        """``into <- keep * into + (1 - keep) * current``; a set that is not kept yet starts as a copy."""
        if into == "current" or (into == "reference" and self.adapters):
            raise ValueError(f"cannot blend into the {into} weights")
        if into not in self.copies:
            self.copies[into] = self._copy()
        copies = [self.copies[into][name] for name in self.trainable]
        get_ema_multi_avg_fn(keep)(copies, [parameter.detach() for parameter in self.trainable.values()], 0)

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Every set that a checkpoint must hold, by name."""
        now = {name: parameter.detach() for name, parameter in self.trainable.items()}
        return {"current": now} | {str(name): copies for name, copies in self.copies.items()}

    def load(self, sets: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take back what :meth:`tensors` gave; a set that is not among it stays as it is."""
        for name, parameter in self.trainable.items():
            parameter.data.copy_(sets["current"][name])
        kept: Iterable[Weights] = ("average", "behaviour", "reference")
        for name in kept:
            if name in sets:
                where = {key: parameter.device for key, parameter in self.trainable.items()}
                self.copies[name] = {key: t.to(where[key], copy=True) for key, t in sets[name].items()}
