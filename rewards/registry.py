"""Finding rewards by name, by path, or by entry point.

Four spellings lead to a reward:

* a built-in name: `math`;
* the name of an entry point that an installed package registers in the group `zero2r1.rewards`;
* an importable object: `my_package.scores:brevity`;
* an object in a file: `path/to/file.py:brevity`, relative to the folder of the recipe that names it, or `~/file.py:…`.

What is found may be a verifier class (its constructor arguments are the reward's options), a function of one
completion, or a plain TRL reward function. Nothing is registered by import side effects: the table below is all
there is, and it imports a module only when its reward is used.
"""

from __future__ import annotations

import difflib
import dis
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from importlib.metadata import entry_points
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from rewards import unfit, unrun

BUILTIN: Mapping[str, str] = {
    "code": "rewards.code:CodeVerifier",
    "countdown": "rewards.countdown:Countdown",
    "exact": "rewards.exact:Exact",
    "math": "rewards.math:MathVerifier",
    "think_format": "rewards.format:ThinkFormat",
    "language": "rewards.language:Language",
    "length": "rewards.length:KimiLength",
    "cosine_length": "rewards.length:CosineLength",
    "soft_overlong": "rewards.length:SoftOverlong",
    "reasoning_gym": "rewards.reasoning_gym:ReasoningGym",
    "repetition": "rewards.repetition:Repetition",
    "preference": "rewards.preference:Preference",
    "process": "rewards.process:Process",
    "judge": "rewards.judge:Judge",
}
"""Built-in rewards: name -> module:attribute."""

ENTRY_POINTS = "zero2r1.rewards"
TRAINER_ARGUMENTS = ("trainer_state", "log_extra", "log_metric")
"""What TRL's trainer gives to a function of `completions` beside the rows; nobody else has them."""
BATCH_ARGUMENTS = ("prompts", "completions", "completion_ids")
"""What a function of `completions` is called with beside the columns of the data and `TRAINER_ARGUMENTS`."""
ROW_ARGUMENTS = ("prompt", "completion", "completion_ids", "answer")
"""The same for a function of one `completion`."""
_MARK = "__zero2r1_reward__"

T = TypeVar("T", bound=Callable[..., Any])


class RewardError(ValueError):
    """A reward was asked for that does not exist, or with options that it does not have."""


class UnknownRewardError(RewardError):
    """No reward has this name.

    Args:
        use: the name.
        known: the names that there are.
    """

    def __init__(self, use: str, known: Iterable[str]) -> None:
        self.use, self.known = use, sorted(known)
        super().__init__(
            f"there is no reward {use!r}{nearest(use, self.known)}. Known: {', '.join(self.known)}. "
            "A reward of your own is named by 'file.py:function' or 'package.module:function'."
        )


def reward(name: str) -> Callable[[T], T]:
    """Name a function or verifier class as a reward, so that `file.py:name` finds it.

    Example::

        @reward("brevity")
        def brevity(completion: str) -> float:
            return 1.0 if len(completion) < 200 else 0.0
    """

    def mark(target: T) -> T:
        setattr(target, _MARK, name)
        return target

    return mark


