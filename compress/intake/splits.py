"""Three fixed splits, the same for the same seed on any machine."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fleetfit.core.errors import InvalidData

Indices = npt.NDArray[np.intp]
VALIDATION_SHARE = 0.15
TEST_SHARE = 0.15
# A class with fewer samples cannot be in all three splits; the training split needs it most.
_RARE = 3


@dataclass(frozen=True)
class Splits:
    """Sorted positions of the samples in each split; `test` is empty where the user brought a test file."""

    train: Indices
    validation: Indices
    test: Indices


def split_at_random(count: int, seed: int, *, test: bool, labels: npt.NDArray[np.generic] | None = None) -> Splits:
    """Split `count` samples, with every class of `labels` in the same share in each split."""
    order = np.random.default_rng(seed).permutation(count)
    rare = np.zeros(count, dtype=bool)
    if labels is not None:
        order = order[np.argsort(labels[order], kind="stable")]
        _, inverse, sizes = np.unique(labels, return_inverse=True, return_counts=True)
        rare = (sizes < _RARE)[inverse]
    common = order[~rare[order]]
    test_mask = _every(len(common), TEST_SHARE if test else 0.0)
    tested, rest = common[test_mask], common[~test_mask]
    validation_mask = _every(len(rest), VALIDATION_SHARE / (1 - TEST_SHARE) if test else VALIDATION_SHARE)
    validated, trained = rest[validation_mask], rest[~validation_mask]
    return _checked(np.concatenate([trained, order[rare[order]]]), validated, tested, test)


def _every(count: int, share: float) -> npt.NDArray[np.bool_]:
    """A mask that takes `share` of consecutive positions as evenly as integers allow."""
    steps = np.floor(np.arange(count + 1) * share + 0.5)
    return np.asarray(np.diff(steps) > 0)


def split_by_group(groups: npt.NDArray[np.generic], seed: int, *, test: bool) -> Splits:
    """Split so that no group is in two splits; the shares are as near as whole groups allow."""
    names, inverse, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    wanted = {"validation": VALIDATION_SHARE, "train": 1 - VALIDATION_SHARE - (TEST_SHARE if test else 0.0)}
    if test:
        wanted["test"] = TEST_SHARE
    if len(names) < len(wanted):
        raise InvalidData(
            f"The array groups names {len(names)} groups where {len(wanted)} splits are to be made; name at least one group for "
            "each split, or leave groups out."
        )
    have = dict.fromkeys(wanted, 0)
    chosen: dict[str, list[int]] = {name: [] for name in wanted}
    shuffled = np.random.default_rng(seed).permutation(len(names))
    # Large groups first: the small ones then even out the shares.
    for position, group in enumerate(sorted(shuffled, key=lambda g: -sizes[g])):
        left = len(names) - position
        empty = [name for name in wanted if not chosen[name]]
        candidates = empty if len(empty) == left else list(wanted)
        target = max(candidates, key=lambda name: wanted[name] * len(groups) - have[name])
        chosen[target].append(int(group))
        have[target] += int(sizes[group])
    parts = {name: np.flatnonzero(np.isin(inverse, members)) for name, members in chosen.items()}
    none = np.zeros(0, dtype=np.intp)
    return _checked(parts["train"], parts["validation"], parts.get("test", none), test)


def _checked(train: Indices, validation: Indices, test: Indices, wants_test: bool) -> Splits:
    if not len(train) or not len(validation) or (wants_test and not len(test)):
        raise InvalidData(
            f"There are too few samples to split ({len(train) + len(validation) + len(test)}); give at least 10, and a few of "
            "each class."
        )
    return Splits(np.sort(train), np.sort(validation), np.sort(test))
