"""A folder that somebody else made runs no code and reads nothing outside of itself, whatever lies in it."""

from __future__ import annotations

import ast
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.context import Outputs
from pipeline.recipe import RecipeError, load
from pipeline.stages.registry import run_function
from tests.stages.driving import context_of

PICKLES = (
    *(".metadata", "__0_0.distcp", "pytorch_model.bin", "pytorch_model-00001-of-00001.bin", "training_args.bin"),
    *("optimizer.pt", "optimizer.bin", "scheduler.pt", "scaler.pt", "rng_state.pth", "rng_state_0.pth", "model.pt"),
    *("model.pth", "model.ckpt", "consolidated.00.pth", "adapter_model.bin", "vocab.pkl", "tokenizer.pkl", "model.bin"),
    *("tokenizer.bin", "spiece.pkl", "data.npy", "value_head.bin", "mp_rank_00_model_states.pt", "latest.pt"),
)
"""Names under which torch, transformers, accelerate, peft or DeepSpeed keep what is read by unpickling."""
CODE = (
    "modeling_evil.py",
    "configuration_evil.py",
    "tokenization_evil.py",
    "custom_generate/generate.py",
    "__init__.py",
)
"""Names under which a model brings code along."""


class Planted:
    """Unpickling makes the folder that says that code has run."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model as its makers publish it."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from pipeline.data.vocabulary import VocabularySpec, build

    folder = tmp_path_factory.mktemp("plain") / "model"
    tokenizer = build(VocabularySpec(kind="bpe", size=300, chat_template="chatml"), ["some text to learn bytes from"])
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Qwen2Config(
        **small,
        vocab_size=len(tokenizer),
        num_key_value_heads=1,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def foreign(plain: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(plain, tmp_path / "foreign"))


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """What exists once planted code has run."""
    return tmp_path / "code has run"


def plant(folder: Path, mark: Path) -> None:
    """A pickle under every name, code under every other, and configs that ask for it."""
    for name in PICKLES:
        (folder / name).write_bytes(pickle.dumps(Planted(mark)))
    for name in CODE:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(f"import os\nos.mkdir({str(mark)!r})\n")
    change(
        folder / "config.json",
        auto_map={"AutoConfig": "configuration_evil.C", "AutoModelForCausalLM": "modeling_evil.M"},
    )
    change(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization_evil.T", None]})


def change(path: Path, **values: Any) -> None:
    """Set values of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def bring(folder: Path, model: Path | str, **options: Any) -> tuple[Path, Outputs]:
    """Import a model."""
    context = context_of(folder, "imported", {"kind": "import_model", "model": str(model), **options}, {})
    outputs = run_function("import_model")(context)
    return context.output / "model", outputs


WAYS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "converted": {"dtype": "bfloat16"},
    "as a distributed checkpoint": {"format": "torchtitan"},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("weights", ["safetensors", "pickles alone", "an index of pickles"])
