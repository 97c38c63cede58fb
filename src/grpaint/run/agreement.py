"""What the processes of a run agree on: measures, costs, times, signals, and that their weights are equal."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch

from grpaint.core.errors import RunError
from grpaint.core.policy import Meter
from grpaint.learn.objective import Term
from grpaint.parallel.world import World
from grpaint.storage.files import tensors_digest


def with_anchor(terms: Iterable[Term], anchor: Callable[[], Iterable[Term]], world: World) -> Iterator[Term]:
    """Yield the terms, and then the anchor's if any rank had a term."""
    has_terms = False
    for term in terms:
        has_terms = True
        yield term
    if has_terms:  # before the others are asked, so that ranks wait for each other once, at the end
        yield from anchor()
    if world.any(has_terms) and not has_terms:
        yield from anchor()


def mean_measures(measures: Mapping[str, Sequence[torch.Tensor]], world: World) -> dict[str, float]:
    """Return the mean of each measure over all ranks' rows, or the maximum if its name contains "error"."""
    parts = {name: torch.cat(list(values)) for name, values in measures.items()}
    if world.size == 1:
        return {name: (v.max() if "error" in name else v.float().mean()).item() for name, v in parts.items()}
    own = {name: [v.double().sum().item(), len(v), v.max().item()] for name, v in parts.items()}
    every, means = world.gather_values(own), {}
    for name in dict.fromkeys(name for one in every for name in one):
        sums, counts, highest = zip(*(one[name] for one in every if name in one), strict=True)
        if "error" in name:  # max of a NaN depends on the order
            means[name] = math.nan if any(map(math.isnan, highest)) else max(highest)
        else:
            means[name] = sum(sums) / sum(counts)
    return means


def merge_costs(meter: Meter, world: World) -> None:
    """Make the counts of model evaluations those of all ranks."""
    if world.size > 1:
        meter.merge(world.gather_values(meter.tally()))


def merge_times(
    times: Mapping[str, float], peak: float, rows: int, meter: Meter, world: World
) -> tuple[dict[str, float], dict[str, Any]]:
    """Return the phases' seconds of the slowest rank, with all ranks' processor seconds, and other measures.

    These are the largest ``peak`` memory in MiB and, of many ranks, the slowest one's number, the bytes that all have
    sent since the last call, and each one's ``rows`` and seconds. The counts of model evaluations become those of all.
    """
    if world.size == 1:
        return dict(times), {"memory/peak_mib": round(peak, 1)}
    own, world.bytes_exchanged = [dict(times), peak, world.bytes_exchanged, rows, meter.tally()], 0
    every, peaks, sent, all_rows, tallies = zip(*world.gather_values(own), strict=True)
    meter.merge(tallies)
    seconds = [round(sum(value for name, value in one.items() if name not in ("cpu", "pictures")), 4) for one in every]
    slowest = seconds.index(max(seconds))
    measures = {"slowest_rank": slowest, "bytes": sum(sent), "rows": list(all_rows), "seconds": seconds}
    cpu = sum(one.get("cpu", 0.0) for one in every)
    shared = {f"processes/{name}": value for name, value in measures.items()}
    return every[slowest] | {"cpu": cpu}, {"memory/peak_mib": round(max(peaks), 1)} | shared


def common_signal(requested: int, world: World) -> int:
    """Return the signal that any rank has received, or 0."""
    return max(world.gather_values(requested))


def check_equal_weights(weights: Mapping[str, torch.Tensor], world: World) -> None:
    """Check that every rank has the same trainable weights, or the same share of them as its peers on other machines.

    Raises:
        RunError: some differ from those of most; the message names these ranks.
    """
    if world.size == 1:
        return
    every = world.gather_values(tensors_digest(weights))
    shares = world.local_size if world.shares_weights else 1
    for share in range(shares):
        _check_equal(dict(enumerate(every[share::shares])), shares, share)


def _check_equal(digests_by_peer: Mapping[int, str], shares: int, share: int) -> None:
    digests: defaultdict[str, list[int]] = defaultdict(list)
    for peer, digest in digests_by_peer.items():
        digests[digest].append(peer * shares + share)
    if len(digests) > 1:
        most = max(digests.values(), key=len)
        others = [rank for ranks in digests.values() if ranks is not most for rank in ranks]
        raise RunError(
            f"the weights of rank {', '.join(map(str, sorted(others)))} differ from those of the other ranks: "
            "something changed them outside the updates, or a device computes wrongly. The last checkpoint stays; look "
            "at that rank's machine and continue with --resume."
        )
