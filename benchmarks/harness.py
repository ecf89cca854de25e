"""Our evaluation beside that of lm-evaluation-harness: GSM8K's test problems, one checkpoint, greedily.

    python -m benchmarks.harness --model models/r1 --problems data/gsm8k --out benchmarks/results/harness-h200.json
    python -m benchmarks.harness --smoke --out smoke.json              # a tiny model and six problems, on a CPU

Three ways to the same number, each in a process of its own, all with the prompt of our task gsm8k (template `boxed`):

    ours       a stage `evaluate` with `tasks: [gsm8k/test]`: our prompt, engine and verifier
    judged     the same stage with `harness:`: our engine, the harness's judge
    foreign    the harness by itself: its rendering of the prompt, its engine (vLLM, or transformers), its judge

The harness's task is its own `gsm8k_cot_zeroshot`, whose judge takes the last number of an answer, with our prompt in
place of its own. `agreement` counts what is the same problem by problem: the prompts' text, the answers' text, and the
verdicts on answers that are the same. `told` shows answers on which the judges differ. `agrees` says whether the
foreign score lies within our 95 % interval. Needs the extra `harness`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from benchmarks.children import Found, in_child, leave, options
from pipeline.prompts.templates import prompt_template
from pipeline.schema import extras

TASK, TEMPLATE = "gsm8k_boxed", "boxed"
ORIGINAL = Path("tasks", "gsm8k", "gsm8k-cot-zeroshot.yaml")
"""The harness's own task, in its package; filters and metric are taken from there."""
LENIENT = "flexible-extract"
"""Its filter that takes the last number of an answer."""
WAYS = ("ours", "judged", "foreign")
PARTS = ("train", "test")
"""Files of GSM8K; the harness's task names both."""
MOST_TOLD = 20
CONTEXT = 4096
"""Tokens that vLLM makes room for; prompts of GSM8K have 300 at most."""


def task_file(folder: Path, problems: Path, tokens: int) -> None:
    """The harness's task with our prompt, on local files."""
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or not spec.submodule_search_locations:
        sys.exit(f"needs the package lm_eval: {extras.install('lm-eval')}")
    files = {split: str(problems / f"{split}.jsonl") for split in PARTS}
    task = {
        "include": str(Path(spec.submodule_search_locations[0]) / ORIGINAL),
        "task": TASK,
        "tag": [],
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": files},
        "doc_to_text": prompt_template(TEMPLATE)("{{question}}")[-1]["content"],
        "generation_kwargs": {"until": [], "do_sample": False, "max_gen_toks": tokens},
    }
    (folder / f"{TASK}.yaml").write_text(yaml.safe_dump(task, sort_keys=False, width=1000), encoding="utf-8")


def child(text: str) -> None:
    """One of the ways; leaves `entry` (the scores), and `answers`: what was asked, said and found, by problem."""
    job = json.loads(text)
    folder = Path(job["folder"])
    task_file(folder, Path(job["problems"]), job["max_tokens"])
    leave(folder, foreign(job, folder) if job["way"] == "foreign" else ours(job, folder))


def ours(job: Mapping[str, Any], folder: Path) -> Found:
    """A stage `evaluate`, with our verifier or the harness's judge."""
    from transformers import AutoTokenizer

    from pipeline.prompts.rendering import Renderer
    from pipeline.stages.evaluate import evaluate_model

    rollout = {"max_tokens": job["max_tokens"], "temperature": 0.0, "top_p": 1.0, "engine": job["engine"]}
    rollout |= {"gpu_memory": 0.85} if job["engine"] == "vllm" else {}
    gsm8k = {"use": "gsm8k", "split": "test", "options": {"path": job["problems"], "template": TEMPLATE}}
    what = {"harness": [TASK], "harness_folder": str(folder)} if job["way"] == "judged" else {}
    tasks = [] if what else [gsm8k]
    metrics = evaluate_model(job["model"], tasks, folder, samples=1, problems=job["limit"], rollout=rollout, **what)
    ((entry,),) = (tuple(scores.values()) for scores in metrics["scores"].values())
    renderer = Renderer(AutoTokenizer.from_pretrained(job["model"]))
    answers = {}
    for line in (folder / "output" / "samples.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        question = (
            row["question"] if not what else row["question"].removesuffix(prompt_template(TEMPLATE)("")[-1]["content"])
        )
        (prompt,) = renderer.prompts([prompt_template(TEMPLATE)(question)])
        said = row["completion"].removesuffix(renderer.tokenizer.eos_token).strip()
        answers[question] = [prompt.text, said, row["status"] == "correct", row["extracted"]]
    return {"entry": entry, "answers": answers}


