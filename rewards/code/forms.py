"""Golds as other collections write them, in the forms of `rewards.code.gold`.

["assert f(2) == 4", …]                                                            AceCode, MBPP's `test_list`
{"test_list": ["assert f(2) == 4"], "test_setup_code": ""}                         MBPP
{"test": "def check(candidate): …", "entry_point": "f"}                            HumanEval
{"fn_name": "f", "inputs": [[2]], "outputs": [[4]]}                                APPS, TACO; also without `fn_name`
{"input_output": "{…}"}                                                            the same as text
[{"input": "2\\n", "output": "4", "testtype": "stdin"}, …]                          LiveCodeBench, DeepCoder
{"test_cases": [{"fn_name": "f", "input": "2", "output": "4", "type": "function_call"}]}   verifiable-coding-problems

Arguments as text are JSON, one a line. Where all results of APPS are lists of one item, that item is the result.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from typing import Any

from rewards.code.errors import GoldError

_RENAMED = {"test_list": "tests", "test_setup_code": "setup", "test": "check", "entry_point": "entry"}
_CASE = frozenset({"input", "output", "type", "testtype", "fn_name", "metadata"})
_CALLED = frozenset({"function_call", "functional"})
_READS = frozenset({"stdin_stdout", "stdin", "stdio"})


def translate(answer: Any) -> Any:
    """A gold answer of another collection in our form; any other answer as it is.

    Raises:
        GoldError: it is nearly in one of these forms; the message names the place and the fix.
    """
    if isinstance(answer, list):
        return _cases(answer, "") if answer else answer
    if not isinstance(answer, Mapping):
        return answer
    fields: dict[str, Any] = {
        _RENAMED.get(str(key), str(key)): value for key, value in answer.items() if value is not None
    }
    if "challenge_test_list" in fields:
        fields["tests"] = [*fields.get("tests", []), *fields.pop("challenge_test_list")]
    if "input_output" in fields and len(fields) == 1:
        return translate(_parsed(fields["input_output"], "input_output"))
    if fields.get("language", "python") not in ("python", "python3"):
        raise GoldError(f"tests of {fields['language']}: only Python is run")
    fields.pop("language", None)
    name = fields.pop("fn_name", "")
    if "test_cases" in fields:
        cases = _parsed(fields.pop("test_cases"), "test_cases")
        if fields:
            raise GoldError(f"a gold answer with 'test_cases' has no {sorted(fields)}; leave them out")
        if isinstance(cases, Mapping):
            return translate({"fn_name": name, **cases})
        return _cases(cases, name)
    if not isinstance(name, str):
        raise GoldError("'fn_name' is the name of a function")
    if name:
        if set(fields) != {"inputs", "outputs"}:
            raise GoldError(f"a gold answer with 'fn_name' has 'inputs' and 'outputs', not {sorted(fields)}")
        inputs, outputs = _listed(fields["inputs"], "inputs"), _unwrapped(fields["outputs"])
        if len(inputs) != len(outputs):
            raise GoldError(f"{len(inputs)} inputs and {len(outputs)} outputs; each input has one")
        return _calls(name, list(zip(inputs, outputs, strict=True)))
    if isinstance(fields.get("inputs"), list) and isinstance(fields.get("outputs"), list):
        return {**fields, "inputs": _texts(fields["inputs"]), "outputs": _texts(fields["outputs"])}
    return fields


def _cases(cases: Any, name: str) -> Any:
    """A list of asserts, of cases of input and output, or of cases of arguments and results."""
    if not isinstance(cases, list) or not cases:
        raise GoldError("'test_cases' is a list, and not empty")
    if all(isinstance(case, str) for case in cases):
        return {"tests": cases}
    names, kinds, pairs = {name} - {""}, set(), []
    for number, case in enumerate(cases):
        place = f"test case {number}"
        if not isinstance(case, Mapping) or not {"input", "output"} <= set(case) <= _CASE:
            beside = ", ".join(sorted(_CASE - {"input", "output"}))
            raise GoldError(f"{place}: an assert as text, or 'input' and 'output'; beside them only {beside}")
        metadata = _parsed(case.get("metadata") or {}, f"metadata of {place}")
        if not isinstance(metadata, Mapping):
            raise GoldError(f"{place}: 'metadata' is a mapping")
        kind = case.get("type") or case.get("testtype") or ""
        if kind not in _CALLED | _READS | {""}:
            raise GoldError(f"{place}: type {kind!r}; it is one of {sorted(_CALLED | _READS)}")
        own = case.get("fn_name") or metadata.get("func_name") or metadata.get("fn_name") or ""
        names |= {own} - {""}
        kinds.add(kind in _CALLED or (not kind and bool(own or name)))
        pairs.append((case["input"], case["output"]))
    if len(kinds) > 1 or len(names) > 1:
        raise GoldError("test cases of one gold answer are all calls of one function, or all read and print")
    if kinds == {True}:
        if not names:
            raise GoldError("the test cases are calls without the name of a function: add 'fn_name'")
        return _calls(names.pop(), pairs)
    inputs, outputs = zip(*pairs, strict=True)
    return {"inputs": _texts(inputs), "outputs": _texts(outputs)}


def _calls(name: Any, pairs: Sequence[tuple[Any, Any]]) -> dict[str, Any]:
    calls = []
    for number, (given, expected) in enumerate(pairs):
        if isinstance(given, str):
            lines = [line for line in given.split("\n") if line.strip()]
            given = [_value(line, f"input of test case {number}") for line in lines]
        if not isinstance(given, list):
            raise GoldError(f"test case {number}: arguments are a list, or text with one JSON value a line")
        if isinstance(expected, str):
            expected = _value(expected, None)
        calls.append({"args": given, "expected": expected})
    return {"function": name, "calls": calls}


def _unwrapped(outputs: Any) -> list[Any]:
    found = _listed(outputs, "outputs")
    wrapped = all(isinstance(output, list) and len(output) == 1 for output in found)
    return [output[0] for output in found] if wrapped else found


def _texts(items: Sequence[Any]) -> list[Any]:
    """Texts; a list of lines is one."""
    return ["\n".join(i) if isinstance(i, list) and all(isinstance(line, str) for line in i) else i for i in items]


def _listed(items: Any, name: str) -> list[Any]:
    if not isinstance(items, list):
        raise GoldError(f"{name!r} is a list")
    return items


def _parsed(value: Any, place: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise GoldError(f"{place} is no JSON: {error}") from error


def _value(text: str, place: str | None) -> Any:
    """A value that is written as JSON or Python; text that is neither stands for itself, unless a place is given."""
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            continue
    if place is not None:
        raise GoldError(f"{place} is no JSON: {text!r:.60}")
    return text
