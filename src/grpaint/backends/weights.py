"""The four sets of weights of a policy: current, behaviour, average and reference."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from grpaint.backends.adapters import FROZEN, TRAINED
from grpaint.core.policy import Weights


class WeightSets:
    """The current weights are the module's own; each other set is an fp32 copy of the trainable tensors.

    ``adapters``: the trainable tensors are new adapters (peft layers) on a frozen base. The reference is then the
    module with these switched off, and takes no memory. ``frozen``: the names of the frozen adapters that are on; they
    belong to every set.
    """

    def __init__(self, module: nn.Module, trainable: Mapping[str, nn.Parameter], *, adapters: bool) -> None:
        self.module = module
        self.trainable = dict(trainable)
        self.adapters = adapters
        self.frozen: tuple[str, ...] = ()
        copied: tuple[Weights, ...] = ("average",) if adapters else ("average", "reference")
        self.copies: dict[Weights, dict[str, Tensor]] = {name: self._copy() for name in copied}

    def _copy(self) -> dict[str, Tensor]:
        return {name: parameter.detach().clone() for name, parameter in self.trainable.items()}

    @contextmanager
    def use(self, weights: Weights) -> Iterator[None]:
        """Inside the block, the module has the set ``weights``.

        Raises:
            KeyError: if there is no such set.
        """
        if weights == "current":
            yield
        elif weights == "reference" and self.adapters:
            self._activate(trained=False)
            try:
                yield
            finally:
                self._activate(trained=True)
        else:
            copies = self.copies.get(weights)
            if copies is None:
                raise KeyError(f"there are no {weights} weights; blend(into={weights!r}, keep=0) creates them")
            current = {name: parameter.data for name, parameter in self.trainable.items()}
            self._set_data(copies)
            try:
                yield
            finally:
                self._set_data(current)

    def _set_data(self, tensors: Mapping[str, Tensor]) -> None:
        for name, parameter in self.trainable.items():
            parameter.data = tensors[name]

    def switch_frozen(self, names: Sequence[str]) -> None:
        """Switch these frozen adapters on, and all others off."""
        self.frozen = tuple(names)
        self._activate(trained=True)

    @contextmanager
    def with_frozen(self, names: Sequence[str] | None) -> Iterator[None]:
        """Inside the block, these frozen adapters are on, and all others off; None leaves them as they are."""
        before = self.frozen
        if names is None or set(names) == set(before):
            yield
            return
        self.switch_frozen(names)
        try:
            yield
        finally:
            self.switch_frozen(before)

    def _activate(self, *, trained: bool) -> None:
        """Switch on the frozen adapters in ``frozen`` and, if ``trained``, the trained one."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        names = [FROZEN + name for name in self.frozen] + [TRAINED] * trained
        for layer in self.module.modules():
            if isinstance(layer, BaseTunerLayer):
                layer.set_adapter(names, inference_mode=True)
        for parameter in self.trainable.values():
            parameter.requires_grad_(True)  # peft freezes every adapter then

    def blend(self, into: Weights, keep: float) -> None:
        """``into <- keep * into + (1 - keep) * current``; a set that does not exist yet starts as a copy."""
        if into == "current" or (into == "reference" and self.adapters):
            raise ValueError(f"cannot blend into the {into} weights")
        if into not in self.copies:
            self.copies[into] = self._copy()
        copies = [self.copies[into][name] for name in self.trainable]
        get_ema_multi_avg_fn(keep)(copies, [parameter.detach() for parameter in self.trainable.values()], 0)

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Every set that a checkpoint must contain, by name."""
        now = {name: parameter.detach() for name, parameter in self.trainable.items()}
        return {"current": now} | {str(name): copies for name, copies in self.copies.items()}

    def load(self, sets: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Restore what :meth:`tensors` returned; a set that is missing there stays as it is."""
        for name, parameter in self.trainable.items():
            parameter.data.copy_(sets["current"][name])
        copies: Iterable[Weights] = ("average", "behaviour", "reference")
        for name in copies:
            if name in sets:
                devices = {key: parameter.device for key, parameter in self.trainable.items()}
                self.copies[name] = {key: t.to(devices[key], copy=True) for key, t in sets[name].items()}
