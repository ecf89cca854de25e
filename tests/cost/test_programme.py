"""DeepSeek's bills from shapes and rates of other runs, against what was published; the command that prints them."""

from __future__ import annotations

import ast
import inspect
import json
import subprocess
import sys
from typing import Any

import pytest
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.cost import deepseek, hardware, models, programme, published
from pipeline.cost.bill import CostError

COMMAND = ["cost", "v3-671b", "--tokens", "14.8T", "--gpus", "2048xH800"]


def invoked(*words: str) -> Any:
    return CliRunner().invoke(app, list(words))


def test_the_bill_of_deepseek_v3() -> None:
    """Table 1 of arXiv 2412.19437: 2,664K + 119K + 5K H800-hours, 5.576 million dollars, in less than two months."""
    told = json.loads(invoked(*COMMAND, "--json").stdout)
    assert told["gpu_hours"] == pytest.approx(2_788_000, rel=0.1)
    assert told["usd"] == pytest.approx(5_576_000, rel=0.1)
    assert told["days"] == pytest.approx(2_788_000 / 2048 / 24, rel=0.1)
    parts = told["parts"]
    assert parts["pretraining"]["gpu_hours"] == pytest.approx(2_664_000, rel=0.1)
    assert parts["pretraining"]["gpu_hours"] / 14.8 == pytest.approx(180_000, rel=0.1)
    assert parts["context_extension"]["low"] < 119_000 < parts["context_extension"]["high"]
    assert sum(part["gpu_hours"] for part in parts.values()) == pytest.approx(told["gpu_hours"], abs=1)
    assert told["low"] < 2_788_000 < told["high"]
    assert 60e9 < told["memory"]["total"] < 64e9


def test_a_trillion_tokens_without_what_belongs_to_the_whole_run() -> None:
    told = json.loads(invoked("cost", "v3-671b", "--tokens", "1T", "--gpus", "2048xH800", "--json").stdout)
    assert list(told["parts"]) == ["pretraining"]
    assert told["gpu_hours"] == pytest.approx(180_000, rel=0.1)
    assert any(line["value"] == "not counted" for line in told["assumptions"])


def test_every_assumption_and_every_published_figure_has_a_source() -> None:
    told = json.loads(invoked(*COMMAND, "--json").stdout)
    assert all(line["source"] and line["value"] for line in told["assumptions"])
    assert all(claim["source"] and claim["published"] for claim in told["published"])
    for word in ("TFLOPS", "fp8", "bubble", "PP16, EP64, ZeRO-1", "$/GPU-hour"):
        assert word in json.dumps(told["assumptions"])


def test_the_rate_is_of_another_run() -> None:
    """Neither V3's hours nor its measured step enters what is planned: they are only read where claims are made."""
    of_the_answer = {name for name in vars(published) if name.startswith("V3_") and "HOURS" in name} | {
        *("V3_PRETRAINING", "V3_TOTAL", "V3_USD", "V3_EXTENSION")
    }
    computing = (deepseek.v3_routes, deepseek.extension, deepseek.bubble, deepseek.v2_cost_saved, programme.bill)
    for function in computing:
        named = {
            node.attr for node in ast.walk(ast.parse(inspect.getsource(function))) if isinstance(node, ast.Attribute)
        }
        assert not named & of_the_answer, function.__name__
    for rate in published.RATES.values():
        assert "2412.19437" not in rate.source and "2505.09343" not in rate.source


def test_routes_by_hand() -> None:
    shape = models.preset("v3-671b")
    bill = programme.bill(shape, hardware.cluster("2048xH800"), 1e12, name="v3-671b")
    thousands = {name: hours / 1e3 for name, hours in bill.routes.items()}
    assert thousands["planned"] == pytest.approx(1e12 / 1412 / 3600 / 1e3, rel=0.002)  # the same run's tokens a second
    assert thousands["an older release of the same"] == pytest.approx(214.2, abs=0.1)
    v2 = 155.31e9 * 1e12 / 172_800 / 3600
    by_hand = 260.65e9 * (1 - 0.835 / 2) * 1e12 / v2 / 3600 / 1e3
    assert thousands["DeepSeek-V2's bill, its FP8 part twice as fast"] == pytest.approx(by_hand, rel=0.002)
    step = 120 * 0.129 + 14 / 3 * 0.129 + 0.29
    floor = step * 2048 / 3600 / (15_360 * 4096) * 1e12 / 1e3
    assert next(v for k, v in thousands.items() if "floor" in k) == pytest.approx(floor)


def test_v2_against_67b() -> None:
    """-93.3 % of the cache exactly, -42.5 % of the cost within the bracket, 5.76x as it was published."""
    words = "cost v2-236b --tokens 8.1T --gpus 1024xH800 --precision bf16 --json"
    told = json.loads(invoked(*words.split()).stdout)
    bill, cache, cost, throughput = told["published"]
    assert (bill["published"], bill["status"]) == ("172.8K", "within 10%")
    assert (cache["published"], cache["status"]) == ("-93.3%", "exact")
    assert cache["ours"].startswith("-93.3% (82.2% fewer")
    assert (cost["status"], throughput["status"]) == ("bracket", "as published")
    low, high, alike = deepseek.v2_cost_saved()
    assert low < 0.425 < high and alike == pytest.approx(0.425, abs=0.02)
    by_hand = 1 - (576 * 60 * 6) / (95 * 2 * 8 * 128 * 16)
    assert by_hand == pytest.approx(0.933, abs=0.0005)
    assert told["parts"]["pretraining"]["gpu_hours"] / 8.1 == pytest.approx(
        172_800, rel=0.1
    )  # published, not used here


