"""The GRPO benchmark on a CPU: both kinds train, on the same rollouts' worth of problems, and are compared."""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from benchmarks import difficulty, fits, grpo, grpo_clock, grpo_replay, lora, overlap, scaling
from benchmarks.children import Place, places
from benchmarks.counting import FEWEST, MOST, Counting, every_second
from pipeline.stages.registry import config_class

OPTIONS = argparse.Namespace(
    problems=None,
    steps=2,
    learning_rate=5e-6,
    beta=0.0,
    gpu_memory=0.1,
    tokens_per_pass=512,
    dynamic_sampling_rounds=0,
    long=False,
    smoke=True,
)


@pytest.fixture(scope="module")
def config(calculator: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The smoke test's stage on a tiny model."""
    folder = tmp_path_factory.mktemp("gsm8k")
    rows = [{"question": f"{a} + {b} =", "answer": f"#### {a + b}"} for a in range(5) for b in range(5)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = argparse.Namespace(**{**vars(OPTIONS), "model": str(calculator), "problems": str(folder)})
    return grpo.stage(options)


def test_stock_and_ours_are_measured_alike(config: dict[str, Any], tmp_path: Path) -> None:
    runs = {kind: [grpo.train(kind, config, 0, tmp_path / kind)] for kind in ("stock", "ours")}
    for (run,) in runs.values():
        assert len(run["accuracy"]) == len(run["elapsed"]) == len(run["length"]) == 2
        assert run["samples_per_s"] == pytest.approx(16 / run["seconds_a_step"], rel=0.01)
        assert sum(run["split"].values()) == pytest.approx(run["seconds_a_step"], rel=0.2)
        assert all(seconds >= 0 for seconds in run["split"].values())
    assert runs["stock"][0]["accuracy"][0] == runs["ours"][0]["accuracy"][0], "the same problems and the same seed"
    assert grpo.compare(runs, target=2.0)["seconds_to_target"] == {"stock": [None], "ours": [None]}
    assert grpo.engine(config, 0, tmp_path / "engine")["tokens_per_s"] > 0


def test_a_profile_adds_up(config: dict[str, Any], tmp_path: Path) -> None:
    found = grpo.train("ours", config, 0, tmp_path / "profiled", profiled=True)
    seconds = [row[2] for row in found["by_processor"]]
    assert seconds == sorted(seconds, reverse=True)
    assert 0 < sum(seconds) <= found["processor_s"] + 0.01
    assert any(name.startswith("aten::") for name, *_ in found["by_processor"])


def test_an_adapter_is_measured_as_all_weights_are(config: dict[str, Any], tmp_path: Path) -> None:
    (problems,) = (task["options"]["path"] for task in config["tasks"])
    shutil.copyfile(Path(problems) / "train.jsonl", Path(problems) / "test.jsonl")
    trainer = {**config["trainer"], "max_steps": 2}
    trainer.pop("shuffle_dataset")
    runs = {
        kind: lora.train(lora.of_kind({**config, "trainer": trainer}, kind, 1e-3), 0, tmp_path / kind, 4, None)
        for kind in ("full", "lora")
    }
    assert all(0 <= run["test_accuracy"] <= 1 and len(run["accuracy"]) == 2 for run in runs.values())
    assert runs["full"]["accuracy"][0] == runs["lora"]["accuracy"][0], "the same policy, problems and seed at first"
    assert runs["lora"]["trained"] < runs["full"]["trained"]


def test_kinds_of_runs_that_a_result_has_are_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[Any] = []

    def child(config: dict[str, Any], *_: Any) -> dict[str, Any]:
        ran.append(config["adapter"])
        whole = {"test_accuracy": 0.5, "accuracy": [0.5], "peak_gb": 1.0, "samples_per_s": 2.0}
        return {"failed": "exit code 1"} if len(ran) == 2 else whole

    monkeypatch.setattr(lora, "in_child", child)
    told = {"model": "m", "problems": "p", "steps": 2, "gpu_memory": 0.1, "tokens_per_pass": 64, "learning_rate": 1e-6}
    told |= {
        "rate_factor": 10.0,
        "smoke": True,
        "devices": [],
        "test_problems": 4,
        "kinds": ["full", "lora"],
        "out": tmp_path / "lora.json",
    }
    options = argparse.Namespace(**told)
    lora.compared(options)
    found = lora.compared(options)
    assert ran == [None, {}, {}], "the run that failed is repeated"
    assert found["peak_gb"] == {"full": 1.0, "lora": 1.0}
    options.tokens_per_pass = 128
    with pytest.raises(SystemExit, match="other settings"):
        lora.compared(options)


def test_a_recipe_is_held_to_a_smaller_card(calculator: Path, tmp_path: Path) -> None:
    options = argparse.Namespace(recipe="lora/7b-24gb", override=[], steps=2, smoke=True)
    model = lora.random_model("Qwen/Qwen2.5-7B", str(calculator), tmp_path / "model", small=True)
    found = lora.train(lora.of_recipe(options, model), 0, tmp_path / "run", 0, None)
    assert found["accuracy"] == [0.5, 0.5], "every second rollout is paid"
    assert found["seconds_a_step"] > 0


def test_what_fits_is_measured_once_and_stands_in_the_table(calculator: Path, tmp_path: Path) -> None:
    out = tmp_path / "fits.json"
    words = ["--measure", "--smoke", "--tokenizer", str(calculator), "--models", "0.5B", "--lengths", "1024"]
    with pytest.raises(SystemExit) as ended:
        fits.main([*words, "--ways", "LoRA", "--out", str(out)])
    assert ended.value.code == 0
    (found,) = fits.measured(out).values()
    assert found["samples_per_s"] > 0 and found["peak_gb"] > 0
    row = next(line for line in fits.table({"0.5B LoRA 1024": found}).splitlines() if "| 0.5B | LoRA |" in line)
    assert f"**{found['peak_gb']:.0f} GB, {found['samples_per_s']:.1f}/s" in row and row.count("**") == 2
    before = out.stat().st_mtime_ns
    with pytest.raises(SystemExit):
        fits.main([*words, "--ways", "LoRA", "--out", str(out)])
    assert out.stat().st_mtime_ns == before, "it is not measured again"


def test_the_target_is_reached_by_the_mean_of_several_steps() -> None:
    run = {"accuracy": [0.1, 0.9, 0.2, 0.5, 0.6], "elapsed": [1.0, 2.0, 3.0, 4.0, 5.0]}
    assert grpo.reached(run, 0.5) == 4.0
    assert grpo.reached(run, 0.7) is None


def test_results_of_single_seeds_become_one(config: dict[str, Any]) -> None:
    def result(seed: int, speed: float, **more: Any) -> dict[str, Any]:
        run = {
            "samples_per_s": speed,
            "peak_gb": 10.0 + seed,
            "accuracy": [0.1] * 3 + [0.5] * 3,
            "elapsed": [*range(6)],
        }
        runs = {"ours": [run], "stock": [{**run, "samples_per_s": 10.0}]}
        return {
            **grpo.compare(runs, 0.5),
            "runs": runs,
            "settings": config,
            "versions": {},
            "command": f"{seed}",
            **more,
        }

    found = grpo.merged([result(0, 30.0), result(1, 20.0, profile={"by_processor": []}), result(2, 40.0)], 0.5)
    assert found["speedup"] == 3.0 and found["peak_gb"] == 12.0 and found["command"].startswith("0 && 1 && 2 && ")
    assert found["seconds_to_target"] == {"stock": [5.0] * 3, "ours": [5.0] * 3}
    assert [run["samples_per_s"] for run in found["runs"]["ours"]] == [30.0, 20.0, 40.0]
    assert found["profile"] == {"by_processor": []}
    halves = [{**half, "runs": {kind: half["runs"][kind]}} for half in [result(0, 30.0)] for kind in grpo.KINDS]
    assert grpo.merged(halves, 0.5)["speedup"] == 3.0
    stock_alone = {**halves[grpo.KINDS.index("stock")], "settings": {"of": "another"}}
    assert grpo.merged([stock_alone, halves[grpo.KINDS.index("ours")]], 0.5)["settings"] == config
    for name in ("settings", "stock_settings", "versions"):
        with pytest.raises(SystemExit, match=f"the same {name}"):
            grpo.merged([result(0, 30.0), {**result(1, 30.0), name: {"of": "another"}}], 0.5)


def test_ways_measured_one_at_a_time_become_one_result(tmp_path: Path) -> None:
    def result(way: str, rollout: dict[str, Any], steps: int = 10, vllm: str = "0.26") -> dict[str, Any]:
        settings = {way: {"trainer": {"max_steps": steps}, "rollout": rollout}}
        return {"runs": {way: {}}, "settings": settings, "versions": {"vllm": vllm}, "command": way}

    file, ahead = tmp_path / "overlap.json", result("ahead", {"max_staleness": 1})
    assert overlap.added(ahead, file) == ahead
    file.write_text(json.dumps(result("one", {})))
    both = overlap.added(ahead, file)
    assert list(both["runs"]) == list(both["settings"]) == ["one", "ahead"]
    assert both["command"] == "one && ahead"
    for other in (result("ahead", {}, steps=11), result("ahead", {}, vllm="0.31")):
        with pytest.raises(SystemExit, match="other settings or versions"):
            overlap.added(other, file)


def test_a_way_of_scaling_has_as_many_rollouts_on_any_number_of_gpus() -> None:
    options = argparse.Namespace(
        **vars(OPTIONS)
        | {"model": "m", "smoke": False, "gpus": ["4", "5", "6", "7"], "engine_options": {}, "max_tokens": 1024}
        | {"fused_kernels": False}
    )
    for way in (*scaling.WAYS, *scaling.MORE):
        config, trainers = scaling.config_of(way, options)
        trainer, rollout = config["trainer"], config_class("grpo").model_validate(config).rollout
        micro, accumulated = trainer["per_device_train_batch_size"], trainer["gradient_accumulation_steps"]
        assert micro * accumulated * trainers == 512, way
        gpus, kind, staleness = scaling.parts(way)
        engines = rollout.process.devices if rollout.process is not None else []
        assert (len(engines) + trainers, rollout.max_staleness) == (
            (gpus, staleness) if kind == "apart" else (trainers, 0)
        )
        assert not set(engines) & set(options.gpus[:trainers])


def test_ways_of_scaling_are_compared_on_as_many_gpus_and_at_the_same_staleness() -> None:
    def found(samples: float, waiting: float = 0.0) -> dict[str, Any]:
        return {"samples_per_s": samples, "seconds_a_step": 512 / samples, "split": {"waiting": waiting}}

    runs = {
        "1": found(40.0),
        "2-apart-0": found(51.2, waiting=6.0),
        "2-apart-1": found(80.0),
        "2-apart-2": {"failed": "exit code 1"},
        "2-async-1": found(50.0),
        "4-apart-1": found(140.0),
        "4-async-2": found(90.0),
    }
    told = scaling.summary(runs)
    assert told["samples_per_second"] == {"1": 40.0, "2": 80.0, "4": 140.0}
    assert told["async_grpo"] == {"2": 50.0, "4": 90.0}
    assert told["speedup"] == {"1": 1.0, "2": 2.0, "4": 3.5}
    assert told["over_async_grpo"] == {"2-apart-1": 1.6}
    assert told["bound_s"] == {"sampling": 6.0, "training": 4.0}
    assert told["over_bound"] == {"2-apart-0": 1.67, "2-apart-1": 1.07}


def test_seeds_run_side_by_side_one_on_each_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    began = threading.Barrier(2, timeout=60)
    seen: list[tuple[str, int, str | None, Any]] = []

    def in_child(kind: str, config: dict[str, Any], seed: int, place: Place) -> dict[str, Any]:
        began.wait()  # two are under way at once, or this one never ends
        seen.append((kind, seed, place.device, config["rollout"].get("process")))
        return {"seed": seed}

    monkeypatch.setattr(grpo, "in_child", in_child)
    values = {
        **vars(OPTIONS),
        "model": "m",
        "smoke": False,
        "seeds": [0, 1, 2],
        "devices": ["4", "7"],
        "engines": 2,
        "out": tmp_path / "out.json",
        "kinds": grpo.KINDS,
    }
    values |= {"engine_options": {}, "one_micro_batch": False, "fused_kernels": False}
    options = argparse.Namespace(**values)
    runs = grpo.all_runs(grpo.stage(options), options)
    assert runs == {kind: [{"seed": seed} for seed in range(3)] for kind in ("stock", "ours")}
    assert {device for _, _, device, _ in seen} == {"4", "7"}
    for kind, _, device, process in seen:
        assert process == ({"devices": [device] * 2} if kind == "ours" else None)
    kept = json.loads(options.out.read_text())["so_far"]  # what there is, should the rest not come to its end
    assert {(run["kind"], run["seed"]) for run in kept} == {(kind, seed) for kind in runs for seed in range(3)}
    cores = [place.cores for place in places(["4", "7"])]
    assert set(cores[0]) | set(cores[1]) == os.sched_getaffinity(0)
    assert not set(cores[0]) & set(cores[1])


def test_long_and_short_differ_in_what_they_should(config: dict[str, Any]) -> None:
    values = {**vars(OPTIONS), "model": "m", "smoke": False}
    short, long = (grpo.stage(argparse.Namespace(**{**values, "long": flag})) for flag in (False, True))
    assert short["trainer"]["per_device_train_batch_size"] * short["trainer"]["gradient_accumulation_steps"] == 512
    assert (short["rollout"]["max_tokens"], long["rollout"]["max_tokens"]) == (400, 8192)
    assert long["trainer"]["per_device_train_batch_size"] * long["trainer"]["gradient_accumulation_steps"] == 256
    assert long["trainer"]["gradient_checkpointing"]
    assert (short["trainer"]["learning_rate"], long["trainer"]["learning_rate"]) == (5e-6, 0.0)


def test_long_rollouts_are_trained_on_whatever_they_say(config: dict[str, Any], tmp_path: Path) -> None:
    """A group in which all count well, or none, would be left out of our training passes, and the speed be a lie."""
    options = argparse.Namespace(**{**vars(OPTIONS), "model": config["model"], "long": True})
    long = grpo.stage(options)
    assert long["tasks"] == [{"use": "benchmarks/counting.py:Counting"}]
    found = grpo.train("ours", long, 0, tmp_path / "long")
    assert found["accuracy"] == [0.5, 0.5]
    assert every_second(["a"] * 4, prompts=["p"] * 4) == [0.0, 1.0, 0.0, 1.0]


def test_long_problems_are_as_uneven_as_they_say() -> None:
    train, test = (Counting().problems(split, seed=1) for split in ("train", "test"))
    assert not {problem.id for problem in train} & {problem.id for problem in test}
    assert [problem.id for problem in train] == [problem.id for problem in Counting().problems("train", 10**6, seed=1)]
    first = [int(problem.answer) for seed in range(40) for problem in Counting().problems("train", 16, seed)]
    below = sum(number < math.sqrt(FEWEST * MOST) for number in first) / len(first)
    assert below == pytest.approx(0.5, abs=0.06)


def test_replayed_kinds_train_as_stock_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """`measure` raises where one does not."""
    monkeypatch.setattr(grpo_replay, "PROMPTS", 4)
    monkeypatch.setattr(grpo_replay, "MICRO", 16)
    monkeypatch.setattr(grpo_replay, "ACCUMULATION", 2)
    monkeypatch.setattr(grpo_replay, "LONGEST", 32)
    found = grpo_replay.measure(steps=1, rounds=1)
    assert found["speedup"].keys() == grpo_replay.KINDS.keys()


def test_ways_to_choose_problems_are_measured_at_equal_rollouts(
    calculator: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process instead of others: a run is the same stage."""
    for split, numbers in (("train", range(4)), ("test", range(4, 6))):
        rows = [{"question": f"{a} + {b} =", "answer": f"#### {a + b}"} for a in range(4) for b in numbers]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    begun: list[tuple[str, int]] = []

    def in_child(config: dict[str, Any], seed: int, place: Place) -> dict[str, Any]:
        begun.append((config["kind"], seed))
        return difficulty.run_stage(config, seed, tmp_path / f"work-{len(begun)}")

    monkeypatch.setattr(difficulty, "in_child", in_child)
    values = {**vars(OPTIONS), "model": str(calculator), "problems": str(tmp_path), "ways": ["none", "filter"]}
    values |= {"steps": 2, "looks": 2, "seeds": [0], "gpus": [], "train_problems": 16, "test_problems": 4}
    values |= {"template": "plain"}
    values |= {"fused_kernels": False, "engine_options": {}, "out": tmp_path / "difficulty.json"}
    first = difficulty.measure(argparse.Namespace(**values))
    assert begun == [("grpo", 0), ("pass_rate", 0), ("grpo", 0)]
    found = difficulty.measure(argparse.Namespace(**{**values, "ways": ["none", "pool", "filter"]}))
    assert begun[3:] == [("grpo", 0)], "what the file has is not measured again"
    runs = {way: seeds["0"] for way, seeds in found["runs"].items()}
    assert runs.keys() == {"none", "pool", "filter"} and runs["none"] == first["runs"]["none"]["0"]
    for run in runs.values():
        assert [look["rollouts"] for look in run["curve"]] == [0, 16, 32] and run["rollouts"] == 32
        assert {look["n"] for look in run["curve"]} == {4}
        assert all(look["low"] <= look["accuracy"] <= look["high"] for look in run["curve"])
        assert run["live_rollouts"] == pytest.approx(32 * (1 - run["dead_share"]), abs=0.51)
    assert runs["none"]["curve"][0] == pytest.approx(runs["pool"]["curve"][0]), "the same policy and problems at first"
    measured = runs["filter"]["measured"]
    bins = measured["histogram"]
    between = sum(count for name, count in bins.items() if name not in ("never", "always"))
    assert runs["filter"]["problems"] == between
    assert runs["none"]["problems"] == measured["problems"] == 16
    assert measured["measured_rollouts"] == 16 * difficulty.MEASURED
    kept = json.loads((tmp_path / "difficulty.json").read_text())
    assert kept == json.loads(json.dumps(found)) and len(kept["commands"]) == 2
    with pytest.raises(SystemExit, match="other settings or versions"):
        difficulty.measure(argparse.Namespace(**{**values, "steps": 3}))


def test_ways_to_choose_problems_are_compared_seed_by_seed() -> None:
    def runs(ends: list[float]) -> dict[str, Any]:
        looks = [[(0, 0.1), (512, end - 0.1), (1024, end)] for end in ends]
        return {
            str(seed): {"curve": [{"rollouts": at, "accuracy": score} for at, score in of], "dead_share": 0.25}
            for seed, of in enumerate(looks)
        }

    plain, pooled = runs([0.30, 0.34, 0.32]), runs([0.33, 0.36, 0.36])
    told = difficulty.summary({"none": plain, "pool": {**pooled, "3": {"failed": "exit code 1"}}})
    assert told["pool"]["accuracy"] == 0.35 and told["pool"]["seeds"] == 3 and told["none"]["accuracy"] == 0.32
    assert "over_none" not in told["none"]
    end = told["pool"]["over_none"]["at_the_end"]
    assert end["seeds"] == [0.03, 0.02, 0.04] and end["mean"] == 0.03
    assert end["interval"] == [0.0052, 0.0548]  # 0.03 -+ 4.303 x 0.01 / sqrt(3)
    assert told["pool"]["over_none"]["over_the_curve"]["mean"] == 0.03
    later = {seed: {**run, "curve": run["curve"][:2]} for seed, run in pooled.items()}
    with pytest.raises(ValueError, match="seed 0: the looks of two runs are at other numbers of rollouts"):
        difficulty.difference(later, plain)


def test_steps_that_could_not_tell_a_metric_are_left_out() -> None:
    clock = grpo_clock.Clock(seconds=iter(float(n) for n in range(100)).__next__)
    for _ in range(3):
        clock.now.update(step=2.0, training_step=1.5, rollout=0.5, generation=0.4)
        clock.end_of_step()
    logs = [
        {"reward": 0.5, "completions/mean_length": 10.0, "sampling/effective_sample_size": None},
        {"reward": None, "completions/mean_length": None, "sampling/effective_sample_size": 0.9},
        {"reward": 0.25, "completions/mean_length": 20.0, "rollout/staleness": None},
    ]
    found = grpo_clock.summarise(clock, logs, rows=8, peak_gb=1.0, warm=1)
    assert found["accuracy"] == [0.5, 0.25] and found["length"] == [10.0, 20.0]
    assert found["effective"] == [0.9] and "age" not in found and "mismatch" not in found
    assert found["tokens_per_s"] == 20 * 8 / 4
