"""Environment variables in a recipe: their values reach the processes they are for, and no file.

Tokens and passwords come in environment variables. So a value is left out wherever a config, a recipe or a command line
is written down, and only its name is recorded; a stage's process gets what it hands on in a variable of its own. Should
a program print a value nevertheless, the stage's log has the name in its place.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel

HIDDEN = "(not recorded)"
"""What stands for a value in every record."""
OWNERS = ("launch", "process")
"""Keys that hold an `env`."""
HANDED_ON = "ZERO2R1_HANDED_ON"
"""Variable in which a stage's process gets the values that its config names: JSON, a list of [place, value]."""
SHORTEST = 6
"""Characters of a value that is looked for in a log; shorter ones (`0`, `true`) stand in other places, too."""
_SECRET = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY|AUTH(?!OR)", re.IGNORECASE)
"""Names of inherited variables whose values are looked for in a log."""
_UNSAID = rf"(?P<secret>(?!{re.escape(HIDDEN)})"
_PASSWORD = re.compile(rf"(?<=://)(?P<before>[^/@:\s]*:){_UNSAID}\S+)(?=@)")
"""A password in an address: what stands between user and host; keys of clouds have slashes in them."""
_SIGNED = re.compile(rf"(?P<before>[?&][^=&\s]*(?:{_SECRET.pattern}|SIG|KEY)[^=&\s]*=){_UNSAID}[^&\s]+)", re.IGNORECASE)
"""What gives a right in the query of an address: `?sig=…`, `&X-Amz-Signature=…`."""


Place = tuple[str | int, ...]


class Value(str):
    """The value of an environment variable: text like any other, but for its `repr`."""

    __slots__ = ()

    def __repr__(self) -> str:
        return repr(HIDDEN)


Environment = dict[str, Annotated[str, AfterValidator(Value)]]
"""Names and values of variables in a config."""


def recorded(config: BaseModel, exclude: set[str] | None = None) -> dict[str, Any]:
    """A config as JSON, as every record has it: of variables the names only."""
    found: dict[str, Any] = names_only(config.model_dump(mode="json", by_alias=True, exclude=exclude))
    return found


def known(environment: Mapping[str, str]) -> dict[str, str]:
    """Those whose values are known: a config that was read from a record has names only."""
    return {name: value for name, value in environment.items() if value != HIDDEN}


def names_only(data: Any, under: str = "") -> Any:
    """Some plain data without the values of `launch: {env: …}` and `process: {env: …}`, wherever those stand in it."""
    if isinstance(data, Mapping):
        hides = under in OWNERS
        return {
            key: dict.fromkeys(value, HIDDEN)
            if hides and key == "env" and isinstance(value, Mapping)
            else names_only(value, str(key))
            for key, value in data.items()
        }
    return [names_only(item) for item in data] if isinstance(data, list) else data


def shown(argument: str) -> str:
    """An argument of the command line as it may be written down: no values of variables, no passwords of addresses.

    `stages.a.launch.env.TOKEN=(not recorded)`, `ftp://user:(not recorded)@host`, `az://container?sig=(not recorded)`.
    """
    key, equals, _ = argument.partition("=")
    if equals and re.search(r"\benv\b", argument):
        return f"{key}={HIDDEN}"
    for secret in (_PASSWORD, _SIGNED):
        argument = secret.sub(rf"\g<before>{HIDDEN}", argument)
    return argument


def shown_of(text: str, address: str) -> str:
    """A text about an address, such as an error, without what `shown` leaves out of that, in any form."""
    for secret in (found["secret"] for kind in (_PASSWORD, _SIGNED) for found in kind.finditer(address)):
        for part in (secret, *secret.split("/")):  # a slash ends the host, as parsers of addresses have it
            text = text.replace(part, HIDDEN) if len(part) >= SHORTEST else text
    return shown(text)


def values(data: Any) -> Iterator[tuple[Place, str]]:
    """Every value that `names_only` leaves out of some plain data, with where it stands."""
    yield from _differences(data, names_only(data), ())


def _differences(data: Any, named: Any, place: Place) -> Iterator[tuple[Place, str]]:
    if named == HIDDEN != data:
        yield place, str(data)
    elif isinstance(data, Mapping):
        for key, item in data.items():
            yield from _differences(item, named[key], (*place, key))
    elif isinstance(data, list):
        for index, item in enumerate(data):
            yield from _differences(item, named[index], (*place, index))


def handed_on(data: Mapping[str, Any]) -> dict[str, str]:
    """What a process needs in its environment to restore data of which it reads the names only."""
    found = list(values(data))
    return {HANDED_ON: json.dumps(found)} if found else {}


def restored(named: Mapping[str, Any], environment: MutableMapping[str, str]) -> dict[str, Any]:
    """The data as it was; takes the values out of the environment."""
    whole: dict[str, Any] = json.loads(json.dumps(named))
    for (*way, last), value in json.loads(environment.pop(HANDED_ON, "[]")):
        here: Any = whole
        for key in way:
            here = here[key]
        here[last] = value
    return whole


def secrets(config: BaseModel, inherited: Mapping[str, str]) -> dict[str, str]:
    """Values that must stand in no log -> the names of their variables."""
    given = {value: str(place[-1]) for place, value in values(config.model_dump())}
    found = {value: name for name, value in inherited.items() if _SECRET.search(name)} | given
    return {value: name for value, name in found.items() if len(value) >= SHORTEST}


def scrub(path: Path, found: Mapping[str, str]) -> None:
    """Put names in the place of values in a file, if there is any in it; `found` is from `secrets`."""
    if not path.is_file():
        return
    before = path.read_bytes()
    after = scrubbed(before, found)
    if after != before:
        partial = path.with_name(path.name + ".part")
        partial.write_bytes(after)
        partial.rename(path)


def scrubbed(text: bytes, found: Mapping[str, str]) -> bytes:
    """Some text with names in the place of values; `found` is from `secrets`."""
    for value in sorted(found, key=len, reverse=True):
        for form in {value, json.dumps(value)[1:-1], repr(value)[1:-1]}:
            text = text.replace(form.encode(), f"${found[value]}".encode())
    return text