def test_what_r1_took_is_an_input() -> None:
    told = json.loads(invoked(*COMMAND, "--json").stdout)
    hours = {claim["what"]: claim for claim in told["published"]}
    assert hours["R1-Zero"]["status"] == hours["R1"]["status"] == "as published"
    low, high = deepseek.r1_zero_explained(models.preset("v3-671b"))
    assert 0.13 < low / 101_000 < 0.16 < 0.25 < high / 101_000 < 0.28


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("v3-671b --tokens 14.8X --gpus 8xH100", "'14.8X' is not a number of tokens: write 14.8T"),
        ("v3-671b --tokens 0 --gpus 8xH100", "'0' is not a number of tokens"),
        ("v3-671b --tokens -3T --gpus 8xH100", "'-3T' is not a number of tokens"),
        ("v3-671b --tokens 1T --gpus 8xH900", "there is no GPU 'H900' here (did you mean 'H800'?)"),
        ("v3-671b --tokens 1T --gpus 0xH100", "'0xH100' is not a number of GPUs: write 8xH100"),
        ("v3-671b --tokens 1T --gpus many", "there is no GPU 'many' here"),
        ("v3-671c --tokens 1T --gpus 8xH100", "(did you mean 'v3-671b'?)"),
        ("nano --tokens 1T --gpus 8xH100", "the preset nano says nothing of its vocabulary"),
        ("v3-671b --tokens 1T --gpus 8xB200", "what an hour of B200 costs is not known here: give --price"),
        ("v3-671b --tokens 1T --gpus 8xA100 --precision fp8", "A100 has no FP8: --precision bf16"),
        ("Qwen/Qwen2.5-7B --tokens 1T --gpus 8xH100 --precision fp8", "no pre-training of a dense model in fp8"),
        ("v3-671b --tokens 1T --gpus 8xH100 --precision fp4", "'fp4' is neither bf16 nor fp8"),
    ],
)
def test_bad_input_is_one_clear_line(words: str, told: str) -> None:
    result = invoked("cost", *words.split())
    assert result.exit_code == 2
    assert told in result.output and result.output.count("\n") == 1


@pytest.mark.parametrize("text", ["14.8T", "14_800B", "14800000M", "14800000000000"])
def test_numbers_of_tokens(text: str) -> None:
    assert programme.tokens_of(text) == 14.8e12
    with pytest.raises(CostError):
        programme.tokens_of(text + "Q")


@pytest.mark.parametrize(
    ("text", "name", "number"),
    [
        *(("8xH100", "H100", 8), ("h200", "H200", 1), ("2 x RTX 4090", "RTX4090", 2), ("4090", "RTX4090", 1)),
        *(("8XB200", "B200", 8), ("A100-80GB", "A100", 1), ("RTX A6000", "A6000", 1), ("3090", "RTX3090", 1)),
    ],
)
def test_gpus_as_people_write_them(text: str, name: str, number: int) -> None:
    found = hardware.cluster(text)
    assert (found.gpu.name, found.count) == (name, number)


@pytest.mark.parametrize(
    ("device", "name"),
    [
        *(("NVIDIA H100 80GB HBM3", "H100"), ("NVIDIA GeForce RTX 4090", "RTX4090"), ("NVIDIA A100-SXM4-40GB", "A100")),
        *(("NVIDIA RTX A6000", "A6000"), ("NVIDIA L40S", "L40S"), ("NVIDIA L4", "L4")),
    ],
)
def test_gpus_as_drivers_call_them(device: str, name: str) -> None:
    assert hardware.named(device).name == name


@pytest.mark.parametrize("device", ["NVIDIA GH200 480GB", "NVIDIA A100X", "Tesla T4"])
def test_a_gpu_whose_name_holds_anothers_is_not_that_one(device: str) -> None:
    with pytest.raises(hardware.HardwareError, match=f"there is no GPU '{device}' here"):
        hardware.named(device)


def test_what_does_not_fit_says_how_many_gpus_would_do() -> None:
    told = " ".join(invoked("cost", "v3-671b", "--tokens", "1T", "--gpus", "8xH800").stdout.split())
    assert "It does not fit: 512 GPUs of this kind are the fewest" in told


def test_it_is_printed_in_eighty_columns() -> None:
    lines = invoked(*COMMAND).stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert any("2.998M" in line for line in lines)


def test_nothing_heavy_is_imported() -> None:
    code = "import sys; from pipeline.cli import app; app(sys.argv[1:], standalone_mode=False);"
    code += "print([name for name in ('torch', 'transformers', 'trl', 'datasets') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code, *COMMAND], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
