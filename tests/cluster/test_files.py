"""The files of `recipes/cluster`: by the validators of those who read them, and the Slurm script up to `srun`."""

from __future__ import annotations

import importlib
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

FILES = Path(__file__).parents[2] / "recipes" / "cluster"
SCHEMAS = {"kuberay.yml": "rayjob-schema.json", "skypilot.yml": "skypilot-schema.json"}
BIN = Path(sys.executable).parent


def parsed(name: str) -> Any:
    return yaml.safe_load((FILES / name).read_text())


def faults(name: str, manifest: Any) -> list[str]:
    jsonschema = importlib.import_module("jsonschema")  # it comes with Ray
    schema = json.loads((Path(__file__).parent / SCHEMAS[name]).read_text())
    return [error.message for error in jsonschema.Draft202012Validator(schema).iter_errors(manifest)]


@pytest.mark.parametrize("script", sorted(FILES.glob("*.sh")), ids=lambda path: path.name)
def test_shellcheck_has_nothing_to_say(script: Path) -> None:
    checked = subprocess.run([BIN / "shellcheck", script], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_manifest_fits_its_schema(name: str) -> None:
    assert faults(name, parsed(name)) == []


def test_the_schemas_refuse_what_their_readers_refuse() -> None:
    job = parsed("kuberay.yml")
    (worker,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    worker["replica"] = worker.pop("replicas")
    (fault,) = faults("kuberay.yml", job)
    assert "'replica' was unexpected" in fault
    del worker["replica"]
    worker["template"]["spec"]["containers"][0]["volumeMounts"][0]["path"] = "/shared"
    assert "'path' was unexpected" in faults("kuberay.yml", job)[0]
    task = parsed("skypilot.yml")
    task["resources"]["gpus"] = 8
    task["num_nodes"] = "two"
    assert sorted(faults("skypilot.yml", task)) == [
        "'two' is not of type 'integer'",
        "Additional properties are not allowed ('gpus' was unexpected)",
    ]


def test_head_and_workers_are_alike_and_share_runs_and_memory() -> None:
    cluster = parsed("kuberay.yml")["spec"]["rayClusterSpec"]
    head, (workers,) = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    assert head["template"] == workers["template"], "one image: versions do not differ"
    (container,) = head["template"]["spec"]["containers"]
    volumes = {volume["name"] for volume in head["template"]["spec"]["volumes"]}
    assert {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]} == {
        "shared": "/shared",
        "memory": "/dev/shm",
    }
    assert volumes == {"shared", "memory"}


def test_more_hosts_are_one_number() -> None:
    """KubeRay starts `maxReplicas` where `replicas` asks for more, and says so in its own log alone."""
    (workers,) = parsed("kuberay.yml")["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert workers["minReplicas"] == 0 and workers["maxReplicas"] >= 512


@pytest.mark.parametrize("name", SCHEMAS)
def test_two_lines_are_to_edit(name: str) -> None:
    assert sum("# <-" in line for line in (FILES / name).read_text().splitlines()) == 2


def submitted(folder: Path, *arguments: str, without: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    """Run slurm.sh as a job of two hosts, up to `srun`, which prints what it is given."""
    tools = {
        "scontrol": '[ "$*" = "show hostnames n[1-2]" ] && printf "n1\\n127.0.0.1\\n"',
        "srun": 'printf "%s\\n" "$@"; echo "timeout=$RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT bind=$SLURM_CPU_BIND"',
        "ray": "exit 1",
        "zero2r1": "exit 1",
    }
    (folder / "bin").mkdir()
    for name, script in tools.items():
        if name != without:
            (folder / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
            (folder / "bin" / name).chmod(0o755)
    for name in ("python", "bash", "tail"):
        (folder / "bin" / name).symlink_to(sys.executable if name == "python" else str(shutil.which(name)))
    slurm = {"SLURM_JOB_ID": "123456", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "n[1-2]"}
    env = {"PATH": str(folder / "bin"), "SLURM_SUBMIT_DIR": str(folder), **slurm, **variables}
    command = ["bash", str(FILES / "slurm.sh"), *arguments]
    return subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True)


def test_slurm_starts_ray_on_every_host_and_the_recipe_on_the_first(tmp_path: Path) -> None:
    done = submitted(tmp_path, "my recipe.yaml", "--jobs", "2")
    assert done.returncode == 0, done.stderr
    _, *words, timeout = done.stdout.splitlines()
    asked, ours = words[: words.index("--")], words[words.index("--") + 1 :]
    assert asked[:4] == ["--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--kill-on-bad-exit=1"]
    assert asked[4:] == ["ray", "symmetric-run", "--address", "127.0.0.1:23456", "--min-nodes", "2"]
    runs = str(tmp_path / "runs")
    assert ours == ["zero2r1", "run", "my recipe.yaml", "--jobs", "2", "--runs", runs, "--cluster", "auto"]
    assert timeout == "timeout=300 bind=none", "a task may use all cores of its host"
    ray = importlib.import_module("ray.scripts.symmetric_run")
    context = ray.symmetric_run.make_context("ray", [*asked[6:], "--", *ours])
    assert context.params["address"] == "127.0.0.1:23456" and context.params["min_nodes"] == 2


def test_slurm_leaves_a_port_that_is_taken_alone(tmp_path: Path) -> None:
    """By another job of this host: Ray would not start, and the job would end as if it had run."""
    with socket.create_server(("127.0.0.1", 0)) as any_port:
        port = 20000 + any_port.getsockname()[1] % 10000
    with socket.create_server(("127.0.0.1", port)):
        done = submitted(tmp_path, "r.yaml", SLURM_JOB_ID=str(port))
    assert done.returncode == 0, done.stderr
    words = done.stdout.splitlines()
    address, given = words[words.index("--address") + 1].split(":")
    assert address == "127.0.0.1" and port < int(given) < port + 100


@pytest.mark.parametrize(
    ("arguments", "without", "variables", "said"),
    [
        ((), "", {}, "slurm.sh: which recipe? sbatch slurm.sh recipe.yaml"),
        (("r.yaml",), "", {"SLURM_JOB_ID": ""}, "slurm.sh: this runs under Slurm: sbatch slurm.sh r.yaml"),
        (
            ("r.yaml", "--runs", "/x"),
            "",
            {},
            "slurm.sh: another folder of runs is named by the variable: RUNS=FOLDER sbatch slurm.sh r.yaml",
        ),
        (("r.yaml", "--cluster=auto"), "", {}, "slurm.sh: this starts a cluster of its own: leave out --cluster=auto"),
        (("r.yaml",), "ray", {}, "slurm.sh: there is no ray here: activate the environment before sbatch"),
    ],
)
def test_slurm_says_what_is_missing(
    arguments: tuple[str, ...], without: str, variables: dict[str, str], said: str, tmp_path: Path
) -> None:
    done = submitted(tmp_path, *arguments, without=without, **variables)
    assert (done.returncode, done.stdout, done.stderr.strip()) == (2, "", said)


def test_every_command_of_ours_in_the_files_is_one_that_we_have() -> None:
    from typer.main import get_command

    from pipeline.cli import app

    lines = [parsed("kuberay.yml")["spec"]["entrypoint"], parsed("skypilot.yml")["run"].splitlines()[5].strip()]
    lines.append(" ".join((FILES / "slurm.sh").read_text().splitlines()[-1:]).strip())
    for line in lines:
        words = shlex.split(line.replace('"$(echo "$SKYPILOT_NODE_IPS" | head -n 1):6379"', "n1:6379"))
        assert words[:2] == ["zero2r1", "run"], line
        command = get_command(app).commands["run"]  # type: ignore[attr-defined]
        context = command.make_context(
            "run", [word.replace("$@", "r.yaml") for word in words[2:]], resilient_parsing=True
        )
        assert context.params["cluster"] in ("auto", "n1:6379")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "join.sh: sh join.sh RUN STAGE ACCELERATE_CONFIG RANK"),
        (("runs/r", "base", "none.yaml", "1"), "join.sh: there is no accelerate config none.yaml"),
        (("runs/r", "base", "hosts.yaml", "2"), "join.sh: RANK 2 is too many: hosts.yaml has num_machines: 2"),
        (("runs/r", "base", "hosts.yaml", "0"), "join.sh: RANK is 1 on the second host, 2 on the third; "),
    ],
)
def test_join_says_what_is_wrong(arguments: tuple[str, ...], said: str, tmp_path: Path) -> None:
    (tmp_path / "hosts.yaml").write_text("num_processes: 16\nnum_machines: 2  # of eight GPUs\n")
    command = ["sh", str(FILES / "join.sh"), *arguments]
    done = subprocess.run(command, cwd=tmp_path, env=dict(os.environ), capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith(said)


def test_join_ends_on_a_host_that_differs(tmp_path: Path) -> None:
    (tmp_path / "hosts.yaml").touch()
    (tmp_path / "python").write_text(
        '#!/bin/sh\necho "n2: torch is 1, and on the first host 2: make them alike" >&2\nexit 78\n'
    )
    (tmp_path / "python").chmod(0o755)
    (tmp_path / "r" / "scratch" / "zero-0a1b").mkdir(parents=True)
    (tmp_path / "r" / "scratch" / "zero-0a1b" / "job.json").touch()
    command = ["sh", str(FILES / "join.sh"), "r", "zero", "hosts.yaml", "1"]
    env = {**os.environ, "PYTHON": str(tmp_path / "python")}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "n2: torch is 1, and on the first host 2: make them alike",
        "join.sh: mend this, and give the same command: the first host waits for this one",
    ]


