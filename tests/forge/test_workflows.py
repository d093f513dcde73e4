"""The workflows of the forge: valid, pinned, with few rights, and with steps that run."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from hack.cluster import toolchain
from hack.generate.files import ROOT

FOLDER = ROOT / ".github/workflows"
FILES = sorted(FOLDER.glob("*.yml"))
WRITES = {
    ("release.yml", "build"): {"packages", "id-token", "attestations"},
    ("release.yml", "github"): {"contents"},
    ("release.yml", "pypi"): {"id-token"},
    ("docs.yml", "deploy"): {"pages", "id-token"},
    ("codeql.yml", "analyze"): {"security-events"},
    ("scorecard.yml", "scorecard"): {"security-events", "id-token"},
    ("dependencies.yml", "python"): {"contents", "pull-requests"},
}
"""What a job may write, and nothing else may."""

STUBBED = (
    "make",
    "docker",
    "gh",
    "kubectl",
    "python",
    "pip",
    ".venv/bin/coverage",
    ".venv/bin/pytest",
    ".venv/bin/python",
)
VALUES = {
    "matrix.target": "slow",
    "matrix.python": "3.13",
    "matrix.image": "alpine",
    "github.token": "secret-token",
    "github.actor": "robot",
    "steps.provenance.outputs.bundle-path": "bundle.jsonl",
}


@dataclass(frozen=True)
class Job:
    """A job of a workflow."""

    file: str
    name: str
    workflow: dict[str, Any]
    job: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.file.removesuffix('.yml')}-{self.name}"


def workflow(file: Path) -> dict[str, Any]:
    """A workflow; YAML 1.1 reads the key `on` as true."""
    return {"on" if key is True else key: value for key, value in yaml.safe_load(file.read_text()).items()}


def jobs() -> Iterator[Job]:
    for file in FILES:
        content = workflow(file)
        for name, job in content["jobs"].items():
            yield Job(file.name, name, content, job)


each_job = pytest.mark.parametrize("job", list(jobs()), ids=str)
each_file = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)


def steps(job: Job, key: str) -> list[dict[str, Any]]:
    return [step for step in job.job["steps"] if key in step]


def test_there_is_a_workflow_for_each_purpose() -> None:
    purposes = {
        "lint",
        "unit",
        "e2e",
        "nightly",
        "docs",
        "release",
        "codeql",
        "scorecard",
        "base-images",
        "dependencies",
    }
    assert {file.stem for file in FILES} == purposes


@pytest.mark.slow
def test_workflows_pass_actionlint() -> None:
    done = subprocess.run(
        # Without the linters that it would find on PATH, so that the result is the same everywhere.
        [toolchain.tool(toolchain.ACTIONLINT), "-no-color", "-shellcheck=", "-pyflakes="],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@each_file
def test_actions_are_pinned_by_digest_with_their_version(file: Path) -> None:
    used = re.findall(r"uses: (.+)", file.read_text())
    assert used
    for line in used:
        assert re.fullmatch(r"[\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line), line


def test_an_action_has_one_version_everywhere() -> None:
    used = {line for file in FILES for line in re.findall(r"uses: (.+)", file.read_text())}
    pinned = {re.sub(r"^([\w.-]+/[\w.-]+)[\w/-]*@", r"\1@", line) for line in used}
    assert len(pinned) == len({line.partition("@")[0] for line in pinned})


@each_file
def test_workflow_reads_the_repository_and_nothing_more(file: Path) -> None:
    assert workflow(file)["permissions"] == {"contents": "read"}


@each_job
def test_job_writes_only_what_it_must(job: Job) -> None:
    rights = job.job.get("permissions", {})
    assert {name for name, right in rights.items() if right == "write"} == WRITES.get(
        (job.file, job.name), set()
    )
    assert set(rights.values()) <= {"read", "write"}


@each_job
def test_job_ends_in_time_and_on_a_named_system(job: Job) -> None:
    assert 0 < job.job["timeout-minutes"] <= 360
    assert job.job["runs-on"] == "ubuntu-24.04"


@each_job
def test_checkout_keeps_no_token(job: Job) -> None:
    for step in steps(job, "uses"):
        if step["uses"].startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False


def test_nobody_outside_runs_code_with_rights() -> None:
    triggers = {file.name: set(workflow(file)["on"]) for file in FILES}
    assert not [
        name
        for name, events in triggers.items()
        if events & {"pull_request_target", "workflow_run", "issue_comment"}
    ]
    for job in jobs():
        if job.file == "docs.yml" and job.name == "deploy":
            assert job.job["if"] == "github.event_name == 'push'"
        elif WRITES.get((job.file, job.name), set()) - {"security-events"}:
            assert "pull_request" not in triggers[job.file]


@each_job
def test_scripts_take_no_text_from_outside(job: Job) -> None:
    """An expression in a script would run the text of a branch's or a title's author."""
    for step in steps(job, "run"):
        assert "${{" not in step["run"]


@each_job
def test_make_targets_of_a_job_exist(job: Job) -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    scripts = "\n".join(step["run"] for step in steps(job, "run"))
    named = re.findall(r"(?m)(?:^|\s)make ([a-z0-9-]+)(?=$|\s|')", scripts.replace("install --yes make", ""))
    named += job.job.get("strategy", {}).get("matrix", {}).get("target", [])
    assert set(" ".join(named).split()) - {"git"} <= targets


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder like a checkout after the job's other steps, with stub programs that record their calls."""
    for name in STUBBED:
        program = tmp_path / ("" if "/" in name else "bin") / name
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(
            f'#!/bin/sh\ncase "$*" in *password-stdin*) cat;; esac >>"$STDIN"\necho "{name} $*" >>"$CALLS"\n'
        )
        program.chmod(0o755)
    for folder in ("build/release", "release", ".cluster"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("bundle.jsonl", "release/a-1.whl", "release/workqueue_operator-1.tar.gz"):
        (tmp_path / file).write_text("x")
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    (tmp_path / "examples/base-images").mkdir(parents=True)
    check = tmp_path / "examples/base-images/check.sh"
    check.write_text('#!/bin/sh\necho "check $*" >>"$CALLS"\n')
    check.chmod(0o755)
    return tmp_path


@each_job
def test_scripts_of_a_job_run(job: Job, checkout: Path) -> None:
    """As the forge runs them: bash -e -o pipefail, one after the other, with the environment of job and step."""
    calls = checkout / "calls"
    for step in steps(job, "run"):
        given = {**job.workflow.get("env", {}), **job.job.get("env", {}), **step.get("env", {})}
        environment = {
            "PATH": f"{checkout / 'bin'}:/usr/bin:/bin",
            "HOME": str(checkout),
            "CALLS": str(calls),
            "STDIN": str(checkout / "stdin"),
            "GITHUB_STEP_SUMMARY": str(checkout / "summary"),
            "GITHUB_REPOSITORY": "Workqueue-Dev/workqueue-operator",
            "GITHUB_REPOSITORY_OWNER": "Workqueue-Dev",
            "GITHUB_REF_NAME": "v1.2.3",
            **{name: evaluated(str(value)) for name, value in given.items()},
        }
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
            cwd=checkout,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{step['run']}\n{done.stdout}{done.stderr}"
    seen = calls.read_text() if calls.exists() else ""
    for line in EXPECTED.get((job.file, job.name), []):
        assert line in seen.splitlines()


EXPECTED = {
    ("lint.yml", "lint"): ["make lint"],
    ("unit.yml", "unit"): ["make coverage", ".venv/bin/coverage report --format=markdown"],
    ("e2e.yml", "kind"): ["make demo"],
    ("base-images.yml", "run"): ["make distribution", "check alpine"],
    ("release.yml", "build"): [
        "docker login ghcr.io --username robot --password-stdin",
        "make release PUSH=ghcr.io/workqueue-dev",
        ".venv/bin/python -m hack.release.notes",
    ],
    ("release.yml", "github"): [
        (
            "gh release create v1.2.3 --repo Workqueue-Dev/workqueue-operator --verify-tag --notes-file notes.md "
            "release/a-1.whl release/workqueue_operator-1.tar.gz"
        )
    ],
    ("dependencies.yml", "python"): ["make lock ARGS=--upgrade"],
}


def evaluated(text: str) -> str:
    return re.sub(r"\$\{\{ (.+?) \}\}", lambda found: VALUES[found[1]], text)


def test_token_reaches_docker_on_standard_input_only(checkout: Path) -> None:
    job = next(job for job in jobs() if (job.file, job.name) == ("release.yml", "build"))
    test_scripts_of_a_job_run(job, checkout)
    assert (checkout / "stdin").read_text() == "secret-token"
    assert "secret-token" not in (checkout / "calls").read_text()


def test_dependabot_watches_what_it_can_raise() -> None:
    updates = yaml.safe_load((ROOT / ".github/dependabot.yml").read_text())["updates"]
    folders = {
        (one["package-ecosystem"], folder)
        for one in updates
        for folder in one.get("directories", [one.get("directory")])
    }
    for ecosystem, folder in folders:
        names = {"docker": "*Dockerfile", "gomod": "go.mod", "github-actions": ".github/workflows/*.yml"}
        assert list((ROOT / folder.lstrip("/")).glob(names[ecosystem])), (ecosystem, folder)
    assert {"docker", "gomod", "github-actions"} == {ecosystem for ecosystem, _ in folders}


@pytest.mark.parametrize("name", ["bug.yml", "idea.yml"])
def test_issue_form_is_valid(name: str) -> None:
    form = yaml.safe_load((ROOT / ".github/ISSUE_TEMPLATE" / name).read_text())
    assert {"name", "description", "body"} <= set(form)
    assert len({part["id"] for part in form["body"]}) == len(form["body"])
    assert {part["type"] for part in form["body"]} <= {
        "textarea",
        "input",
        "dropdown",
        "checkboxes",
        "markdown",
    }


@pytest.mark.parametrize(
    "name",
    [
        *(
            "CODE_OF_CONDUCT.md",
            "CONTRIBUTING.md",
            "GOVERNANCE.md",
            "MAINTAINERS.md",
            "ROADMAP.md",
            "ADOPTERS.md",
        ),
        *("SECURITY.md", "LICENSE", "CHANGELOG.md", ".github/CODEOWNERS", ".github/PULL_REQUEST_TEMPLATE.md"),
    ],
)
def test_file_that_a_forge_shows_exists(name: str) -> None:
    assert (ROOT / name).stat().st_size > 100


def test_environment_of_the_tests_is_not_needed() -> None:
    """No script reads a variable that neither the forge nor the workflow sets."""
    for job in jobs():
        for step in steps(job, "run"):
            named = set(re.findall(r"\$\{?([A-Z][A-Z_]+)", step["run"]))
            given = {*job.workflow.get("env", {}), *job.job.get("env", {}), *step.get("env", {})}
            assert {name for name in named - given if not name.startswith("GITHUB_")} <= {"PWD"}, job
