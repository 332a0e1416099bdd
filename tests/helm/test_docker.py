"""What can be said of the Dockerfiles without building them."""

from __future__ import annotations

import re
import subprocess
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.helm.variants import ROOT

DOCKERFILES = sorted((ROOT / "helm" / "docker").glob("Dockerfile.*[!e]"))
KNOWN = "ARG CMD COPY ENTRYPOINT ENV FROM RUN USER WORKDIR".split()
BUILDERS = ("g++", "build-essential", "cmake", "uv", "pip install")


@dataclass(frozen=True)
class Step:
    word: str
    rest: str


def _steps(path: Path) -> list[Step]:
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    parts = [line.split(maxsplit=1) for line in joined.splitlines() if line.strip()]
    return [Step(word, rest) for word, rest in parts]


@pytest.fixture(params=DOCKERFILES, ids=lambda path: path.name)
def path(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture
def steps(path: Path) -> list[Step]:
    return _steps(path)


def _final(steps: list[Step]) -> list[Step]:
    last = max(i for i, step in enumerate(steps) if step.word == "FROM")
    return steps[last:]


def test_there_is_one_for_cpus_and_one_for_gpus() -> None:
    assert [path.name for path in DOCKERFILES] == ["Dockerfile.cpu", "Dockerfile.cuda"]


def test_every_line_is_an_instruction_that_a_shell_could_run(steps: list[Step]) -> None:
    assert {step.word for step in steps} <= set(KNOWN)
    for step in steps:
        if step.word == "RUN":
            subprocess.run(["bash", "-n", "-c", step.rest], check=True, timeout=10)


def test_bases_are_pinned(steps: list[Step]) -> None:
    defaults = dict(
        step.rest.split("=", 1) for step in steps if step.word == "ARG" and "=" in step.rest
    )
    assert re.fullmatch(r"python:3\.1[12]\.\d+-slim-\w+", defaults["PYTHON"])
    bases = [step.rest.split()[0] for step in steps if step.word == "FROM"]
    assert bases == ["${PYTHON}"] * 2
    text = "\n".join(step.rest for step in steps)
    tools = re.findall(r"(?<!uv )pip install (?:--\S+ )*(\S+)", text)
    assert tools and all("==" in tool for tool in tools), tools


def test_both_images_have_the_ray_that_the_chart_names(steps: list[Step]) -> None:
    """One Ray cluster runs both, and takes no node of another version."""
    (version,) = [step.rest for step in steps if step.rest.startswith("RAY=")]
    values = yaml.safe_load((ROOT / "helm" / "kvasir" / "values.yaml").read_text())
    assert version == f"RAY={values['ray']['version']}"
    (install,) = [step.rest for step in steps if "--requirements" in step.rest]
    assert install.startswith('echo "ray==${RAY}" > constraints.txt')
    assert "--constraints constraints.txt" in install


def test_a_login_shell_finds_what_is_installed(steps: list[Step]) -> None:
    """Debian's /etc/profile sets PATH anew, and reads /etc/profile.d after that."""
    text = next(step.rest for step in _final(steps) if "/etc/profile.d/" in step.rest)
    written = re.search(r"echo '(.+)' > /etc/profile\.d/\w+\.sh", text)
    assert written is not None
    shell = subprocess.run(
        ["sh", "-c", f'PATH=/usr/bin; {written[1]}; echo "$PATH"'],
        capture_output=True, text=True, check=True, timeout=10,
    )  # fmt: skip
    assert shell.stdout == "/opt/kvasir/bin:/usr/bin\n"


def test_what_is_copied_is_there(path: Path, steps: list[Step]) -> None:
    ignored = path.with_name(path.name + ".dockerignore").read_text().splitlines()
    sent = {line[1:] for line in ignored if line.startswith("!")}
    copied: set[str] = set()
    for step in steps:
        if step.word == "COPY" and not step.rest.startswith("--from="):
            copied |= set(step.rest.split()[:-1])
    assert copied == sent and "*" in ignored
    assert all((ROOT / name).exists() for name in copied)
    packages = {name for name in copied if (ROOT / name).is_dir()}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    found = project["tool"]["setuptools"]["packages"]["find"]["include"]
    assert packages == {name for name in found if "." not in name}


def test_extras_are_the_projects(steps: list[Step]) -> None:
    asked = re.findall(r"--extra (\S+)", "\n".join(step.rest for step in steps))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {"ray", "k8s"} <= set(asked) <= set(project["optional-dependencies"])


def test_it_runs_as_the_charts_user(steps: list[Step]) -> None:
    final = _final(steps)
    (user,) = [step.rest for step in final if step.word == "USER"]
    chart = (ROOT / "helm" / "kvasir" / "templates" / "_pod.tpl").read_text()
    uid = re.search(r"runAsUser: (\d+)", chart)
    assert uid is not None and user == f"{uid[1]}:{uid[1]}"
    after = final[final.index(Step("USER", user)) :]
    assert not [step for step in after if step.word in ("RUN", "COPY")]


def test_the_last_stage_builds_nothing(path: Path, steps: list[Step]) -> None:
    text = "\n".join(step.rest for step in _final(steps))
    assert not [tool for tool in BUILDERS if tool in text]
    # Triton compiles the launchers of its kernels when they are first used.
    assert ("gcc" in text) is (path.name == "Dockerfile.cuda")


def test_layers_are_small(steps: list[Step]) -> None:
    for step in steps:
        if "apt-get install" in step.rest:
            assert "--no-install-recommends" in step.rest
            assert "rm -rf /var/lib/apt/lists/*" in step.rest
        if "pip install" in step.rest and "uv pip" not in step.rest:
            assert "--no-cache-dir" in step.rest
    copies = [step.rest for step in steps if step.word == "COPY"]
    assert copies[0].startswith("pyproject.toml"), "what changes seldom comes first"
