"""Publishing a model: on a hub on loopback, through the hub's own client, in one commit or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.checks import needs
from pipeline.conversion import publishing
from pipeline.conversion.publishing import PublishError
from pipeline.recipe import load
from pipeline.schema.hub import Publish
from pipeline.stages.export import ExportConfig, run
from tests.hub import Hub, Model
from tests.stages.driving import context_of

TOKEN = "hf_the-token-of-someone"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that knows one account, and whose address and token this process takes for its own."""
    import huggingface_hub.hf_api as client
    from huggingface_hub import constants

    with Hub() as made:
        made.accounts[TOKEN] = "someone"
        monkeypatch.setattr(constants, "ENDPOINT", made.address)
        monkeypatch.setattr(client.constants, "HF_HUB_DISABLE_XET", True)  # the hub of the tests takes files by LFS
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(publishing, "WAIT_SECONDS", 0.01)
        yield made


def export(folder: Path, model: Path, publish: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    config = {"kind": "export", "model": str(model), "name": "adder", "publish": publish}
    context = context_of(folder, "release", config, {})
    return context.output / "model", dict(run(context).metrics)


def test_a_model_is_published_with_its_card_privately_and_once(hub: Hub, calculator: Path, tmp_path: Path) -> None:
    hub.busy = 2  # the hub is asked again
    folder, metrics = export(tmp_path, calculator, {"hub": "someone/adder"})
    model = hub.models["someone/adder"]
    assert model.private and len(model.commits) == 1 and hub.busy == 0
    assert model.files == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert b"# adder" in model.files["README.md"]
    assert metrics["published"] == {"hub": "someone/adder", "commit": model.commit}
    again = publishing.publish(folder, Publish(hub="someone/adder"), "again")  # as after a kill behind the commit
    assert again["commit"] == model.commit and len(model.commits) == 1
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]


def test_other_files_are_kept_unless_the_recipe_says_so(hub: Hub, tmp_path: Path) -> None:
    hub.models["someone/adder"] = Model(True, {".gitattributes": b"", "old.bin": b"1"})
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(PublishError, match=r"someone/adder on the hub holds other files \(old\.bin\)"):
        publishing.publish(tmp_path / "model", Publish(hub="someone/adder"), "x")
    assert not hub.models["someone/adder"].commits
    publishing.publish(tmp_path / "model", Publish(hub="someone/adder", replace=True), "x")
    assert "old.bin" not in hub.models["someone/adder"].files
    assert hub.models["someone/adder"].files["config.json"] == b"{}"


def test_a_hub_that_stays_busy_shows_nothing_of_it(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    hub.busy = 1000
    with pytest.raises(PublishError, match=r"did not answer 5 times .*Nothing of it is visible there"):
        publishing.publish(tmp_path, Publish(hub="someone/adder"), "x")
    assert hub.models["someone/adder"].files == {}


REFUSED = {
    "no token": ("", "someone/adder", "set HF_TOKEN, or log in with `hf auth login`"),
    "a token that is unknown": ("hf_other", "someone/adder", "does not know the token"),
    "a token that reads": ("hf_reader", "someone/adder", "the token only reads"),
    "somebody else's": (TOKEN, "else/adder", "the token is that of someone, who publishes under someone"),
    "one that is public": (TOKEN, "someone/public", "is there and public: set private: false"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_published_is_told_before_anything_runs(
    what: str, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token, name, message = REFUSED[what]
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.setenv("HF_TOKEN", token)
    hub.accounts["hf_reader"] = "someone"
    hub.reading.add("hf_reader")
    hub.models["someone/public"] = Model(False)
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "name: r\nstages:\n  first: {kind: import_model, model: some/model}\n"
        f"  release: {{kind: export, model: '@first', publish: {{hub: {name}}}}}\n"
    )
    (told,) = needs.unmet(load(path), ["release"], run=True)
    assert told.startswith("stages.release.publish: ") and message in told
    assert needs.unmet(load(path), ["release"]) == [], "a plan asks nobody"


@pytest.mark.parametrize(
    "fields", [{"publish": {"hub": "alone"}}, {"publish": {"hub": "a/b"}, "format": "torchtitan"}, {"publish": "a/b/c"}]
)
def test_a_wrong_name_is_refused_with_the_recipe(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ExportConfig.model_validate({"model": "x", **json.loads(json.dumps(fields))})
