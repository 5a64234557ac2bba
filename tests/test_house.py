"""The house rules: which module may know which, and what an import may do."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "platform"
MODULES = sorted((SOURCE / "raytag").rglob("*.py"))

JOBS_USE = {
    *("errors", "storage", "text", "report", "model", "registry"),
    *("cluster", "placement", "arguments"),
}
BELOW = {
    "errors": set[str](),
    "storage": {"errors"},
    "text": {"errors", "storage"},
    "report": {"errors", "storage", "text"},
    "model": {"errors", "storage", "text"},
    "registry": {"errors", "storage", "text", "report", "model"},
    "train": JOBS_USE,
    "bulk": JOBS_USE,
    "serve": JOBS_USE | {"spare"},
    "arguments": {"errors"},
    "client": {"errors", "text", "registry", "spare"},
    "spare": set(),
    "cluster": {"errors"},
    "placement": {"errors", "cluster"},
    "local": {"errors"},
}
"""Room -> the rooms it may import from, besides itself. What is not here stands at the top."""

USES_RAY = {"cluster", "placement", "train", "bulk", "serve"}
NO_TORCH = {"text", "report", "errors", "storage", "local", "__init__"}


def room(file: Path) -> str:
    """The part of the package a file belongs to: a folder, or a module beside them."""
    return file.relative_to(SOURCE / "raytag").with_suffix("").parts[0]


def imports(file: Path) -> Iterator[str]:
    """Absolute names of all modules a file imports, inside functions too."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            # ``from raytag import storage`` names a module only with its last part.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def rooms_imported(file: Path) -> set[str]:
    parts = [name.split(".") for name in imports(file)]
    return {p[1] for p in parts if p[0] == "raytag" and len(p) > 1 and p[1] != "__version__"}


def packages_imported(file: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(file)}


@pytest.mark.parametrize("file", MODULES, ids=lambda f: str(f.relative_to(SOURCE)))
def test_arrows_point_one_way(file: Path) -> None:
    if room(file) in BELOW:
        upwards = rooms_imported(file) - BELOW[room(file)] - {room(file)}
        assert not upwards, f"{room(file)} may not know of {upwards}"
    packages = packages_imported(file)
    assert "ray" not in packages or room(file) in USES_RAY
    if room(file) in NO_TORCH:
        assert not packages & {"torch", "transformers", "peft", "deepspeed", "bitsandbytes"}
    assert not packages & {"jobs", "tests", "conftest"}


def test_the_rules_see_what_they_are_about() -> None:
    """Guards the guard: every room of the design that exists is ruled, and imports are found."""
    folders = {f.name for f in (SOURCE / "raytag").iterdir() if (f / "__init__.py").exists()}
    assert folders <= BELOW.keys(), "say in BELOW where the new folder stands"
    assert {"text", "model", "train", "report"} <= folders
    assert {"model", "text"} <= rooms_imported(SOURCE / "raytag/train/worker.py")
    assert "storage" in rooms_imported(SOURCE / "raytag/text/formats/jsonl.py")
    assert "ray" in packages_imported(SOURCE / "raytag/train/finetune.py")
    assert not packages_imported(SOURCE / "raytag/errors.py")
    for above, below in BELOW.items():
        assert all(above not in BELOW[other] for other in below), f"{above} is in a circle"


def test_jobs_use_the_package_and_leave_ray_to_it() -> None:
    for file in sorted((ROOT / "jobs").glob("*.py")):
        assert packages_imported(file) & {"raytag"}
        assert "ray" not in packages_imported(file)


def module_name(file: Path) -> str:
    parts = file.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def watched(source: Path, names: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "tests" / "watched_import.py"), str(source), *names],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(source)},
        capture_output=True,
        text=True,
        timeout=200,
    )


def test_importing_any_module_does_nothing(tmp_path: Path) -> None:
    names = [module_name(file) for file in MODULES if file.stem != "__main__"]
    ran = watched(SOURCE, names, tmp_path)
    assert ran.returncode == 0, ran.stdout + ran.stderr[-2000:]


@pytest.mark.parametrize(
    "deed",
    [
        "import os\nHOME = os.environ.get('HOME')",
        "import os\nHOME = os.getenv('HOME')",
        "import os\nos.environ['A'] = 'b'",
        "from pathlib import Path\nTEXT = Path('busy.txt').read_text()",
        "import subprocess\nsubprocess.run(['true'])",
        "import socket\nS = socket.socket()",
        "import threading\nthreading.Thread(target=print).start()",
        "import shutil\nshutil.copy('busy.txt', 'copy.txt')",
        "import tempfile\nFOLDER = tempfile.mkdtemp()",
        "import pandas\nTABLE = pandas.read_csv('busy.txt')",
        "def work():\n    return open('busy.txt').read()\nTEXT = work()",
    ],
)
def test_a_module_that_does_something_is_seen(deed: str, tmp_path: Path) -> None:
    """Guards the guard."""
    busy = tmp_path / "busy.txt"
    busy.write_text("text")
    (tmp_path / "busy.py").write_text(deed.replace("'busy.txt'", repr(str(busy))))
    ran = watched(tmp_path, ["busy"], tmp_path)
    assert ran.returncode == 1, ran.stderr
    assert ran.stdout


def test_words_and_reports_load_no_torch_and_models_no_ray() -> None:
    """By what is loaded in the end: other packages could bring them in."""
    for rooms, unwanted in [(NO_TORCH, ("torch", "ray")), ({"model"}, ("ray",))]:
        names = [module_name(file) for file in MODULES if room(file) in rooms]
        code = f"import sys, {', '.join(names)}\nprint({{*sys.modules}} & {{*{unwanted!r}}})"
        ran = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=200
        )
        assert ran.stdout.endswith("set()\n"), ran.stdout + ran.stderr[-2000:]


def test_the_standard_librarys_platform_is_not_shadowed() -> None:
    assert not (SOURCE / "__init__.py").exists()
    for code in ("import platform; print(platform.machine())", "import uuid, raytag; print(1)"):
        ran = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
        )
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout.strip()
