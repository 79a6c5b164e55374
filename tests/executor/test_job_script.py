"""Job scripts: the whole text, and values that try to inject code."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from stagger.errors import StaggerError
from stagger.executor.job_script import ScriptContext, array_script, finalize_script
from stagger.spec.executors import EnvSpec, SlurmSpec
from tests.conftest import DATA, Bucket, Cli, PipelineFiles

GOLDEN = DATA / "array.sbatch"


def context(**spec: Any) -> ScriptContext:
    return ScriptContext(
        spec=SlurmSpec(type="slurm", **spec),
        run_dir="/lustre/my runs/100%",
        stage="stage",
        number=2,
        cwd="/home/user",
        log_dir="/lustre/my runs/100%/launches/2/slurm",
        settings="/lustre/my runs/100%/launches/2/settings.json",
    )


def render(ranks: list[list[int]], **spec: Any) -> str:
    return array_script(context(**spec), "stage-0123", ranks, 100, 180)


def test_the_whole_script_is_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """A golden file shows each change of the template in review, line by line."""
    monkeypatch.setattr("sys.executable", "/opt/python/bin/python")
    monkeypatch.setattr(
        "stagger.executor.job_script.task_arguments", lambda: ["-I", "-S", "-c", "BOOT", "stagger.task"]
    )
    text = render(
        [[0, 1], [2, 3], [4]],
        partition="cpu",
        time="1-12:00:00",
        cpus_per_task=2,
        mem_per_cpu_gb=1.5,
        gpus_per_task=1,
        qos="high",
        account="me",
        env=EnvSpec(modules=("gcc/12",), conda="my env", setup=("ulimit -n 4096",)),
        sbatch={"constraint": "a100&nvme", "exclusive": True, "requeue": False},
    )
    assert text == GOLDEN.read_text()


def run_ranks(text: str, index: int) -> str:
    """The ranks that the script's own lines compute for an array index."""
    lines = text.partition("cd /home/user\n")[2].partition("exec ")[0]
    code = f"SLURM_ARRAY_TASK_ID={index}\n{lines}\necho $ranks"
    return subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_each_index_knows_its_ranks() -> None:
    assert [run_ranks(render([[5], [6], [7]]), i) for i in range(3)] == ["5", "6", "7"]
    assert [run_ranks(render([[5, 6], [7, 8], [9]]), i) for i in range(3)] == ["5-6", "7-8", "9-9"]
    assert [run_ranks(render([[0, 3], [4, 9], [20]]), i) for i in range(3)] == ["0,3", "4,9", "20"]
    assert run_ranks(render([[7]]), 0) == "7"


@pytest.mark.parametrize("value", ["a\nb", "a\n#SBATCH --wrap=evil", "a\rb", "a\tb"])
def test_line_breaks_in_options_are_refused(value: str) -> None:
    with pytest.raises(StaggerError, match="line break or control character"):
        render([[0]], account=value)
    with pytest.raises(StaggerError, match="line break or control character"):
        render([[0]], sbatch={"comment": value})


def test_values_are_quoted() -> None:
    evil = '\'; touch /tmp/evil; $(reboot) `x` "y" #'
    text = render([[0]], account=evil, env=EnvSpec(modules=(evil,), conda=evil))
    bare = [line for line in text.splitlines() if "touch /tmp" in line]
    assert len(bare) == 3
    code = "\n".join(f"printf '%s\\n' {line.partition('module load ')[2]}" for line in bare if "module load" in line)
    assert subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True).stdout == evil + "\n"
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0


def test_an_own_template_can_use_everything(tmp_path: Path) -> None:
    own = tmp_path / "own.j2"
    own.write_text(
        "#!/bin/bash\n{% for option in options %}\n#SBATCH {{ option }}\n{% endfor %}\n{{ settings | quote }}\n"
    )
    text = render([[0]], template=str(own))
    assert text.startswith("#!/bin/bash\n#SBATCH --job-name=stage-0123\n")
    own.write_text("{% include 'array.sbatch.j2' %}\n# mine\n")
    assert "stagger.task" in render([[0]], template=str(own))