def test_join_takes_part_in_its_stage_alone_and_ends_with_it(tmp_path: Path) -> None:
    """Another stage's name begins with it, and folders have names that shells and patterns stumble over."""
    run = tmp_path / "my [runs]" / "r 1"
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nfor word; do echo "$word" >>"{tmp_path}/told"; done\n')
    python.chmod(0o755)
    (tmp_path / "hosts.yaml").touch()
    for number, name in enumerate(("zero-0a1b", "zero-two-0a1c", "zero-abc-0a1d")):
        job = run / "scratch" / name / "job.json"
        job.parent.mkdir(parents=True)
        job.touch()
        os.utime(job, (number, number))
    command = ["sh", str(FILES / "join.sh"), str(run), "zero", "hosts.yaml", "2"]
    env = {**os.environ, "PYTHON": str(python)}
    with subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True) as joined:
        assert joined.stdout is not None
        assert joined.stdout.readline() == f"join.sh: host 2 takes part in {run}/scratch/zero-0a1b\n"
        manifest = run / "stages" / "zero" / "0a1b" / "manifest.json"
        manifest.parent.mkdir(parents=True)
        manifest.touch()
        assert joined.stdout.read() == f"join.sh: {manifest.parent} is published\n"
    assert joined.returncode == 0
    words = (tmp_path / "told").read_text().splitlines()
    assert words[2] == f"{run}/scratch/zero-0a1b" and f"{run}/scratch/zero-0a1b/job.json" in words
