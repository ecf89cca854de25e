"""`zero2r1 plan --cost`: stages as numbers, what does not fit and what makes it fit, and bad input in one line."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.cost import memory, models, speed
from pipeline.planner import fits, found, left_out, sizes
from pipeline.recipe import load
from pipeline.schema.efficiency import Efficiency
from pipeline.schema.task import TaskSpec
from pipeline.stages.grpo import TrainingRollout
from pipeline.stages.registry import KINDS, config_class
from pipeline.training.held_out.fields import WatchSpec
from tests.planner.plans import RECIPE, invoked, planned, stage


def test_a_recipe_by_hand(recipe: Path, tmp_path: Path) -> None:
    found = planned(recipe, "--runs", tmp_path, "--gpus", "H200", "--completion-tokens", 280, "--prompt-tokens", 120)
    zero = stage(found, "zero")
    assert zero["steps"] == 640 // 64  # 64 prompts a step, 8 rollouts each
    assert zero["parameters"] == [{"total": 494_032_768, "active": 494_032_768, "mtp": 0}]
    assert zero["tokens"] == 10 * 512 * 400
    held = zero["memory"]["trainer"]
    assert (held["weights"], held["gradients"], held["optimizer"]) == tuple(n * 494_032_768 for n in (4, 4, 8))
    assert held["engine weights"] + held["engine cache"] == pytest.approx(0.3 * 150.1e9)
    assert zero["flops"]["training"] == pytest.approx(6 * 494_032_768 * zero["tokens"], rel=0.1)
    parts = zero["seconds_a_step"]
    assert parts["step"] == pytest.approx(1.05 * sum(parts[name] for name in parts if name != "step"), rel=1e-3)
    assert zero["seconds"] > 10 * parts["step"]
    assert zero["usd"] == pytest.approx(zero["gpu_hours"] * 4.75, abs=1e-3)
    taught, score = stage(found, "taught"), stage(found, "score")
    assert taught["steps"] == 14  # two epochs of 50 rows, 8 a step
    assert "lines of the file" in json.dumps(taught["assumptions"])
    assert score["tokens"] == 2 * 2 * 1319 * 280
    assert stage(found, "base")["not_planned"] == "copies files"
    assert found["usd"] == pytest.approx(found["gpu_hours"] * 4.75, rel=0.01)
    assert found["fits"] and all(line["source"] for line in found["assumptions"])


def test_looks_at_held_out_problems_count_as_their_evaluation_does(recipe: Path, tmp_path: Path) -> None:
    """A look takes the time of an `evaluate` stage on the same problems, and the whole stage that of all its looks."""
    words = (recipe, "--runs", tmp_path, "--gpus", "H200", "--completion-tokens", 100)
    plain = planned(*words)
    watch = "{tasks: [gsm8k/test], every: 4, samples: 2, problems: 300}"
    watched = planned(*words, f"stages.zero.watch={watch}", f"stages.taught.watch={watch}")
    asked = ("stages.score.problems=300", "stages.score.models=['@base']", "stages.score.rollout.max_tokens=")
    for name, engine, longest in (("zero", "vllm", 400), ("taught", "transformers", 1024)):
        engines = f"stages.score.rollout.engine={engine}"
        score = stage(planned(*words, *asked[:2], f"{asked[2]}{longest}", engines), "score")
        before, after = stage(plain, name), stage(watched, name)
        looks = 1 + math.ceil(before["steps"] / 4)  # 10 and 14 steps: the last look is after the last step
        told = after["watching"]
        assert (told["looks"], told["completions"]) == (looks, 600) and "watching" not in before
        assert told["seconds"] == pytest.approx(score["seconds_a_step"]["step"], rel=1e-2)
        assert after["seconds"] - before["seconds"] == pytest.approx(looks * told["seconds"], rel=1e-2)
        assert after["flops"]["watching"] == pytest.approx(looks * score["flops"]["sampling"], rel=1e-6)
        assert after["seconds_a_step"] == before["seconds_a_step"]
    held = stage(watched, "taught")["memory"]["watching"]
    assert held["watching cache"] == 64 * (128 + 1024) * 12_288  # 24 layers, 2 heads of 64, keys and values, bfloat16
    assert held["optimizer"] == 8 * 494_032_768 and "activations" not in held
    result = invoked("plan", *words, "--cost", f"stages.zero.watch={watch}")
    assert "4 looks of" in result.stdout and "600 completions" in result.stdout, result.stdout


def test_every_field_of_a_stage_is_planned_or_told() -> None:
    """A field that is new belongs into one of the planner's sets, with a line if it takes time or memory."""
    sets = left_out.PLANNED, left_out.FREE, frozenset(left_out.TOLD)
    fields = {name for kind in KINDS for name in config_class(kind).model_fields}
    nested = {"efficiency": Efficiency, "rollout": TrainingRollout, "watch": WatchSpec, "tasks": TaskSpec}
    fields |= {f"{outer}.{name}" for outer, model in nested.items() for name in model.model_fields}
    assert fields <= frozenset().union(*sets), "a field that no plan speaks of"
    assert frozenset().union(*sets) <= fields, "a name that is no field"
    planned_and_free = left_out.PLANNED & left_out.FREE
    assert not planned_and_free and not left_out.FREE & left_out.TOLD.keys()