def test_a_site_decides_where_jobs_start_and_adds_its_own_lines(tmp_path: Path) -> None:
    lines = ("#BB create_persistent name=data capacity=1TB", "#SBATCH --site-option='a b'", "#DW jobdw  capacity=1GB")
    text = render([[0]], chdir="/scratch/my jobs", directives=lines)
    head = text.partition("\n# Stage")[0].splitlines()
    assert "#SBATCH --chdir='/scratch/my jobs'" in head
    assert tuple(line for line in head if line)[-3:] == lines
    assert text.index("#DW") < text.index("STAGGER_SCRIPT_STARTED")
    end = finalize_script(context(chdir="/scratch/my jobs", directives=lines), "stage-end", ["11"])
    assert "#SBATCH --chdir='/scratch/my jobs'" in end
    assert "#BB" not in end
    own = tmp_path / "own.j2"
    own.write_text("#!/bin/bash\n{% include 'start.sh.j2' %}")
    with pytest.raises(StaggerError, match=r"own.j2 leaves out executor.directives \(#BB create_persistent"):
        render([[0]], template=str(own), directives=lines)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("touch /tmp/evil", "is no directive: it must begin with #"),
        ("#!/bin/sh", "is no directive"),
        ("#BB a\ntouch /tmp/evil", "line break or control character"),
        ("#SBATCH --array=0-9", "'array' is set by stagger itself; the throttle is `workers`"),
        ("#SBATCH --comment=a --out=/tmp/x", "'output' is set by stagger itself; set `log_dir`"),
        ("#SBATCH --chdir /tmp", "set `chdir`"),
        ("#SBATCH -J name", "write -J by its long name"),
        ("#SBATCH hetjob", "the jobs of an array cannot have several components"),
    ],
)
def test_directives_that_are_none_or_move_the_job_are_refused(line: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        render([[0]], directives=(line,))


@pytest.mark.parametrize("prefix", ["-x", "a b", "a;b", "p%j", "x" * 101])
def test_a_prefix_of_job_names_is_a_name(prefix: str) -> None:
    with pytest.raises(ValueError, match="name_prefix"):
        render([[0]], name_prefix=prefix)


def test_all_jobs_names_begin_with_the_prefix(cli: Cli, pipeline_file: PipelineFiles) -> None:
    file = pipeline_file(executor={"type": "slurm", "name_prefix": "p123_"})
    (stage,) = cli("launch", file, "--dry-run", "--json", check=0).json["stages"]
    assert re.search(r"^#SBATCH --job-name=p123_run-[0-9a-f]{12}$", stage["arrays"][0]["script"], re.MULTILINE)


@pytest.mark.parametrize(
    ("text", "message"), [("{{ nonsense }}", "'nonsense' is undefined"), ("{% for %}", "cannot be rendered")]
)
def test_a_wrong_template_is_said(tmp_path: Path, text: str, message: str) -> None:
    own = tmp_path / "own.j2"
    own.write_text(text)
    with pytest.raises(StaggerError, match=message):
        render([[0]], template=str(own))
    with pytest.raises(StaggerError, match="no job script template"):
        render([[0]], template=str(tmp_path / "nothing.j2"))


def test_the_end_of_a_stage_waits_for_all_its_arrays() -> None:
    text = finalize_script(context(partition="cpu"), "stage-end", ["11", "12"])
    assert "#SBATCH --dependency=afterany:11:12" in text
    assert "settings='/lustre/my runs/100%/launches/2/settings.json'" in text
    assert "stagger.launch.finalize '/lustre/my runs/100%' stage \"$settings\"" in text


@pytest.mark.parametrize("log_dir", [None, "logs"])
def test_runs_on_s3_that_share_a_folder_for_logs_have_settings_of_their_own(
    cli: Cli, bucket: Bucket, pipeline_file: PipelineFiles, tmp_path: Path, log_dir: str | None
) -> None:
    """Queued jobs of one run must never start with the settings of another that was launched after it."""
    cli.env.update(bucket.env)
    executor = {"type": "slurm", "partition": "cpu", **({"log_dir": str(tmp_path / log_dir)} if log_dir else {})}
    paths = set()
    for run in ("one", "two"):
        file = pipeline_file("same", executor=executor, run_dir=f"{bucket.url}/{run}")
        (stage,) = cli("launch", file, "--dry-run", "--json", check=0).json["stages"]
        paths |= set(re.findall(r"stagger\.task (\S+)", stage["arrays"][0]["script"]))
    assert len(paths) == 2
