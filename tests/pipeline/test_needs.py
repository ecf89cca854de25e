"""What a later stage will need is told before the first stage runs, for every stage of a recipe."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from huggingface_hub import constants

from pipeline.checks import needs
from pipeline.checks.whole_recipe import input_files
from pipeline.files import hub as hub_module
from pipeline.files.rows import write_rows
from pipeline.recipe import RecipeError, load
from pipeline.runner.graph import build
from pipeline.schema import model_fields, trainer_fields
from pipeline.stages.registry import config_class
from tests.hub import WHOLE, Hub, made_whole

ZERO2R1 = Path(sys.executable).parent / "zero2r1"
FIRST = "  first: {kind: import_model, model: some/model}\n"
SFT = "  later: {{kind: sft, model: '@first', data: [rows.jsonl]{}}}\n"


@pytest.fixture(autouse=True)
def files(tmp_path: Path) -> None:
    """What the recipes below name."""
    write_rows(tmp_path / "rows.jsonl", [{"prompt": "1", "completion": "2"}])
    (tmp_path / "ds.json").write_text("{}")
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "accelerate.yaml").write_text(
        "distributed_type: DEEPSPEED\nnum_processes: 1\ndeepspeed_config: {deepspeed_config_file: gone.json}\n"
    )


def recipe(folder: Path, *stages: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text("name: r\nstages:\n" + "".join(stages))
    return path


FAULTS = {
    "a tracker": (", trainer: {report_to: clearmll}", "there is no tracker 'clearmll' (did you mean 'clearml'?)"),
    "one of several": (", trainer: {report_to: [clearml, mlflows]}", "there is no tracker 'mlflows'"),
    "a tracker of a run": (
        ", trainer: {report_to: tensorboard}",
        "set `track: [tensorboard]` at the top of the recipe",
    ),
    "every tracker": (", trainer: {report_to: all}", "cannot be all: set `track: [wandb]` at the top of the recipe"),
    "a DeepSpeed file": (", trainer: {deepspeed: gone.json}", "there is no file or folder"),
    "an FSDP file": (", trainer: {fsdp: full_shard, fsdp_config: gone.json}", "there is no file or folder"),
    "an accelerator file": (", trainer: {accelerator_config: gone.json}", "there is no file or folder"),
    "a broken file": (", trainer: {deepspeed: broken.json}", "broken.json is not JSON"),
    "accelerate's DeepSpeed file": (", launch: {accelerate: accelerate.yaml}", "names gone.json, and there is no such"),
    "a schedule's argument": (
        ", trainer: {lr_scheduler_kwargs: {min_lr: 1.0e-6, min_lr_rat: 0.1}}",
        "the schedule cosine_with_min_lr has no argument 'min_lr_rat' (did you mean 'min_lr_rate'?)",
    ),
    "another schedule's": (
        ", trainer: {lr_scheduler_type: linear, lr_scheduler_kwargs: {min_lr_rate: 0.1}}",
        "the schedule linear has no argument 'min_lr_rate'",
    ),
}


QWEN2 = '{"model_type": "qwen2", "of_its_own": 1}'
LOADED = "  later: {{kind: sft, model: {}, data: [rows.jsonl], trainer: {{model_init_kwargs: {{{}: 1}}}}}}\n"
TAUGHT = (
    "  later: {{kind: distill, model: other, teacher: {}, tasks: [gsm8k],"
    " trainer: {{teacher_model_init_kwargs: {{{}: 1}}}}}}\n"
)
MADE = (
    "  first: {kind: pretrain, model: nano, tokenizer: characters, length: 64,"
    " corpus: [{from: rows.jsonl, text: prompt}]}\n"
)


@pytest.mark.parametrize("stage", [LOADED, TAUGHT], ids=["model", "teacher"])
@pytest.mark.parametrize("source", ["made", "'@first'", "lora", "pre-trained", "cached"])
def test_models_are_loaded_with_arguments_that_they_take(
    source: str, stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers tells when it loads the model, once earlier stages have run."""
    made, lora = made_whole(tmp_path / "made"), tmp_path / "lora"
    (made / "config.json").write_text(QWEN2)
    lora.mkdir()
    (lora / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "../made"}')
    (lora / "adapter_model.safetensors").write_text("")
    copy = tmp_path / "hub" / "models--some--model"
    (copy / "snapshots" / "1").mkdir(parents=True)
    (copy / "snapshots" / "1" / "config.json").write_text(QWEN2)
    (copy / "refs").mkdir()
    (copy / "refs" / "main").write_text("1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    first = MADE if source == "pre-trained" else FIRST.replace("some/model", "made")
    named = {"pre-trained": "'@first'", "cached": "some/model"}.get(source, source)
    own = "n_routed_experts" if source == "pre-trained" else "of_its_own"
    for taken in ("attn_implementation", "attention_dropout", "low_cpu_mem_usage", own):
        load(recipe(tmp_path, first, stage.format(named, taken)))
    with pytest.raises(RecipeError) as caught:
        load(recipe(tmp_path, first, stage.format(named, "atn_implementation")))
    kind = "deepseek_v3" if source == "pre-trained" else "qwen2"
    message = f"a model of the kind {kind} is loaded with no argument 'atn_implementation' (did you mean 'attn_impl"
    field = "model_init_kwargs" if stage is LOADED else "teacher_model_init_kwargs"
    assert f"stages.later.trainer.{field}.atn_implementation: {message}" in str(caught.value)


def test_the_hub_is_asked_for_the_kind_of_a_model(tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only before the first stage: a recipe is read without a network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    hub.add("some/model", {"config.json": QWEN2.encode()})
    made = load(recipe(tmp_path, FIRST, LOADED.format("'@first'", "atn_implementation")))
    assert not [path for path in hub.asked if "some/model" in path]
    assert not needs.unmet(made, ["later"])
    (told,) = needs.unmet(made, ["later"], run=True)
    assert "stages.later.trainer.model_init_kwargs.atn_implementation: a model of the kind qwen2" in told


def test_every_setting_of_a_config_is_an_argument() -> None:
    """Held against the classes that transformers makes of these names, which recipes are read without."""
    from transformers import CONFIG_MAPPING

    for kind in ("qwen2", "qwen3_moe", "llama", "deepseek_v2", "gpt2", "gemma3_text"):
        known = model_fields.arguments(kind)
        made = CONFIG_MAPPING[kind]()
        assert known is not None
        assert known >= {name for name in made.to_dict() if hasattr(made, name) and not name.startswith("_")}
        assert not {"atn_implementation", "self", "kwargs"} & known
    assert model_fields.arguments("of_nobody") is None


@pytest.mark.parametrize("what", FAULTS)
def test_a_later_stage_is_looked_at_before_the_first(what: str, tmp_path: Path) -> None:
    more, message = FAULTS[what]
    with pytest.raises(RecipeError) as caught:
        load(recipe(tmp_path, FIRST, SFT.format(more)))
    assert f"{tmp_path / 'recipe.yaml'}:4: stages.later." in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize("more", [", trainer: {report_to: none}", ", trainer: {report_to: []}"])
def test_what_is_there_is_not_told(more: str, tmp_path: Path) -> None:
    assert needs.unmet(load(recipe(tmp_path, FIRST, SFT.format(more))), ["first", "later"]) == []


def test_a_file_of_the_trainer_counts_in_the_fingerprint(tmp_path: Path) -> None:
    path = recipe(tmp_path, FIRST, SFT.format(", trainer: {deepspeed: ds.json}"))
    before = build(load(path))["later"]
    assert (("trainer", "deepspeed"), tmp_path / "ds.json") in input_files(before.config, tmp_path)
    (tmp_path / "ds.json").write_text('{"zero_optimization": {"stage": 2}}')
    assert build(load(path))["later"].fingerprint != before.fingerprint


PACKAGES = {
    "a tracker": (SFT.format(", trainer: {report_to: clearml}"), "trainer.report_to: needs the package clearml"),
    "an optimizer": (SFT.format(", trainer: {optim: paged_adamw_8bit}"), "needs the package bitsandbytes"),
    "another": (
        SFT.format(", trainer: {optim: galore_adamw, optim_target_modules: all-linear}"),
        "needs the package galore_torch",
    ),
    "DeepSpeed": (SFT.format(", trainer: {deepspeed: ds.json}"), "needs the package deepspeed"),
    "Liger": (SFT.format(", trainer: {use_liger_kernel: true}"), "needs the package liger_kernel"),
    "Liger, by our own name": (
        "  later: {kind: grpo, model: '@first', tasks: [arithmetic], efficiency: {fused_kernels: true}}\n",
        "stages.later.efficiency.fused_kernels: needs the package liger_kernel, which is not installed here: pip",
    ),
    "Liger's GPU": (
        "  later: {kind: grpo, model: '@first', tasks: [arithmetic], efficiency: {fused_kernels: true}}\n",
        "stages.later.efficiency.fused_kernels: needs a GPU, and there is none here: set it to false, or leave it out",
    ),
    "bitsandbytes": (
        SFT.format(", adapter: {quantize: 4bit}"),
        "stages.later.adapter.quantize: needs the package bitsandbytes, which is not installed here: pip install",
    ),
    "reasoning-gym": (
        "  later: {kind: evaluate, models: ['@first'], tasks: [{use: reasoning_gym, dataset: leg_counting}]}\n",
        "stages.later.tasks.0.use: needs the package reasoning_gym, which is not installed here: pip install",
    ),
    "GGUF": (
        "  later: {kind: import_model, model: model.gguf}\n",
        "stages.later.model: needs the package gguf, which is not installed here: pip install",
    ),
    "torchao": (SFT.format(", trainer: {optim: adamw_torch_8bit}"), "trainer.optim: needs the package torchao"),
    "vLLM": (
        "  later: {kind: evaluate, models: ['@first'], tasks: [arithmetic], rollout: {engine: vllm}}\n",
        "stages.later.rollout.engine: needs the package vllm",
    ),
}


@pytest.mark.parametrize("what", PACKAGES)
def test_a_package_that_is_missing_is_told(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(needs.importlib.util, "find_spec", lambda name: None)  # a machine that has none of them
    stage, message = PACKAGES[what]
    told = needs.missing(config_of(tmp_path, stage), tmp_path)
    assert any(message in f"stages.later.{'.'.join(map(str, loc))}: {text}" for loc, text in told)


@pytest.mark.parametrize(("gpus", "told"), [(["a GPU"], True), ([], False)], ids=["GPU", "CPU"])
def test_fp8_wants_its_kernels_where_there_is_a_gpu(
    gpus: list[str], told: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CPU simulates FP8 without them."""
    monkeypatch.setattr(needs.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(needs.gpus, "of_driver", lambda: gpus)
    found = needs.missing(config_of(tmp_path, SFT.format(", precision: fp8")), tmp_path)
    assert [text.startswith("needs the package torchao") for loc, text in found if loc == ("precision",)] == [
        True
    ] * told


def config_of(folder: Path, stage: str) -> object:
    import yaml

    (fields,) = yaml.safe_load(stage).values()
    return config_class(fields["kind"]).model_validate(fields)


def test_every_optimizer_of_transformers_is_known() -> None:
    """One whose package nobody has named would be told at the first step."""
    from transformers.training_args import OptimizerNames

    ours = ("adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop", "adamw_torch_xla")
    for name in OptimizerNames:
        named = any(part in name.value for part in needs.OPTIMIZERS)
        assert named or name.value in (*ours, "adamw_torch_npu_fused"), name.value


def test_schedules_and_trackers_are_those_of_transformers() -> None:
    import inspect

    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
    from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION

    assert set(trainer_fields.trackers()) == set(INTEGRATION_TO_CALLBACK)
    for schedule, function in TYPE_TO_SCHEDULER_FUNCTION.items():
        taken = [name for name in inspect.signature(function).parameters if name not in trainer_fields._GIVEN]
        if schedule.value not in ("greedy", "reduce_lr_on_plateau"):
            assert list(trainer_fields.schedule_arguments(schedule.value)) == taken, schedule


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"prompt": "1", "completion": "2"}'] * 5 + ["{"], "late.jsonl:6 is not JSON"),
        (["[1]"], "late.jsonl:1 is not a JSON object"),
        ([], "late.jsonl holds no rows"),
    ],
)
def test_a_data_file_is_read_through_before_anything_runs(lines: Sequence[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "late.jsonl").write_text("".join(f"{line}\n" for line in lines))
    path = recipe(tmp_path, FIRST, SFT.format("").replace("rows.jsonl", "late.jsonl"))
    (told,) = needs.unmet(load(path), ["first", "later"])
    assert told.startswith("stages.later.data.0.from: ")
    assert message in told
    done = subprocess.run([ZERO2R1, "run", path], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "nothing was started:" in done.stderr
    assert message in done.stderr
    assert not list((tmp_path / "runs/r/scratch").glob("*"))
    done = subprocess.run([ZERO2R1, "plan", path], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert message in done.stderr
    assert needs.unmet(load(path), ["first"]) == [], "a stage that is finished needs nothing"


PROMPTED = '{"prompt": "1", "completion": "2", "level": 1}'


@pytest.mark.parametrize(
    ("lines", "source", "message"),
    [
        ([PROMPTED] * 5 + ['{"prompt": "1", "completion": 2}'], "late.jsonl", "late.jsonl:6: completion is a text or"),
        ([PROMPTED, '{"conversations": [{"from": "narrator", "value": "x"}]}'], "late.jsonl", "late.jsonl:2: conv"),
        ([PROMPTED, '{"prompt": "1"}'], "late.jsonl", "late.jsonl:2: a row needs messages, or prompt and completion"),
        ([PROMPTED, '{"prompt": null, "completion": "2"}'], "late.jsonl", "late.jsonl:2: prompt is empty"),
        (
            ['{"instruction": null, "input": "", "output": "2"}'],
            "late.jsonl",
            "late.jsonl:1: instruction and input are",
        ),
        ([PROMPTED, '{"prompt": "1", "completion": "2"}'], "{from: late.jsonl, filter: {level: 1}}", "no field level"),
        ([PROMPTED], "{from: late.jsonl, filter: {level: [2, 3]}}", "no rows that pass {'level': [2, 3]}"),
        ([PROMPTED], "{from: late.jsonl, take: 2}", "late.jsonl has 1 rows, fewer than the 2 to be taken"),
    ],
)
def test_every_row_of_a_small_file_is_one_to_train_on(
    lines: Sequence[str], source: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "late.jsonl").write_text("".join(f"{line}\n" for line in lines))
    path = recipe(tmp_path, FIRST, SFT.format("").replace("rows.jsonl", source))
    (told,) = needs.unmet(load(path), ["first", "later"])
    assert told.startswith("stages.later.data.0.from: ")
    assert message in told


@pytest.mark.parametrize(
    ("lines", "options", "message"),
    [
        (['{"question": "1 + 1", "answer": "2", "level": 1}'], ", filter: {level: [2, 3]}", "0 of 1 problems pass"),
        (['{"question": "1 + 1", "answer": "2"}'], ", filter: {level: [2, 3]}", "no field level"),
        (['{"question": "1 + 1", "answer": "2"}', "{"], "", "problems.jsonl:2 is not JSON"),
        (['{"question": "1 + 1"}'], "", "problems.jsonl:1"),
        (['{"question": "1 + 1", "answer": "2"}'] * 3, ", problems: 50", "50"),
    ],
)
def test_a_tasks_data_is_read_before_anything_runs(
    lines: Sequence[str], options: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "problems.jsonl").write_text("".join(f"{line}\n" for line in lines))
    task = f"{{use: jsonl, options: {{path: problems.jsonl, test_share: 0}}{options}}}"
    later = f"  later: {{kind: rejection_sample, model: '@first', tasks: [{task}]}}\n"
    recipe_of_it = load(recipe(tmp_path, FIRST, later))
    (told,) = needs.unmet(recipe_of_it, ["first", "later"], run=True)
    assert told.startswith("stages.later.tasks.0: ")
    assert message in told
    whole = "".join(json.dumps({"question": f"{n} + 1", "answer": str(n + 1), "level": 2}) + "\n" for n in range(60))
    (tmp_path / "problems.jsonl").write_text(whole)
    assert needs.unmet(recipe_of_it, ["first", "later"], run=True) == []


def test_a_file_of_weights_that_is_cut_off_is_told(calculator: Path, tmp_path: Path) -> None:
    import shutil

    model = Path(shutil.copytree(calculator, tmp_path / "model"))
    made = load(recipe(tmp_path, SFT.format("").replace("'@first'", "model")))
    assert needs.unmet(made, ["later"]) == []
    weights = model / "model.safetensors"
    whole = weights.read_bytes()
    for size, words in (
        (len(whole) - 1, f"is cut off: it has {len(whole) - 1} bytes, and says that it has {len(whole)}"),
        (50, "is cut off: it has 50 bytes"),
        (0, "is cut off: it has 0 bytes"),
    ):
        weights.write_bytes(whole[:size])
        (told,) = needs.unmet(made, ["later"])
        assert told.startswith(f"stages.later.model: {weights} {words}")
    weights.write_bytes(whole[:8] + b"x" + whole[9:])
    (told,) = needs.unmet(made, ["later"])
    assert "is not a file of safetensors, or a damaged one: copy it again" in told


BAD = {"temperature": 0.6, "do_sample": False, "early_stopping": True}


def test_a_generation_config_that_could_not_be_saved_is_told_or_mended(calculator: Path, tmp_path: Path) -> None:
    import shutil

    from pipeline.stages.registry import run_function
    from tests.stages.driving import context_of

    model = Path(shutil.copytree(calculator, tmp_path / "model"))
    generation = model / "generation_config.json"
    known = json.loads(generation.read_text()) if generation.exists() else {}
    generation.write_text(json.dumps({**known, **BAD}))
    path = recipe(tmp_path, SFT.format("").replace("'@first'", "model"))
    with pytest.raises(RecipeError, match=r"stages.later.model: .*temperature, early_stopping has no effect without"):
        load(path)
    for options in ({}, {"dtype": "bfloat16"}):
        name = "imported" + "".join(options)
        context = context_of(tmp_path, name, {"kind": "import_model", "model": str(model), **options}, {})
        run_function("import_model")(context)
        mended = json.loads((context.output / "model" / "generation_config.json").read_text())
        assert not BAD.keys() - {"do_sample"} & mended.keys()
        assert mended.get("do_sample", False) is False
    export = context_of(tmp_path, "exported", {"kind": "export", "model": str(model), "shard_size": "1GB"}, {})
    run_function("export")(export)


def test_everything_small_is_saved_before_anything_is_trained(calculator: Path, tmp_path: Path) -> None:
    from types import SimpleNamespace

    from transformers import AutoModelForCausalLM, AutoTokenizer

    from pipeline.training.fit import try_saving

    model = AutoModelForCausalLM.from_pretrained(calculator)
    tokenizer = AutoTokenizer.from_pretrained(calculator)
    trainer = SimpleNamespace(model=model, processing_class=tokenizer, is_world_process_zero=lambda: True)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    try_saving(trainer, scratch)
    assert list(scratch.iterdir()) == []
    model.generation_config.top_p = 0.5
    with pytest.raises(ValueError, match=r"(?s)the trained model could not be saved.*top_p.*import_model"):
        try_saving(trainer, scratch)


@pytest.mark.parametrize(
    ("stage", "told"),
    [
        ("{kind: sft, model: someone/gone, data: [rows.jsonl]}", "model: someone/gone cannot be loaded: it is no folder"
         " here, and no model on http://127.0.0.1:"),
        ("{kind: sft, model: someone/closed, data: [rows.jsonl]}", "model: someone/closed cannot be loaded: it is "
         "gated: accept its terms at http://127.0.0.1:"),
        ("{kind: sft, model: someone/halves, data: [rows.jsonl]}", "model: someone/halves cannot be loaded: it has no "
         "weights (*.safetensors), on the hub or in its copy here"),
        ("{kind: import_model, model: someone/whole, revision: v9}", "model: someone/whole cannot be loaded: it has "
         "no revision 'v9'"),
        ("{kind: import_model, model: some/mo--del}", "model: some/mo--del cannot be loaded: "),
        ("{kind: distill, model: '@first', teacher: someone/gone, tasks: [arithmetic]}", "teacher: someone/gone cannot "
         "be loaded: it is no folder here"),
        ("{kind: evaluate, models: ['@first', someone/gone], tasks: [arithmetic]}", "models.1: someone/gone cannot be "
         "loaded: it is no folder here"),
        ("{kind: grpo, model: '@first', tasks: [arithmetic], rewards: [{use: preference, options: {model: someone/gone"
         "}}]}", "rewards.0.options.model: someone/gone cannot be loaded: it is no folder here"),
        ("{kind: sft, model: someone/whole, data: [rows.jsonl]}", None),
        ("{kind: import_model, model: someone/whole, revision: main}", None),
        ("{kind: sft, model: someone/adapter, data: [rows.jsonl]}", None),
        ("{kind: pretrain, model: nano, tokenizer: someone/words, corpus: [{from: text.jsonl}], length: 32}", None),
    ],
)  # fmt: skip
def test_a_model_that_the_hub_does_not_give_is_told_before_anything_runs(
    stage: str, told: str | None, tmp_path: Path, hub: Hub
) -> None:
    for name in ("some/model", "someone/whole"):
        hub.add_model(name)
    hub.add_model("someone/closed", gated=True)
    hub.add_model("someone/halves", ["config.json", "tokenizer.json", "onnx/model.safetensors"])
    hub.add_model("someone/words", ["tokenizer.json"])
    hub.add_model("someone/adapter", ["adapter_config.json", "adapter_model.safetensors"])
    (tmp_path / "text.jsonl").write_text('{"text": "some words"}\n')
    made = load(recipe(tmp_path, FIRST, f"  later: {stage}\n"))
    found = needs.unfound_models(made, ["first", "later"])
    assert [line.startswith(f"stages.later.{told}") for line in found] == ([] if told is None else [True]), found


def test_without_a_network_a_copy_of_a_model_has_to_be_whole(
    tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they lie in the cache: one that was loaded, one of which a tokenizer was read, and one that is not there."""
    commit = "a" * 40
    for name, files in (("whole", WHOLE), ("words", ("config.json", "tokenizer.json"))):
        cache = tmp_path / "cache" / f"models--someone--{name}"
        (cache / "snapshots" / commit).mkdir(parents=True)
        for file in files:
            (cache / "snapshots" / commit / file).write_text("{}")
        (cache / "refs").mkdir()
        (cache / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))

    def told(name: str) -> list[str]:
        made = load(recipe(tmp_path, f"  first: {{kind: sft, model: someone/{name}, data: [rows.jsonl]}}\n"))
        return needs.unfound_models(made, ["first"])

    def check() -> None:
        assert told("whole") == []
        assert told("words") == [
            "stages.first.model: someone/words cannot be loaded: it has no weights (*.safetensors), on the hub or in"
            " its copy here"
        ]
        assert told("none") == [f"stages.first.model: someone/none cannot be loaded: {hub_module.UNREACHABLE}"]

    with monkeypatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        check()
    with monkeypatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        check()
    for name in ("whole", "words", "none"):
        hub.add_model(f"someone/{name}")
    hub.down = 3
    check()
    assert told("none") == [], "the hub has it, and answers again"
