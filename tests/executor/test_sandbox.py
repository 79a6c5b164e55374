"""Templates that nobody has read yet: they reach nothing but their values, and end soon."""

from __future__ import annotations

from pathlib import Path

import pytest

from stagger.errors import StaggerError
from stagger.executor.job_script import render
from tests.conftest import Cli, PipelineFiles

RUN = "cycler.__init__.__globals__.os.popen('touch RAN').read()"

ATTACKS = {
    "a global's module": f"{{{{ {RUN} }}}}",
    "an included file": "{% include 'other.j2' %}",
    "an inherited file": "{% extends 'other.j2' %}",
    "an imported file": "{% import 'other.j2' as other %}{{ other }}",
    "a class of a value": "{{ options.__class__.__mro__ }}",
    "a value's method": "{{ options.append('--wrap=id') }}",
    "a function's module": "{{ ''.format.__globals__ }}",
    "a format": "{{ '{0.__class__}'.format(options) }}",
    "a file above": "{% include '../secret' %}",
    "a file elsewhere": "{% include '/etc/passwd' %}",
    "a long loop": "{% for i in range(10**9) %}x{% endfor %}",
    "loops in loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "a long text": "{{ 'x' * 10**10 }}",
    "a wide format": "{{ '%9999999999d' % 1 }}",
    "a text that doubles": "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x=n.x~n.x %}{% endfor %}",
    "a script too long": "{% for i in range(99999) %}{{ 'x' * 99 }}{% endfor %}",
    "a recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "a division": "{{ 1 / 0 }}",
    "an unknown value": "{{ nothing }}",
    "an open brace": "{{",
}


@pytest.mark.parametrize("text", ATTACKS.values(), ids=ATTACKS)
def test_an_attack_is_an_error_that_names_the_template(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "templates").mkdir()
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "templates" / "other.j2").write_text(f"{{{{ {RUN} }}}}")
    template = tmp_path / "templates" / "job.j2"
    template.write_text(text)
    with pytest.raises(StaggerError, match=rf"The job script template {template} cannot be rendered: [^\n]+\.$"):
        render(str(template), options=["--time=1"])
    assert not (tmp_path / "RAN").exists()


def test_a_template_may_include_the_shipped_ones_and_compute(tmp_path: Path) -> None:
    template = tmp_path / "job.j2"
    template.write_text("{% for i in range(3) %}{{ '%02d' % i }}{{ '-' * 2 }}{% endfor %}{{ name | quote | upper }}\n")
    assert render(str(template), name="a b") == "00--01--02--'A B'\n"


def test_a_dry_run_and_a_plan_say_which_modules_they_import(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    template = tmp_path / "job.j2"
    template.write_text(f"{{{{ {RUN} }}}}")
    executor = {"type": "slurm", "partition": "cpu", "template": str(template)}
    file = pipeline_file(steps=("my_steps:swallow",), executor=executor)
    ran = cli("launch", file, "--dry-run", check=2)
    said = f"{file} names the module my_steps: importing it runs its code here"
    assert said in ran.err
    assert "is unsafe" in ran.err
    assert not (tmp_path / "RAN").exists()
    assert said in cli("plan", file, check=0).err
    assert said not in cli("launch", file, "--executor", "local", check=0).err