def foreign(job: Mapping[str, Any], folder: Path) -> Found:
    """The harness by itself."""
    import torch
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    from pipeline.sampling.scores import interval

    vllm = {"dtype": "bfloat16", "gpu_memory_utilization": 0.85, "max_model_len": CONTEXT}
    results = simple_evaluate(
        model="vllm" if job["engine"] == "vllm" else "hf",
        model_args={"pretrained": job["model"], **(vllm if job["engine"] == "vllm" else {})},
        tasks=[TASK],
        device=None if torch.cuda.is_available() else "cpu",
        batch_size="auto" if job["engine"] == "vllm" else 8,
        apply_chat_template=True,
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        limit=job["limit"],
        bootstrap_iters=0,
    )
    found = [sample for sample in results["samples"][TASK] if sample["filter"] == LENIENT]
    scores = [float(sample["exact_match"]) for sample in found]
    low, high = interval(scores, 1)
    answers = {
        sample["doc"]["question"]: [
            sample["arguments"]["gen_args_0"]["arg_0"]
            if isinstance(sample["arguments"], dict)
            else sample["arguments"][0][0],
            sample["resps"][0][0].strip(),
            bool(sample["exact_match"] == 1),
            sample["filtered_resps"][0],
        ]
        for sample in found
    }
    return {
        "entry": {"n": len(scores), "pass@1": sum(scores) / len(scores), "low": low, "high": high},
        "answers": answers,
    }


def agreement(one: Mapping[str, Sequence[Any]], other: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """What two ways have in common, problem by problem; each has (prompt, answer, right, extracted) by question."""
    both = [(question, one[question], other[question]) for question in one if question in other]
    same = [(question, a, b) for question, a, b in both if a[1] == b[1]]
    differing = [(question, a, b) for question, a, b in same if a[2] != b[2]]
    return {
        "problems": len(both),
        "same_prompt": sum(a[0] == b[0] for _, a, b in both),
        "same_answer": len(same),
        "same_verdict_on_same_answer": len(same) - len(differing),
        "same_verdict": sum(a[2] == b[2] for _, a, b in both),
        "told": [
            {"question": question, "answer": a[1], "right": [a[2], b[2]], "extracted": [a[3], b[3]]}
            for question, a, b in differing[:MOST_TOLD]
        ],
    }


def compare(found: Mapping[str, Found]) -> Found:
    """The three scores, and how far they agree."""
    if failed := {way: result["failed"] for way, result in found.items() if "failed" in result}:
        return {"failed": failed}
    ours, theirs = found["ours"]["entry"], found["foreign"]["entry"]
    return {
        **{way: result["entry"] for way, result in found.items()},
        "agrees": ours["low"] <= theirs["pass@1"] <= ours["high"],
        "agreement": {way: agreement(found["ours"]["answers"], found[way]["answers"]) for way in ("judged", "foreign")},
    }


def main() -> None:
    """Parse the command line, compare, write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of the checkpoint")
    parser.add_argument("--problems", type=Path, help="folder with GSM8K's train.jsonl and test.jsonl")
    parser.add_argument("--max-tokens", type=int, default=512)
    parser.add_argument("--limit", type=int, help="the first problems alone, as the files have them")
    parser.add_argument("--engine", choices=("vllm", "transformers"), default="vllm")
    parser.add_argument("--smoke", action="store_true", help="a tiny model, made here")
    asked = options(parser, child)
    if not asked.smoke and not (asked.model and asked.problems):
        parser.error("give --model and --problems, or --smoke")
    if not asked.smoke:
        for file in (Path(asked.model) / "config.json", *(asked.problems / f"{part}.jsonl" for part in PARTS)):
            if not file.is_file():
                parser.error(f"there is no {file}")
    if importlib.util.find_spec("lm_eval") is None:
        parser.error(f"needs the package lm_eval: {extras.install('lm-eval')}")
    with tempfile.TemporaryDirectory() as folder:
        model, problems = asked.model, asked.problems
        if asked.smoke:
            from benchmarks import r1_rehearsal

            r1_rehearsal.problems(Path(folder))
            r1_rehearsal.model(Path(folder) / "model")
            model, problems = str(Path(folder) / "model"), Path(folder) / "gsm8k"
        job = {
            "model": str(Path(model).resolve()),
            "problems": str(problems.resolve()),
            "max_tokens": 48 if asked.smoke else asked.max_tokens,
            "engine": "transformers" if asked.smoke else asked.engine,
            "limit": asked.limit,
        }
        found = compare({way: in_child("benchmarks.harness", {**job, "way": way}, {}) for way in WAYS})
    settings = {"model": Path(model).name, **{key: job[key] for key in ("max_tokens", "engine", "limit")}}
    told = {
        **found,
        "settings": settings,
        "versions": {name: version(name) for name in ("lm-eval", "transformers", "torch")},
    }
    text = json.dumps(told, indent=1, ensure_ascii=False)
    print(text)
    if asked.out is not None:
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        asked.out.write_text(text + "\n", encoding="utf-8")
    sys.exit("failed" in found)


if __name__ == "__main__":
    main()