def test_what_is_not_counted_is_a_line(recipe: Path, tmp_path: Path) -> None:
    words: tuple[object, ...] = (recipe, "--runs", tmp_path, "--gpus", "H200")
    words += ("stages.zero.health={on_alarm: rollback, rollbacks: 2}", "stages.zero.stop={above: 0.9}")
    words += ("stages.zero.watch={tasks: [gsm8k/test], every: 4}", "stages.zero.keep=best")
    words += ("stages.zero.efficiency.dynamic_sampling_rounds=3", "stages.zero.tasks=[{use: gsm8k, weight: 0.5}]")
    found = planned(*words)
    told = {line["what"]: line["source"] for line in stage(found, "zero")["assumptions"]}
    assert "up to 2 times" in told["health"] and "may end earlier" in told["stop"] and "saves" in told["keep"]
    assert "3 more rounds" in told["efficiency.dynamic_sampling_rounds"]
    assert "weight 0.5" in told["problems"]
    assert stage(found, "zero")["steps"] == math.ceil(3736 / 64)  # half of the 7,473 problems
    (line,) = [line for line in found["assumptions"] if line["what"] == "not counted"]
    assert "decontaminating" in line["source"] and "judging" in line["source"]


def test_pass_rates_and_spare_prompts_are_planned(recipe: Path, tmp_path: Path) -> None:
    """A `pass_rate` stage samples as an evaluation of as many samples does; `spare` samples that much more."""
    (tmp_path / "more.yaml").write_text(
        RECIPE + '  rates: {kind: pass_rate, model: "@base", tasks: [{use: gsm8k, problems: 1319}], samples: 2,'
        " rollout: {engine: vllm}}\n"
    )
    words = (tmp_path / "more.yaml", "--runs", tmp_path, "--gpus", "2xH200", "stages.score.models=['@base']")
    found = planned(*words)
    rates, score = stage(found, "rates"), stage(found, "score")
    assert (rates["tokens"], rates["seconds"], rates["memory"]) == (score["tokens"], score["seconds"], score["memory"])
    apart = "stages.zero.launch.gpus=2", "stages.zero.rollout.process.devices=[1]"
    plain, more = (stage(planned(*words, *apart, f"stages.zero.rollout.spare={n}"), "zero") for n in ("0", "0.25"))
    assert more["flops"]["sampling"] == pytest.approx(1.25 * plain["flops"]["sampling"])
    assert more["flops"]["training"] == plain["flops"]["training"]


def test_more_gpus_share_what_is_sharded(recipe: Path, tmp_path: Path) -> None:
    words = (recipe, "--runs", tmp_path, "stages.zero.launch.accelerate=fsdp2-1node")
    one, eight = (stage(planned(*words, "--gpus", gpus), "zero") for gpus in ("H100", "8xH100"))
    assert eight["gpus"] == 8 and one["gpus"] == 1
    assert eight["memory"]["trainer"]["optimizer"] * 8 == one["memory"]["trainer"]["optimizer"]
    assert eight["tokens"] / eight["steps"] == 8 * one["tokens"] / one["steps"]  # a batch on each of them


