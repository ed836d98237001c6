"""Reads profiles from YAML; what breaks the schema is refused in one sentence."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import ValidationError

from fleetfit.core.errors import InvalidProfile
from fleetfit.device_profiles.schema import DeviceProfile

PROFILES: Final = Path(__file__).parent / "profiles"


@functools.cache
def load_profiles(folder: Path = PROFILES) -> dict[str, DeviceProfile]:
    """All profiles of a folder by name, in the order of their names. Raises InvalidProfile."""
    found: dict[str, DeviceProfile] = {}
    for path in sorted(folder.glob("*.yaml")):
        profile = parse_profile(path.read_text(encoding="utf-8"), source=path.name)
        if profile.name != path.stem:
            raise InvalidProfile(
                f"{path.name} describes '{profile.name}'; rename the file or the profile so that they agree"
            )
        found[profile.name] = profile
    if not found:
        raise InvalidProfile(f"there is no device profile in {folder}; install fleetfit again")
    return found


def parse_profile(text: str, *, source: str) -> DeviceProfile:
    """One profile. `source` is what errors call it. Raises InvalidProfile."""
    try:
        content: Any = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" in line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or "it cannot be read"
        raise InvalidProfile(f"{source} is not YAML{line}: {problem}; correct it there") from None
    if not isinstance(content, dict):
        raise InvalidProfile(f"{source} is no device profile: it must be a mapping that starts with 'name:'")
    try:
        return DeviceProfile.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the profile"
        if first["type"] == "extra_forbidden":
            raise InvalidProfile(
                f"{source} has an unknown key '{where}'; remove it or correct its spelling", field=where
            ) from None
        said = first["msg"].removeprefix("Value error, ")
        raise InvalidProfile(f"{source}: {where} is wrong: {said[:1].lower()}{said[1:]}", field=where) from None