@dataclass(frozen=True, slots=True)
class Found:
    """A reward's factory or function, and the name its metrics carry."""

    name: str
    target: Callable[..., Any]

    @property
    def is_verifier(self) -> bool:
        """Whether it is a verifier class (or a factory of one) rather than a function that scores."""
        return inspect.isclass(self.target)

    @property
    def takes_batches(self) -> bool:
        """Whether it is a TRL reward function, of all `completions`, and no function of one `completion`."""
        accepted = inspect.signature(self.target).parameters
        return "completions" in accepted or "completion" not in accepted

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that the data must have: parameters of a function without a default, `columns` of a verifier."""
        if self.is_verifier:
            return tuple(getattr(self.target, "columns", ()))
        given = {*TRAINER_ARGUMENTS, *(BATCH_ARGUMENTS if self.takes_batches else ROW_ARGUMENTS)}
        return tuple(name for name in required(self.target) if name not in given)

    @property
    def summary(self) -> str:
        """The first line of its docstring."""
        return (inspect.getdoc(self.target) or "").strip().split("\n", 1)[0]


def names() -> dict[str, str]:
    """Every reward that can be used by name, with where it comes from."""
    return {**_plugged(tuple(sys.path)), **BUILTIN}


@lru_cache(maxsize=1)  # a look through all installed packages takes 20 ms, and a recipe names many rewards
def _plugged(path: tuple[str, ...]) -> Mapping[str, str]:
    return {point.name: point.value for point in entry_points(group=ENTRY_POINTS)}


def find(use: str, base: Path | None = None, run: bool = True) -> Found:
    """Resolve what a recipe's `use:` names.

    Args:
        use: a name, `module:attribute`, or `file.py:attribute`.
        base: folder against which a relative file path is read; the current folder if not given.
        run: whether the target will be called. If not, a plain function of a file is read and the file not imported.

    Raises:
        RewardError: nothing of that name exists; the message names the nearest one.
    """
    where = names().get(use, use)
    module_name, colon, attribute = where.rpartition(":")
    if not colon:
        raise UnknownRewardError(use, names())
    if not run and module_name.endswith(".py"):
        read = unrun.function(located(module_name, base).resolve(), attribute)
        if read is not None:
            return Found(*read)
    module = _from_file(module_name, base) if module_name.endswith(".py") else _from_package(module_name)
    marked = {getattr(value, _MARK): value for value in vars(module).values() if _is_marked(value)}
    target = marked.get(attribute, getattr(module, attribute, None))
    if not callable(target):
        choices = sorted({*marked, *(n for n, v in vars(module).items() if inspect.isfunction(v))})
        raise RewardError(
            f"{module_name} has no reward {attribute!r}{nearest(attribute, choices)}. "
            f"It has: {', '.join(choices) or 'none'}"
        )
    return Found(use if use in names() else str(getattr(target, _MARK, attribute)), target)


def check(
    use: str, options: Mapping[str, Any], base: Path | None = None, in_trainer: bool = True, run: bool = True
) -> Found:
    """Resolve a reward and make sure that it takes these options, without building it.

    Args:
        use: as in `find`.
        options: constructor arguments of the reward.
        base: as in `find`.
        in_trainer: whether TRL's trainer calls it, which alone has `TRAINER_ARGUMENTS`.
        run: as in `find`.

    Raises:
        RewardError: it does not exist, asks for what it will not get, or an option is unknown, missing, or has a value
            that it cannot take; the message names the nearest one.
    """
    found = find(use, base, run)
    if not found.is_verifier:
        if options:
            raise RewardError(f"reward {use!r} is a function and takes no options, not {sorted(options)}")
        _check_trainer_arguments(use, found, in_trainer)
        return found
    check_options(f"reward {use!r}", found.target, options)
    check_types(f"reward {use!r}", found.target, options)
    for name, inner, given in unfit.nested(found.target, options):
        try:
            check(inner, given, base, in_trainer=False, run=run)
        except RewardError as error:
            raise RewardError(f"reward {use!r}: {name}: {error}") from error
    return found


def _check_trainer_arguments(use: str, found: Found, in_trainer: bool) -> None:
    wanted = [name for name in TRAINER_ARGUMENTS if name in required(found.target)]
    if wanted and not found.takes_batches:
        raise RewardError(
            f"reward {use!r} asks for {' and '.join(wanted)}, which only functions of a whole batch get: "
            "let it take 'completions' and return a list"
        )
    if wanted and not in_trainer:
        raise RewardError(
            f"reward {use!r} asks for {' and '.join(wanted)}, and no trainer calls it here that could give them: "
            f"give {'it' if len(wanted) == 1 else 'them'} the default None"
        )


def never_returns(function: Callable[..., Any]) -> bool:
    """Whether a function has no way to return anything but `None`: usually somebody forgot the `return`."""
    code = getattr(function, "__code__", None)
    if code is None or code.co_flags & (inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR):
        return False
    steps = list(dis.get_instructions(code))
    returned = [
        step if step.opname == "RETURN_CONST" else before
        for before, step in pairwise(steps)
        if step.opname in ("RETURN_VALUE", "RETURN_CONST")
    ]
    return all(step.opname in ("LOAD_CONST", "RETURN_CONST") and step.argval is None for step in returned) and not any(
        step.is_jump_target
        for step in steps
        if step.opname == "RETURN_VALUE"  # `return 1.0 if good else None`
    )


def check_options(what: str, target: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Make sure that a class takes these options, without building it.

    Raises:
        RewardError: an option is unknown or missing; the message begins with `what` and names the nearest one.
    """
    parameters = inspect.signature(target).parameters
    if missing := [name for name in required(target) if name not in options]:
        raise RewardError(f"{what} needs {' and '.join(repr(name) for name in missing)} among its options")
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    for option in () if takes_any else options:
        if option not in parameters:
            raise RewardError(
                f"{what} has no option {option!r}{nearest(option, parameters)}. "
                f"It has: {', '.join(parameters) or 'none'}"
            )


def check_types(what: str, target: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Make sure that options have the types that a class says, and values that it can take, without building it.

    Raises:
        RewardError: one does not; the message begins with `what`.
    """
    for name, value in options.items():
        if name in inspect.signature(target).parameters and (fault := unfit.option(target, name, value)):
            raise RewardError(f"{what}: {fault}")
    if fault := unfit.together(target, options):
        raise RewardError(f"{what}: {fault}")


def required(target: Callable[..., Any]) -> tuple[str, ...]:
    """Parameters without a default."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(target).parameters.items()
    return tuple(name for name, one in parameters if one.default is inspect.Parameter.empty and one.kind in kinds)


def nearest(word: str, choices: Iterable[str]) -> str:
    """A hint such as " (did you mean 'math'?)", or nothing."""
    close = difflib.get_close_matches(word, list(choices), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def located(path: str, base: Path | None = None) -> Path:
    """The file or folder that a recipe means: `~` is the home folder, and relative paths are read against `base`.

    Args:
        path: as it is written.
        base: the recipe's folder; the current folder if not given.
    """
    try:
        written = Path(path).expanduser()
    except RuntimeError:  # the home of nobody: then it is a name like any other
        written = Path(path)
    return (base or Path.cwd()) / written


def _is_marked(value: object) -> bool:
    return isinstance(getattr(value, _MARK, None), str)


def _from_package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise RewardError(f"cannot import {name!r}: {error}") from error


def _from_file(name: str, base: Path | None) -> Any:
    """Import a file under a name of its own, once; the name is stable so that its objects can be pickled."""
    path = located(name, base).resolve()
    if not path.is_file():
        raise RewardError(f"there is no file {path}")
    module_name = f"_zero2r1_{path.stem}_{sha256(str(path).encode()).hexdigest()[:12]}"
    if module_name in sys.modules:
        return sys.modules[module_name]
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise RewardError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[module_name]
        raise RewardError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    return module
