"""The four sets of weights of a policy: current, behaviour, average and reference."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial

from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from grpaint.backends.adapters import FROZEN, SECOND_FACTOR, TRAINED
from grpaint.core.policy import Weights
from grpaint.core.runtime import Sharding
from grpaint.storage.layout import LateTensor, WeightTensors


class WeightSets:
    """The current weights are the module's own; each other set is an fp32 copy of the trainable tensors.

    ``adapters``: the trainable tensors are new adapters (peft layers) on a frozen base. The reference is then the
    module with these switched off, and takes no memory. ``frozen``: the names of the frozen adapters that are on; they
    belong to every set. ``sharding``: what divides the module among processes; if it divides the trainable tensors too,
    these are shares, and other sets take their place in the same memory. ``active``: the set that the module has now.
    """

    def __init__(
        self,
        module: nn.Module,
        trainable: Mapping[str, nn.Parameter],
        *,
        adapters: bool,
        sharding: Sharding | None = None,
    ) -> None:
        self.module = module
        self.active: Weights = "current"
        self._divider = sharding
        self.sharding = sharding if sharding and sharding.shapes else None
        self.trainable = dict(trainable)
        self.adapters = adapters
        self.frozen: tuple[str, ...] = ()
        self._is_trained_on = True
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
            self._switch(self.frozen, trained=False)
            try:
                yield
            finally:
                self._switch(self.frozen, trained=True)
        else:
            copies = self.copies.get(weights)
            if copies is None:
                raise KeyError(f"there are no {weights} weights; blend(into={weights!r}, keep=0) creates them")
            before, self.active = self.active, weights
            try:
                with self._exchanged(before, weights) if self.sharding else self._replaced(copies):
                    yield
            finally:
                self.active = before

    @contextmanager
    def only(self, weights: Weights) -> Iterator[None]:
        """Inside the block, a module whose tensors are shares has the set ``weights``, whatever block encloses it."""
        with self._exchanged(self.active, weights) if self.sharding else nullcontext():
            yield

    @contextmanager
    def _exchanged(self, before: Weights, weights: Weights) -> Iterator[None]:
        """Inside the block, shares of the set ``weights`` are in the place of those of ``before``."""
        self._exchange(before, weights)
        try:
            yield
        finally:
            self._exchange(weights, before)

    @contextmanager
    def _replaced(self, tensors: Mapping[str, Tensor]) -> Iterator[None]:
        """Inside the block, these tensors are in the place of the module's own."""
        own = {name: parameter.data for name, parameter in self.trainable.items()}
        self._set_data(tensors)
        try:
            yield
        finally:
            self._set_data(own)

    def _exchange(self, before: Weights, weights: Weights) -> None:
        """Put the set ``weights`` in the place of the set ``before``; the current one lies where its copy was."""
        for name in () if before == weights else (before, weights):
            for key, parameter in self.trainable.items() if name != "current" else ():
                copy = self.copies[name][key]
                current = parameter.data.clone()
                parameter.data.copy_(copy)
                copy.copy_(current)

    def _set_data(self, tensors: Mapping[str, Tensor]) -> None:
        for name, parameter in self.trainable.items():
            parameter.data = tensors[name]

    def switch_frozen(self, names: Sequence[str]) -> None:
        """Switch these frozen adapters on, and all others off.

        Raises:
            KeyError: there is none of a name.
        """
        adapters = getattr(self.module, "peft_config", {})
        for name in names:
            if FROZEN + name not in adapters:
                raise KeyError(f"there is no frozen adapter {name}")
        self._switch(names, trained=self._is_trained_on)

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

    def _switch(self, frozen: Sequence[str], *, trained: bool) -> None:
        """Switch on these frozen adapters and, if ``trained``, the trained one; all others off."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        self.frozen, self._is_trained_on = tuple(frozen), trained
        names = [FROZEN + name for name in self.frozen] + [TRAINED] * trained
        for layer in self.module.modules():
            if isinstance(layer, BaseTunerLayer):
                layer.set_adapter(names, inference_mode=True)
        for parameter in self.trainable.values():
            parameter.requires_grad_(True)  # peft freezes every adapter then

    def blend(self, into: Weights, keep: float, extrapolation: float = 0.0) -> None:
        """Blend the current weights into a set: ``into <- keep * into + (1 - keep) * current``.

        A set that does not exist yet starts as a copy. With ``extrapolation`` e, what is blended in is the network
        reference + (1 + e) (current - reference); for adapters of two factors the second one is multiplied. Of an
        adapter that goes on from a file each factor is moved, which gives that network to first order.
        """
        if into == "current" or (into == "reference" and self.adapters):
            raise ValueError(f"cannot blend into the {into} weights")
        if into not in self.copies:
            self.copies[into] = self._copy()
        update = get_ema_multi_avg_fn(keep)
        copies = self.copies[into]
        if not extrapolation:
            update([copies[name] for name in self.trainable], [p.detach() for p in self.trainable.values()], 0)
            return
        for name, parameter in self.trainable.items():  # one after another: each needs memory of its own
            update([copies[name]], [self._extrapolated(name, parameter.detach(), 1 + extrapolation)], 0)

    def _extrapolated(self, name: str, tensor: Tensor, factor: float) -> Tensor:
        if not self.adapters:
            reference = self.copies["reference"][name]
            return reference + factor * (tensor - reference)
        return tensor * factor if SECOND_FACTOR in name else tensor

    def own(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return this process's shares of whole tensors: of trainable ones by name, or of their optimizer state."""
        if not self.sharding:
            return tensors
        shapes = {key: self.sharding.shapes.get(self._trainable_name(key)) for key in tensors}
        return {
            key: self.sharding.part(tensor) if tensor.shape == shapes[key] else tensor
            for key, tensor in tensors.items()
        }

    def whole(self, tensors: Mapping[str, Tensor]) -> WeightTensors:
        """Return the whole tensors of shares, named as for :meth:`own`; all processes must read them, in one order."""
        if not self.sharding:
            return tensors
        late: dict[str, Tensor | LateTensor] = dict(tensors)
        for key, tensor in tensors.items():
            name = self._trainable_name(key)
            if name in self.trainable and tensor.shape == self.trainable[name].shape:
                shape = self.sharding.shapes[name]
                late[key] = LateTensor(shape, tensor.dtype, partial(self.sharding.whole, tensor, shape))
        return late

    def _trainable_name(self, key: str) -> str:
        """Return the name of the trainable tensor to which a tensor belongs: it, or its optimizer state."""
        return key if key in self.trainable else key.rpartition(".")[0]

    def module_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every tensor of the module, whole, in the order of their names; all processes that divide it do so."""
        for name, tensor in sorted(self.module.state_dict().items()):
            yield name, self._divider.whole_parameter(tensor) if self._divider else tensor.detach()

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Every set that a checkpoint must contain, by name."""
        now = {name: parameter.detach() for name, parameter in self.trainable.items()}
        return {"current": now} | {str(name): copies for name, copies in self.copies.items()}

    def load(self, sets: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Restore what :meth:`tensors` returned, whole; a set that is missing there stays as it is."""
        sets = {name: self.own(tensors) for name, tensors in sets.items()}
        for name, parameter in self.trainable.items():
            parameter.data.copy_(sets["current"][name])
        copies: Iterable[Weights] = ("average", "behaviour", "reference")
        for name in copies:
            if name in sets:
                devices = {key: parameter.device for key, parameter in self.trainable.items()}
                self.copies[name] = {key: t.to(devices[key], copy=True) for key, t in sets[name].items()}