def test_an_adapter_on_a_quantised_base_takes_less() -> None:
    shape = models.known("Qwen/Qwen2.5-7B")
    assert shape is not None
    setups = (
        memory.Setup(8192, checkpointing=True),
        memory.Setup(8192, checkpointing=True, adapter_rank=32, base="nf4"),
    )
    whole, adapted = (memory.total(memory.training(shape, setup)) for setup in setups)
    assert whole > 120e9 and adapted < 16e9


@pytest.mark.parametrize(
    ("gpus", "words"),
    [
        ("0xH100", "not a number of GPUs"),
        ("00xH100", "not a number of GPUs"),
        ("1.5xH200", "not a number of GPUs"),
        ("8xH100:2", "not a number of GPUs"),
        ("8xNoSuch", "there is no GPU 'NoSuch'"),
        ("999999xH100", "200,000 are the most"),
        (f"{'9' * 5000}xH100", "200,000 are the most"),
    ],
)
def test_gpus_that_are_none_are_one_line(recipe: Path, gpus: str, words: str) -> None:
    done = invoked("plan", recipe, "--cost", "--gpus", gpus)
    assert done.exit_code == 2 and words in done.output and done.output.count("\n") == 1 and len(done.output) < 300


def test_more_gpus_than_there_are(recipe: Path, tmp_path: Path) -> None:
    changes = ("launch.gpus=2", "rollout.process.devices=[1]", "rollout.max_staleness=1")
    words = (recipe, "--runs", tmp_path, *(f"stages.zero.{change}" for change in changes))
    zero = stage(planned(*words, "--gpus", "H200"), "zero")
    assert zero["smallest_change"] == ["2 GPUs: the stage names more than the 1 that are there"]
    both = stage(planned(*words, "--gpus", "2xH200"), "zero")
    assert both["fits"] and set(both["memory"]) == {"trainer", "engine"}
    parts = both["seconds_a_step"]
    rest = sum(value for name, value in parts.items() if name not in ("step", "sampling"))
    assert parts["step"] == pytest.approx(1.05 * max(parts["sampling"], rest), rel=1e-3)


def test_reward_models_and_used_rollouts_count(recipe: Path, tmp_path: Path) -> None:
    """A reward model lies beside the policy; rollouts that serve two steps are sampled once and scored once more."""
    words = (recipe, "--runs", tmp_path, "--gpus", "H200")
    judge = "stages.zero.rewards=[accuracy, {use: preference, options: {model: Qwen/Qwen2.5-1.5B}}]"
    usual, judged = (stage(planned(*words, *more), "zero") for more in ((), (judge,)))
    assert judged["memory"]["trainer"]["reward models"] == 2 * 1_543_714_304
    assert "reward models" not in usual["memory"]["trainer"]
    twice = stage(planned(*words, "stages.zero.trainer.num_iterations=2"), "zero")
    assert twice["steps"] == 2 * usual["steps"] and twice["seconds_a_step"]["scoring"] > 0
    assert twice["flops"]["sampling"] == usual["flops"]["sampling"]
    assert twice["flops"]["training"] == 2 * usual["flops"]["training"]


def test_a_server_of_its_own_takes_no_memory_here(recipe: Path, tmp_path: Path) -> None:
    words = (recipe, "--runs", tmp_path, "--gpus", "H200", "stages.zero.rollout.engine=vllm_server")
    elsewhere = stage(planned(*words, "stages.zero.rollout.server=http://localhost:8000"), "zero")
    assert set(elsewhere["memory"]) == {"trainer"} and "engine weights" not in elsewhere["memory"]["trainer"]
    started = stage(planned(*words), "zero")
    assert "engine weights" in started["memory"]["trainer"]
    usual = stage(planned(recipe, "--runs", tmp_path, "--gpus", "H200"), "zero")
    assert started["seconds_a_step"]["sampling"] > usual["seconds_a_step"]["sampling"]  # vLLM's own scheduler


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--cost", "--gpus", "8xH900"), "there is no GPU 'H900' here (did you mean 'H800'?)"),
        (("--gpus", "8xH100"), "--gpus has an effect only with --cost"),
        (("--probe",), "--probe has an effect only with --cost"),
        (("--cost", "--probe", "--gpus", "H100"), "--probe measures this machine, and --gpus names another"),
        (("--cost", "--gpus", "H100", "stages.base.model=some/unheard-of"), "the sizes of 'some/unheard-of' are not"),
    ],
)
def test_bad_input_is_one_clear_line(recipe: Path, tmp_path: Path, words: tuple[str, ...], told: str) -> None:
    result = invoked("plan", recipe, "--runs", tmp_path, *words)
    assert result.exit_code == 2
    assert told in result.output and result.output.count("\n") == 1


