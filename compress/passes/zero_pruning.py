"""Zero pruning: weights near zero are removed, one by one or with their whole neuron or channel."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, ClassVar

from pydantic import model_validator
from typing_extensions import Self

from fleetfit.compress.passes.base import Needs, PassContext, PassReport
from fleetfit.compress.passes.structured import StructuredPass

if TYPE_CHECKING:
    from fleetfit.compress.graph import LayeredModel

_WIDEST_PATTERN = 64


class ZeroPruning(StructuredPass):
    """Remove weights by magnitude.

    `pattern` `channels` removes whole neurons and channels, those for which the weights that make them have the smallest L2
    norm, with every weight that reads them. `unstructured` sets single weights to zero. `N:M`, such as `2:4`, leaves the N
    largest of every M neighbours along the inputs of a layer, and sets the others to zero. Zeros stay through later training;
    they change neither file size nor latency on ordinary runtimes.

    `ratio` is the share that goes of what is there and not zero: given again and again it composes. N:M has none; whole
    channels may have `budget` `{macs: SHARE}` instead. `scope` `layer` takes the ratio in each layer; `global` ranks all layers
    together, channels after dividing each layer's norms by their mean, single weights by their LAMP score. `layers` limits it to
    one kind of layer.
    """

    needs: ClassVar = frozenset({Needs.LAYERS})
    amounts: ClassVar = ()

    pattern: str = "channels"

    @model_validator(mode="after")
    def _they_fit_together(self) -> ZeroPruning:
        if self.pattern == "channels":
            if (self.ratio is None) == (self.budget is None):
                raise ValueError("give either 'ratio' or 'budget' for whole channels")
        elif self.budget is not None:
            raise ValueError(f"the pattern '{self.pattern}' leaves all MACs as they are; leave 'budget' out")
        elif self.pattern == "unstructured":
            if self.ratio is None:
                raise ValueError(f"give 'ratio', the share that goes, with the pattern '{self.pattern}'")
        else:
            keep, every = self.of_every()
            if not 0 < keep < every <= _WIDEST_PATTERN:
                raise ValueError(
                    f"the pattern '{self.pattern}' must leave at least 1 and not all of at most {_WIDEST_PATTERN} weights"
                )
            if self.ratio is not None:
                raise ValueError(f"the pattern '{self.pattern}' says how much goes; leave 'ratio' out")
            if self.scope == "global":
                raise ValueError(f"the pattern '{self.pattern}' holds in every layer alike; leave 'scope' out")
        if self.pattern != "channels" and self.round_to not in (None, 1):
            raise ValueError(f"the pattern '{self.pattern}' leaves all widths as they are; leave 'round_to' out")
        return self

    def of_every(self) -> tuple[int, int]:
        """N and M of the pattern N:M. Raises ValueError where it is another one."""
        found = re.fullmatch(r"(\d{1,2}):(\d{1,2})", self.pattern)
        if found is None:
            raise ValueError(f"'pattern' is 'channels', 'unstructured' or N:M such as '2:4', not '{self.pattern[:40]}'")
        return int(found[1]), int(found[2])

    def overridable(self) -> tuple[str, ...]:
        """Layers that are ranked together have one ratio together."""
        ratio = () if self.scope == "global" else ("ratio",)
        if self.pattern == "channels":
            return (*ratio, "round_to")
        return ratio if self.pattern == "unstructured" else ("pattern",)

    def fitted(self, round_to: int) -> Self:
        """Only whole channels have a width to round."""
        return super().fitted(round_to) if self.pattern == "channels" else self

    def least_share(self) -> float:
        """A zero takes as many bytes as any number; how many channels go is not known beforehand."""
        return 0.0 if self.pattern == "channels" else 1.0

    def wants(self) -> frozenset[Needs]:
        """Only a scan looks at data."""
        scans = self.budget is not None and self.budget.scan
        return self.needs | {Needs.DATA} if scans else self.needs

    def apply(self, model: LayeredModel, context: PassContext) -> PassReport:
        """Remove the neurons, or set the weights to zero."""
        from fleetfit.compress.pruning.magnitude import prune_by_magnitude

        return prune_by_magnitude(model, self, context)