def test_nothing_planted_is_run(way: str, weights: str, foreign: Path, mark: Path, tmp_path: Path) -> None:
    plant(foreign, mark)
    if weights != "safetensors":
        (foreign / "model.safetensors").unlink()
        if "format" not in WAYS[way]:
            (foreign / ".metadata").unlink()
    if weights == "an index of pickles":
        homes = {"model.norm.weight": "pytorch_model-00001-of-00001.bin"}
        (foreign / "pytorch_model.bin").unlink()
        (foreign / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": homes}))
    if weights == "safetensors" and way != "as a distributed checkpoint":
        model, _ = bring(tmp_path, foreign, **WAYS[way])
        published = {path.name for path in model.rglob("*")}
        assert not published & {*PICKLES, *CODE}
        assert not any("auto_map" in (model / name).read_text() for name in ("config.json", "tokenizer_config.json"))
    else:
        with pytest.raises(ValueError, match=r"more than tensors|is not an index"):
            bring(tmp_path, foreign, **WAYS[way])
    assert not mark.exists()


def test_what_was_planted_would_run_if_it_were_read(foreign: Path, mark: Path) -> None:
    plant(foreign, mark)
    pickle.loads((foreign / ".metadata").read_bytes())
    assert mark.exists()


def test_a_distributed_checkpoint_is_read_only_where_it_is_named(foreign: Path, mark: Path, tmp_path: Path) -> None:
    plant(foreign, mark)
    (foreign / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="format: torchtitan"):
        bring(tmp_path, foreign)
    assert not mark.exists()
    recipe(tmp_path, f"base: {{kind: import_model, model: {foreign}}}")
    with pytest.raises(RecipeError, match=r"recipe.yaml:3: stages.base.format: .* say `format: torchtitan`"):
        load(tmp_path / "recipe.yaml")
    (foreign / ".metadata").unlink()
    recipe(tmp_path, f"base: {{kind: import_model, model: {foreign}, format: torchtitan}}")
    with pytest.raises(RecipeError, match=r"holds no distributed checkpoint"):
        load(tmp_path / "recipe.yaml")


def titan(folder: Path) -> Path:
    """A distributed checkpoint of one tensor, with the model's configs beside it."""
    import torch
    import torch.distributed.checkpoint as dcp

    (folder / "model.safetensors").unlink()
    dcp.save({"norm.weight": torch.ones(4)}, checkpoint_id=folder, no_dist=True)
    return folder


def test_a_distributed_checkpoint_with_a_pickle_for_a_tensor_is_refused(
    foreign: Path, mark: Path, tmp_path: Path
) -> None:
    titan(foreign)
    data = foreign / "__0_0.distcp"
    planted = pickle.dumps(Planted(mark))
    data.write_bytes(planted + bytes(max(0, data.stat().st_size - len(planted))))
    with pytest.raises(ValueError, match="a file of tensors is broken, or holds other things"):
        bring(tmp_path, foreign, format="torchtitan")
    assert not mark.exists()


@pytest.mark.parametrize("name", ["../outside.distcp", "linked.distcp", "/etc/hostname"])
def test_a_distributed_checkpoint_whose_tensors_lie_elsewhere_is_refused(
    name: str, foreign: Path, tmp_path: Path
) -> None:
    titan(foreign)
    (foreign / "__0_0.distcp").rename(tmp_path / "outside.distcp")
    (foreign / "linked.distcp").symlink_to(tmp_path / "outside.distcp")
    index = pickle.loads((foreign / ".metadata").read_bytes())
    for place in index.storage_data.values():
        place.relative_path = name
    (foreign / ".metadata").write_bytes(pickle.dumps(index))
    with pytest.raises(ValueError, match=r"not a file of this folder|outside of the model's folder"):
        bring(tmp_path, foreign, format="torchtitan")


CALLS: dict[str, Callable[[Path], object]] = {
    "a call": Planted,
    "a dotted name": lambda mark: _Named("torch", "Size.__class__"),
    "a function of torch": lambda mark: _Named("torch.serialization", "load"),
    "a class of ours": lambda mark: _Named("pipeline.files.source", "Source"),
    "eval": lambda mark: _Named("builtins", "eval"),
}


class _Named:
    """Pickles as a name that is looked up, whatever it is."""

    def __init__(self, module: str, name: str) -> None:
        self.place = module, name


def dumped(value: object) -> bytes:
    """Its pickle; of a `_Named` the plain opcodes that look the name up."""
    if not isinstance(value, _Named):
        return pickle.dumps(value)
    texts = b"".join(b"\x8c" + bytes([len(text)]) + text.encode() for text in value.place)
    return b"\x80\x04" + texts + b"\x93."


@pytest.mark.parametrize("call", CALLS)
def test_an_index_that_names_anything_else_is_refused(call: str, foreign: Path, mark: Path, tmp_path: Path) -> None:
    titan(foreign)
    (foreign / ".metadata").write_bytes(dumped(CALLS[call](mark)))
    with pytest.raises(
        ValueError, match=r"\.metadata is not an index of a distributed checkpoint: it needs .* not run"
    ):
        bring(tmp_path, foreign, format="torchtitan")
    assert not mark.exists()


@pytest.mark.parametrize("broken", [b"", b"\x80", b"garbage", pickle.dumps({"no": "index"}), pickle.dumps(None)])
def test_a_broken_index_is_told(broken: bytes, foreign: Path, tmp_path: Path) -> None:
    titan(foreign)
    (foreign / ".metadata").write_bytes(broken)
    with pytest.raises(ValueError, match=r"\.metadata is not an index of a distributed checkpoint"):
        bring(tmp_path, foreign, format="torchtitan")


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "notes.txt", "vocab.json", "chat_template.jinja", "pytorch_model.bin"]
)
@pytest.mark.parametrize("way", ["as it is", "converted"])
def test_a_link_that_leaves_the_folder_is_not_followed(name: str, way: str, foreign: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside" / name
    outside.parent.mkdir()
    if (foreign / name).exists():
        shutil.move(foreign / name, outside)
    else:
        outside.write_text("{}")
    (foreign / name).symlink_to(os.path.relpath(outside, foreign))
    with pytest.raises(ValueError, match=rf"{name} is a link to .*, outside of the model's folder, and not followed"):
        bring(tmp_path, foreign, **WAYS[way])
    recipe(tmp_path, f"base: {{kind: import_model, model: {foreign}}}")
    with pytest.raises(RecipeError, match=rf"recipe.yaml:3: stages.base.model: .*{name} is a link"):
        load(tmp_path / "recipe.yaml")


def test_a_folder_of_templates_elsewhere_is_not_followed(foreign: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "x.jinja").write_text("{{ 1 }}")
    (foreign / "additional_chat_templates").symlink_to(tmp_path / "outside")
    with pytest.raises(ValueError, match="additional_chat_templates is a link"):
        bring(tmp_path, foreign)


def test_links_within_the_folder_and_within_the_hubs_cache_are_followed(foreign: Path, tmp_path: Path) -> None:
    (foreign / "model.safetensors").rename(foreign / "kept.bin")
    (foreign / "model.safetensors").symlink_to("kept.bin")
    assert bring(tmp_path / "one", foreign)[1].metrics["parameters"]
    repository = tmp_path / "models--some--model"
    snapshot = repository / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for number, path in enumerate(sorted(foreign.glob("*.*"))):
        shutil.copyfile(path, repository / "blobs" / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    assert bring(tmp_path / "two", snapshot)[1].metrics["parameters"]
    (snapshot / "notes.txt").symlink_to("../../../secret")
    (tmp_path / "secret").write_text("secret")
    with pytest.raises(ValueError, match=r"notes\.txt is a link"):
        bring(tmp_path / "three", snapshot)


@pytest.mark.parametrize(
    ("home", "message"), [("../x.safetensors", "not a file of this folder"), ("gone.safetensors", "incomplete")]
)
def test_an_index_that_names_other_files_is_refused(home: str, message: str, foreign: Path, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").touch()
    (foreign / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": home}}))
    with pytest.raises(ValueError, match=message):
        bring(tmp_path, foreign)


def test_an_architecture_of_its_own_is_refused_in_our_words(foreign: Path, mark: Path, tmp_path: Path) -> None:
    plant(foreign, mark)
    change(foreign / "config.json", model_type="evil")
    with pytest.raises(ValueError, match=r"no architecture 'evil', and a model's own code is not run"):
        bring(tmp_path, foreign)
    assert not mark.exists()


@pytest.mark.parametrize("config", [{"attn_implementation": "evil/kernel"}, {"x": {"_attn_implementation": "a/b@c:d"}}])
def test_a_config_that_asks_for_kernels_is_refused(config: dict[str, Any], foreign: Path, tmp_path: Path) -> None:
    change(foreign / "config.json", **config)
    with pytest.raises(ValueError, match="asks for code from"):
        bring(tmp_path, foreign)


def recipe(folder: Path, *stages: str) -> None:
    """A recipe of these stages."""
    lines = "".join(f"  {stage}\n" for stage in stages)
    (folder / "recipe.yaml").write_text(f"name: r\nstages:\n{lines}")


SFT = "a: {{kind: sft, model: some/model, data: [rows.jsonl], trainer: {{{}}}}}"
GRPO = "a: {{kind: grpo, model: some/model, tasks: [arithmetic], {}}}"
ASKING = {
    "a trainer": (SFT.format("trust_remote_code: true"), "models run with the installed code only"),
    "a model": (SFT.format("model_init_kwargs: {trust_remote_code: true}"), "is not run"),
    "a model, deep": (SFT.format("model_init_kwargs: {x: [{Trust-Remote-Code: 1}]}"), "is not run"),
    "kernels": (SFT.format("model_init_kwargs: {allow_all_kernels: true}"), "is not run"),
    "generation": (GRPO.format("trainer: {generation_kwargs: {custom_generate: a/b}}"), "is not run"),
    "the engine": (GRPO.format("rollout: {engine: vllm, engine_options: {trust_remote_code: true}}"), "is not run"),
    "overrides of a config": (
        GRPO.format("rollout: {engine: vllm, engine_options: {hf_overrides: {auto_map: {AutoConfig: x.C}}}}"),
        "is not run",
    ),
    "the environment": (GRPO.format("launch: {env: {TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD: '1'}}"), "is not run"),
    "a process's environment": (GRPO.format("rollout: {process: {env: {TRUST_REMOTE_CODE: '1'}}}"), "is not run"),
    "a reward": (GRPO.format("rewards: [{use: math, options: {trust_remote_code: true}}]"), "is not run"),
}


@pytest.mark.parametrize("where", ASKING)
def test_no_setting_lets_code_of_a_model_run(where: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("{}\n")
    stage, message = ASKING[where]
    recipe(tmp_path, stage)
    with pytest.raises(RecipeError, match=message):
        load(tmp_path / "recipe.yaml")


def test_every_loader_of_ours_refuses_code(repository: Path) -> None:
    calls = 0
    for path in (path for room in ("pipeline", "rewards", "model") for path in (repository / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".from_pretrained")):
                continue
            if ast.unparse(node.func).startswith(("Auto", "loader.")):
                calls += 1
                given = {word.arg: ast.unparse(word.value) for word in node.keywords}
                assert given.get("trust_remote_code") == "False", f"{path}:{node.lineno}"
    assert calls > 15


def test_torch_is_told_nothing_that_lets_pickles_run(repository: Path) -> None:
    for path in (path for room in ("pipeline", "rewards", "model") for path in (repository / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "np.load", "numpy.load"):
                given = {word.arg: ast.unparse(word.value) for word in node.keywords}
                assert given.get("weights_only") == "True" or given.get("allow_pickle") == "False", (
                    f"{path}:{node.lineno}"
                )
