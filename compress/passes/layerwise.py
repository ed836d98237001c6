"""Passes that treat a model layer by layer: which layers to leave alone, and other parameters for some of them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any, ClassVar

from pydantic import Field, ValidationError, model_validator
from typing_extensions import Self

from fleetfit.compress.passes.base import Pass
from fleetfit.core.errors import InvalidRecipe

_OWN = ("skip", "overrides")


class LayerwisePass(Pass):
    """A pass whose parameters may differ from layer to layer.

    A subclass names in `amounts` the parameters of which exactly one says how much is to be done, in `per_layer` the others
    that an override may give, and asks `for_layers` for the settings of each group of layers before it touches it. It calls
    `check_patterns` once, with all names that there are.
    """

    amounts: ClassVar[tuple[str, ...]] = ()
    per_layer: ClassVar[tuple[str, ...]] = ()

    skip: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Layers to leave alone, by name; `*` stands for anything: `stage1.*`."""
    overrides: dict[str, dict[str, Any]] | None = Field(default=None, min_length=1)
    """Other parameters for the layers of that name or pattern; the first pattern that fits a layer counts."""

    @model_validator(mode="after")
    def _one_amount(self) -> Self:
        given = [name for name in self.amounts if getattr(self, name) is not None]
        if self.amounts and len(given) != 1:
            either = "either " if len(self.amounts) == 2 else "one of "
            head = ", ".join(f"'{name}'" for name in self.amounts[:-1])
            raise ValueError(f"give {either}{head} or '{self.amounts[-1]}'")
        return self

    @model_validator(mode="after")
    def _overrides_are_settings(self) -> Self:
        for pattern, other in (self.overrides or {}).items():
            may = self.overridable()
            wrong = sorted(set(other) - set(may))
            if wrong:
                raise ValueError(
                    f"the override for '{pattern}' cannot give '{wrong[0]}'; single layers may have {', '.join(may)}"
                )
            try:
                self._with(other)
            except ValidationError as error:
                first = error.errors()[0]
                key = ".".join(map(str, first["loc"]))
                message = first["msg"].removeprefix("Value error, ")
                raise ValueError(f"the override for '{pattern}': {key + ': ' if key else ''}{message}") from error
        return self

    def overridable(self) -> tuple[str, ...]:
        """The parameters that single layers may have of their own."""
        return (*self.amounts, *self.per_layer)

    def _with(self, other: dict[str, Any]) -> Self:
        settings = {name: value for name, value in self.parameters().items() if name not in _OWN}
        if set(other) & set(self.amounts):
            settings = {name: value for name, value in settings.items() if name not in self.amounts}
        return type(self).model_validate({**settings, **other})

    def for_layers(self, names: Iterable[str]) -> Self | None:
        """The settings for layers that can only be treated together; None where one of them is to be left alone.

        The first override that fits any of them counts for all.
        """
        together = list(names)
        if any(fnmatchcase(name, pattern) for pattern in self.skip or () for name in together):
            return None
        for pattern, other in (self.overrides or {}).items():
            if any(fnmatchcase(name, pattern) for name in together):
                return self._with(other)
        return self._with({}) if self.overrides else self

    def for_layer(self, name: str) -> Self | None:
        """`for_layers` for a single one."""
        return self.for_layers([name])

    def check_patterns(self, names: Iterable[str]) -> None:
        """Raises InvalidRecipe where a pattern fits none of these layers: most likely it is misspelt."""
        there = list(names)
        for pattern in (*(self.skip or ()), *(self.overrides or {})):
            if not any(fnmatchcase(name, pattern) for name in there):
                near = difflib.get_close_matches(pattern, there, 3, 0.3) or there[:3]
                raise InvalidRecipe(
                    f"{self.pass_name()}: no layer that it treats is named '{pattern}'; there are "
                    f"{', '.join(near)}{' and others' if len(there) > len(near) else ''}",
                    field="steps",
                )


class RoundedPass(LayerwisePass):
    """A pass that makes layers narrower, to widths that suit the device's vector unit.

    Latency is a staircase in the number of channels, and where its steps are the device decides. So a recipe leaves `round_to`
    out, and `fitted` writes it in for each device; a number in the recipe stays. Not fitted, widths are not rounded.
    """

    round_to: int | None = Field(default=None, ge=1, le=64)
    """Widths that remain (the ranks of factors) are rounded up to a multiple of this; left out, of what the device's vector
    unit likes, which its profile says."""

    @property
    def multiple(self) -> int:
        """What widths are rounded up to a multiple of."""
        return self.round_to or 1

    def fitted(self, round_to: int) -> Self:
        """With the device's width written in where the recipe gives none."""
        return self if self.round_to is not None else self.model_copy(update={"round_to": round_to})
