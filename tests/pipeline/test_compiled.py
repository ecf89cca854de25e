"""Names of models by which compilers find again what they have compiled."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.checks import needs
from pipeline.files import compiled
from pipeline.files.compiled import stable_name
from pipeline.recipe import load


def model(folder: Path, **config: Any) -> str:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"hidden_size": 64, "model_type": "llama", **config}))
    (folder / "model.safetensors").write_text(folder.name)
    return str(folder)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(compiled.FOLDER, str(tmp_path / "cache"))
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    return tmp_path / "cache"


def read(name: str) -> str:
    return (Path(name) / "model.safetensors").read_text()


def test_models_of_one_shape_have_one_name_after_another(tmp_path: Path) -> None:
    one = model(tmp_path / "one", use_cache=True, dtype="float32")
    two = model(tmp_path / "two", use_cache=False, dtype="bfloat16", transformers_version="9")
    other = model(tmp_path / "other", hidden_size=128)
    with stable_name(one) as first:
        assert read(first) == "one"
    with stable_name(two) as second:
        assert read(second) == "two"
    with stable_name(other) as third:
        assert read(third) == "other"
    assert first == second != third


def test_models_that_run_at_once_never_share_a_name(tmp_path: Path) -> None:
    one, two = model(tmp_path / "one"), model(tmp_path / "two")
    with stable_name(one) as first, stable_name(two) as second, stable_name(one) as again:
        assert first == again != second
        assert (read(first), read(second)) == ("one", "two")
    with stable_name(two) as free:
        assert (free, read(free)) == (first, "two")


def test_the_number_of_a_gpu_is_part_of_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = model(tmp_path / "one")
    with stable_name(one) as first:
        monkeypatch.setenv("LOCAL_RANK", "1")
        with stable_name(one) as second:
            assert first != second and read(second) == "one"


HOLD = """
import sys
from pipeline.files.compiled import stable_name
with stable_name(sys.argv[1]) as name:
    print(name, flush=True)
    input()
"""


def test_a_name_is_free_again_when_its_process_is_killed(tmp_path: Path) -> None:
    one, two = model(tmp_path / "one"), model(tmp_path / "two")
    command = [sys.executable, "-c", HOLD, one]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        held = process.stdout.readline().strip()
        with stable_name(two) as second:
            assert second != held and read(held) == "one"
        process.kill()
        process.wait()
    with stable_name(two) as second:
        assert second == held


def test_many_start_at_once(tmp_path: Path) -> None:
    """Processes race for the names of two models of one shape: each reads its own model, by one of two names."""
    folders = [model(tmp_path / name) for name in ("one", "two")] * 4
    race = (
        "import sys; from pipeline.files.compiled import stable_name; from pathlib import Path\nfor _ in range(200):\n"
    )
    race += " with stable_name(sys.argv[1]) as n: assert (Path(n)/'model.safetensors').read_text() == sys.argv[2], n"
    started = [subprocess.Popen([sys.executable, "-c", race, each, Path(each).name]) for each in folders]
    assert [process.wait() for process in started] == [0] * len(folders)


def test_what_has_no_folder_keeps_its_name(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with stable_name("Qwen/Qwen2.5-0.5B") as name:
        assert name == "Qwen/Qwen2.5-0.5B"
    assert caplog.text == ""
    cache.write_text("a file")
    one = model(tmp_path / "one")
    with stable_name(one) as name:
        assert name == one
    assert "will not be found again" in caplog.text


def test_a_folder_that_cannot_be_written_is_told_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    where: dict[str, str] = {compiled.FOLDER: str(blocked / "cache")}
    stages: dict[str, dict[str, Any]] = {"one": {"kind": "import_model", "model": "m"}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"name": "kept", "stages": stages}))
    recipe, why = load(tmp_path / "recipe.yaml"), f"nothing can be kept in {blocked}/cache: {blocked} is no folder"
    monkeypatch.setenv(compiled.FOLDER, str(tmp_path / "new" / "folder"))
    assert needs.unmet(recipe, ["one"]) == []
    monkeypatch.setenv(compiled.FOLDER, where[compiled.FOLDER])
    assert needs.unmet(recipe, ["one"]) == [f"{compiled.FOLDER}: {why}"]
    monkeypatch.delenv(compiled.FOLDER)
    stages["one"]["launch"] = {"env": where}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"name": "kept", "stages": stages}))
    assert needs.unmet(load(tmp_path / "recipe.yaml"), ["one"]) == [f"stages.one.launch.env.{compiled.FOLDER}: {why}"]


def test_one_variable_moves_all_caches(tmp_path: Path) -> None:
    assert compiled.variables({"HOME": "/h"}) == {}
    found = compiled.variables({compiled.FOLDER: str(tmp_path), "TRITON_CACHE_DIR": "/mine"})
    assert found["VLLM_CACHE_ROOT"] == str(tmp_path / "vllm")
    assert found["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "inductor")
    assert "TRITON_CACHE_DIR" not in found
    assert compiled.folder({"XDG_CACHE_HOME": "/x"}) == Path("/x/zero2r1")
    assert compiled.folder({}) == Path.home() / ".cache" / "zero2r1"