def test_sizes_come_from_folders_and_from_the_hubs_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128}
    config |= {"num_attention_heads": 4, "vocab_size": 100}
    folder = tmp_path / "hub" / "models--some--model" / "snapshots" / "abc"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    by_name, by_path = sizes.named("some/model"), sizes.named(str(folder))
    assert by_name == by_path and by_name.parameters.total == 2 * (4 * 64**2 + 3 * 64 * 128 + 128) + 2 * 6400 + 64
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": None}))
    with pytest.raises(sizes.UnknownModelError, match=r"config.json: .* vocab_size is None"):
        sizes.named(str(folder))
    (folder / "config.json").write_text("{")
    with pytest.raises(sizes.UnknownModelError, match="is not a model's config"):
        sizes.named(str(folder))


@pytest.mark.parametrize("name", ["nano/r1", "nano/long-context", "r1/r1", "distill/qwen-1.5b", "v3-small/r1-zero"])
def test_every_stage_of_the_shipped_recipes_is_planned(name: str, tmp_path: Path) -> None:
    found = planned(name, "--runs", tmp_path, "--gpus", "8xH100")
    assert {each.get("not_planned", "copies files") for each in found["stages"]} == {"copies files"}
    assert len(found["stages"]) == len(load(name).stages)


def test_the_chain_of_v3_small_is_planned_within_its_budget(tmp_path: Path) -> None:
    """Twenty-five minutes of one H200, every start included; all stages are planned."""
    found = planned("v3-small/r1", "--runs", tmp_path, "--gpus", "1xH200")
    assert len(found["stages"]) == len(load("v3-small/r1").stages)
    assert not [each for each in found["stages"] if "not_planned" in each]
    assert found["fits"] and found["seconds"] <= 25 * 60


def test_models_of_one_shape_share_an_engine(recipe: Path, tmp_path: Path) -> None:
    """An engine starts for each shape, in the order of the models; where weights cannot be replaced, for each model."""
    start = speed.MEASURED.engine_s

    def begun(models: str, *more: str) -> float:
        words = (f"stages.score.models={models}", *more)
        score = stage(planned(recipe, "--runs", tmp_path, "--gpus", "H200", *words), "score")
        return float(score["seconds"] - score["seconds_a_step"]["step"] - speed.MEASURED.warm_s)

    assert begun("['@base']") == pytest.approx(start, abs=0.1)
    assert begun("['@base', '@zero', '@taught']") == pytest.approx(start, abs=0.1)
    assert begun("['@base', 'Qwen/Qwen2.5-1.5B', '@taught']") == pytest.approx(3 * start, abs=0.1)
    quantised = "stages.score.rollout.engine_options={quantization: fp8}"
    assert begun("['@base', '@zero', '@taught']", quantised) == pytest.approx(3 * start, abs=0.1)


def test_it_is_printed_in_eighty_columns(recipe: Path, tmp_path: Path) -> None:
    words = ("--cost", "--gpus", "RTX4090", "stages.zero.trainer.gradient_checkpointing=false")
    printed = invoked("plan", recipe, "--runs", tmp_path, *words).stdout
    assert max(map(len, printed.splitlines())) <= 80
    assert "! too large" in printed and "The smallest change that fits" in printed


def test_nothing_heavy_is_imported_and_no_network_is_used(recipe: Path) -> None:
    code = "import sys, socket; socket.socket.connect = None; from pipeline.cli import app;"
    code += "app(sys.argv[1:], standalone_mode=False);"
    code += "print([name for name in ('torch', 'transformers', 'trl', 'datasets') if name in sys.modules])"
    words = [sys.executable, "-c", code, "plan", str(recipe), "--cost", "--gpus", "8xH100"]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=recipe.parent)
    assert done.stdout.splitlines()[-1] == "[]"


LARGE = "beta: 0.0, gradient_checkpointing: false"
DRIVER = """#!/bin/sh
echo "0, GPU-1, {}, NVIDIA {}"
"""


