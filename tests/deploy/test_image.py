"""The Dockerfile keeps its promises: pinned, nobody is root, and what it installs with works."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
import ray

from image import Stage, environment, stages

ROOT = Path(__file__).resolve().parents[2]
TARGETS = ("cpu", "gpu")


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest) -> Stage:
    return stages()[request.param]


def copied(stage: Stage) -> list[tuple[str, str]]:
    """(source, place in the image's working directory), in order."""
    pairs = []
    for rest in stage.of("COPY"):
        *sources, to = rest.split()
        for source in sources:
            name = Path(source).name if to.endswith("/") else ""
            pairs.append((source, os.path.normpath(os.path.join(to, name))))
    return pairs


def test_images_are_pinned_by_a_version(target: Stage) -> None:
    name, _, tag = target.image.partition(":")
    assert name == "python"
    assert re.match(rf"{sys.version_info.major}\.\d+\.\d+-", tag), f"{target.image} is not pinned"


def test_nobody_is_root_and_kubernetes_can_tell(target: Stage) -> None:
    users = target.of("USER")
    assert users, "the image runs as root"
    # A name says nothing to runAsNonRoot, which refuses it.
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", users[-1])
    made = " ".join(target.of("RUN"))
    assert f"useradd --uid {users[-1].split(':')[0]} " in made
    assert target.steps[-2][0] == "USER", "a later step may not run as another user"


def test_ray_starts_closed(target: Stage) -> None:
    assert environment(target)["RAY_AUTH_MODE"] == "token"


def test_the_head_misses_a_silent_host_soon(target: Stage) -> None:
    """With names that Ray's servers know: another would be passed over in silence."""
    given = {name: int(v) for name, v in environment(target).items() if "health_check" in name}
    server = Path(ray.__file__).parent / "core" / "src" / "ray" / "gcs" / "gcs_server"
    known = server.read_bytes()
    assert [name for name in given if f"\0{name}\0".encode() not in known] == []
    each = given["RAY_health_check_period_ms"] + given["RAY_health_check_timeout_ms"]
    assert each * given["RAY_health_check_failure_threshold"] <= 15_000


def test_an_image_holds_no_secret_and_nothing_it_was_not_told_to(target: Stage) -> None:
    assert not target.of("ADD")
    assert not [name for name in environment(target) if re.search("TOKEN|SECRET|PASS|_KEY", name)]
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").split("\n")
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    let_in = {rule[1:] for rule in rules if rule.startswith("!")}
    # The one module that is copied before the others lies below platform.
    assert let_in == {source for source, _ in copied(target)} - {"platform/raytag/__init__.py"}


def test_what_is_copied_is_there(target: Stage) -> None:
    for source, place in copied(target):
        assert (ROOT / source).exists(), source
        assert source == place, "jobs find the package, and the sample, by where they lie"


def test_the_targets_differ_in_torch_alone() -> None:
    cpu, gpu = (stages()[name].steps for name in TARGETS)
    assert len(cpu) == len(gpu)
    (differing,) = [(a, b) for a, b in zip(cpu, gpu, strict=True) if a != b]
    on_cpu, on_gpu = (shlex.split(rest) for _, rest in differing)
    index = on_cpu.index("--torch-cpu-index")
    assert on_cpu[:index] + on_cpu[index + 2 :] == on_gpu


def installed(tree: Path, environment: Path, command: str) -> "subprocess.CompletedProcess[str]":
    """The command of a RUN step in ``tree``, into a new environment; without the packages."""
    venv.create(environment, with_pip=True)
    program, *arguments = shlex.split(command)
    assert program == "python"
    return subprocess.run(
        [environment / "bin" / "python", *arguments],
        cwd=tree,
        env={
            **{k: v for k, v in os.environ.items() if not k.startswith("PIP_")},
            "PIP_NO_DEPS": "1",
            "PIP_NO_INDEX": "1",
            "PIP_NO_BUILD_ISOLATION": "0",  # pip's way to say yes: with what is here
            "PYTHONPATH": sysconfig.get_path("purelib"),
        },
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def installing(target: Stage, tmp_path: Path) -> tuple[Path, str]:
    """(the working directory when packages are installed, the command that does it)."""
    tree = tmp_path / "tree"
    step = next(
        i for i, (name, rest) in enumerate(target.steps) if name == "RUN" and "install.py" in rest
    )
    for source, place in copied(Stage("", target.steps[:step])):
        (tree / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / source, tree / place)
    return tree, target.steps[step][1]


def test_installing_needs_only_what_was_copied_before(
    installing: tuple[Path, str], tmp_path: Path
) -> None:
    tree, command = installing
    ran = installed(tree, tmp_path / "venv", command)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    programs = tmp_path / "venv" / "bin"
    assert (programs / "raytag").exists()
    # The code comes in a later layer, over what was there when it was installed.
    shutil.copytree(ROOT / "platform", tree / "platform", dirs_exist_ok=True)
    code = "import raytag.text.spans, raytag.errors; print(raytag.__file__)"
    ran = subprocess.run(
        [programs / "python", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert ran.stdout.strip() == str(tree / "platform" / "raytag" / "__init__.py"), ran.stderr


def test_installing_heeds_the_constraints(installing: tuple[Path, str], tmp_path: Path) -> None:
    tree, command = installing
    (tree / "constraints.txt").write_text("raytag==999\n", encoding="utf-8")
    ran = installed(tree, tmp_path / "venv", command)
    assert ran.returncode != 0
    assert "Cannot install raytag" in ran.stderr