def fake_driver(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, mebibytes: int) -> None:
    file = folder / "bin" / "nvidia-smi"
    file.parent.mkdir()
    file.write_text(DRIVER.format(mebibytes, name))
    file.chmod(0o755)
    monkeypatch.setenv("PATH", str(file.parent), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_plan_and_doctor_say_what_does_not_fit_the_gpu_that_is_here(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_driver(tmp_path, monkeypatch, "GeForce RTX 4090", 24_564)
    text = recipe.read_text().replace("gsm8k/test", "{use: arithmetic, problems: 5}").replace("beta: 0.0", LARGE)
    recipe.write_text(text.replace("{use: gsm8k, problems: 640}", "{use: arithmetic, problems: 640}"))
    told = invoked("plan", recipe, "--runs", tmp_path).stderr
    (line,) = [line for line in told.splitlines() if "does not fit" in line]
    assert "stages.zero does not fit: about 3" in line and "of 25.4 GB of NVIDIA GeForce RTX 4090" in line
    assert "stages.zero.efficiency.tokens_per_pass=" in line
    found = json.loads(invoked("doctor", "--recipe", recipe, "--json").stdout)
    levels = {each["subject"]: (each["level"], each["message"]) for each in found if each["subject"].endswith("memory")}
    assert levels["zero: memory"][0] == "warning" and "The smallest change" in levels["zero: memory"][1]
    assert levels["score: memory"][0] == "ok"


@pytest.mark.parametrize(
    ("name", "card", "mebibytes"),
    [("lora/7b-24gb", "GeForce RTX 4090", 24_564), ("lora/1.5b-12gb", "GeForce RTX 3060", 12_288)],
)
def test_the_recipes_for_small_cards_fit_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, card: str, mebibytes: int
) -> None:
    """An engine that sleeps while the trainer works: one after the other fits where both at once do not."""
    fake_driver(tmp_path, monkeypatch, card, mebibytes)
    told = dict(told_of(name))
    assert told["zero"].startswith("takes about") and told["score"].startswith("takes about")
    awake = dict(told_of(name, "stages.zero.trainer.vllm_enable_sleep_mode=false"))
    assert awake["zero"].startswith("does not fit")
    in_full = dict(told_of(name, "stages.zero.adapter=null"))
    assert in_full["zero"].startswith("does not fit")


def told_of(name: str, *overrides: str) -> list[tuple[str, str]]:
    return [(each.work.stage, said) for each, said in fits.on_this_machine(load(name, list(overrides)))]


def test_the_gpus_that_are_here_are_planned_for(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_driver(tmp_path, monkeypatch, "H200", 143_771)
    found = planned(recipe, "--runs", tmp_path)
    assert found["gpus"]["name"] == "H200" and found["gpus"]["count"] == 1
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert planned(recipe, "--runs", tmp_path)["gpus"]["name"] == "H100"


def test_a_probe_measures_this_processor(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.planner import probe

    monkeypatch.setattr(probe, "SECONDS", 0.05)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = planned(recipe, "--runs", tmp_path, "--probe", "stages.zero.rollout.engine=auto")
    assert found["gpus"]["name"] == "CPU" and found["usd"] == 0
    told = {line["what"]: line["source"] for line in found["assumptions"]}
    assert all("measured on this machine" in told[what] for what in ("products", "memory", "training", "launching"))
    assert stage(found, "zero")["seconds_a_step"]["sampling"] > 0


@pytest.mark.gpu
@pytest.mark.skipif(found.gpus() is None, reason="no GPU")
def test_a_probe_measures_a_gpu_near_its_data_sheet() -> None:
    from pipeline.planner import probe

    here = found.gpus()
    assert here is not None
    sheet = here.cluster().gpu
    cluster, rates, _ = probe.measured(here, print)
    assert 0.5 * sheet.bf16 < cluster.gpu.bf16 < 1.05 * sheet.bf16
    assert 0.5 * sheet.bandwidth < cluster.gpu.bandwidth < 1.05 * sheet.bandwidth
    assert 0.2 < rates.products < 0.9
    assert 1e-4 < rates.layer_s < 1e-2


def test_stages_side_by_side_take_as_long_as_the_scheduler_lets_them(recipe: Path) -> None:
    """`taught` waits for `zero`, `score` for `taught`; `beside` for nobody, so only it shortens the whole."""
    beside = (
        "stages.beside={kind: sft, model: '@base', data: [rows.jsonl], max_length: 1024, trainer: {max_steps: 900}}"
    )
    one = planned(recipe, beside, "--gpus", "2xH100")
    assert "side_by_side" not in one
    took = {name: stage(one, name)["seconds"] for name in ("zero", "taught", "score", "beside")}
    path = took["zero"] + took["taught"] + took["score"]
    two = planned(recipe, beside, "jobs=2", "--gpus", "2xH100")
    assert two["side_by_side"]["jobs"] == 2 and two["seconds"] == pytest.approx(sum(took.values()), abs=0.5)
    assert two["side_by_side"]["seconds"] == pytest.approx(max(path, took["beside"]), abs=0.5)
    short = planned(recipe, beside, "jobs=2", "--gpus", "1xH100")["side_by_side"]
    assert short["seconds"] == pytest.approx(sum(took.values()), abs=0.5), "all want the one GPU"
    assert short["gpu_hours"] == pytest.approx(short["seconds"] / 3600, abs=0.001)
    table = invoked("plan", recipe, "--cost", beside, "jobs=2", "--gpus", "2xH100").stdout
    assert "Up to 2 at once, as `jobs` says:" in table and "One after the other:" in table


@pytest.mark.parametrize(
    ("changes", "saves"),
    [
        (("trainer.save_steps=4",), 2),  # of 10 steps, after 4 and 8; the schedule makes keeping the last one useless
        (("trainer.save_steps=4", "trainer.lr_scheduler_type=constant"), 3),
        (("trainer.save_steps=4", "trainer.lr_scheduler_type=constant", "keep_state=false"), 2),
        (("trainer.save_steps=10", "keep_state=true"), 1),
        (("trainer.save_steps=4", "adapter={rank: 8}"), 2),
    ],
)
def test_checkpoints_are_counted(recipe: Path, tmp_path: Path, changes: tuple[str, ...], saves: int) -> None:
    schedule = () if any("lr_scheduler" in change for change in changes) else ("trainer.lr_scheduler_type=linear",)
    words = [recipe, "--runs", tmp_path, "--gpus", "H200", *(f"stages.zero.{each}" for each in (*changes, *schedule))]
    found = stage(planned(*words), "zero")
    never = stage(planned(*words, "stages.zero.trainer.save_steps=500", "stages.zero.keep_state=false"), "zero")
    told, trained = found["checkpoints"], 494_032_768
    if "adapter={rank: 8}" in changes:
        shape = models.known("Qwen/Qwen2.5-0.5B")
        assert shape is not None
        trained = shape.lora(8)
    assert told["count"] == saves
    assert told["seconds"] == pytest.approx(12 * trained / speed.MEASURED.disk, abs=0.006)
    assert found["seconds"] - never["seconds"] == pytest.approx(saves * told["seconds"], abs=0.2)


def test_a_gpu_without_a_price_is_planned_without_money(recipe: Path, tmp_path: Path) -> None:
    words = (recipe, "--runs", tmp_path, "--gpus", "2xB200")
    found = planned(*words)
    assert {"what": "price", "value": "not known", "source": "not known here: --price"} in found["assumptions"]
    assert found["usd"] == 0 and found["gpu_hours"] > 0
    result = invoked("plan", *words, "--cost")
    assert "whose price is not known here: --price" in result.stdout and "$" not in result.stdout, result.stdout
    assert stage(planned(*words, "--price", 4), "zero")["usd"] > 0


@pytest.mark.parametrize("option", ["--prompt-tokens", "--completion-tokens", "--price"])
def test_numbers_without_end_are_one_line(recipe: Path, option: str) -> None:
    result = invoked("plan", recipe, "--cost", "--gpus", "H100", option, "inf")
    assert result.exit_code == 2 and option in result.output, result.output


def test_checkpoints_every_share_of_a_training_are_counted(recipe: Path, tmp_path: Path) -> None:
    words = (recipe, "--runs", tmp_path, "--gpus", "H200", "stages.taught.trainer.save_steps=0.25")
    taught = stage(planned(*words, "stages.taught.keep_state=false"), "taught")
    assert (taught["steps"], taught["checkpoints"]["count"]) == (14, 3)  # after 4, 8 and 12 steps
    assert "3 of" in invoked("plan", *words, "--cost", "stages.taught.keep_state=false").stdout
