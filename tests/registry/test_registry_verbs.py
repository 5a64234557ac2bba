"""The registry from a shell: every verb as a table and as JSON, every mistake in one line."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from registry_cases import write_adapter

from raytag import storage
from raytag.cli import registry as registry_verb
from raytag.cli import run
from raytag.text.formats import write_jsonl
from raytag.text.spans import Example


class Shell:
    """``raytag registry …`` on one registry."""

    def __init__(self, root: str, capsys: pytest.CaptureFixture[str]) -> None:
        self._root = root
        self._capsys = capsys

    def __call__(self, line: str, *more: str) -> str:
        status, out, err = self.status(line, *more)
        assert (status, err) == (0, "")
        return out

    def json(self, line: str, *more: str) -> Any:
        return json.loads(self(line, *more, "--json"))

    def error(self, line: str, *more: str) -> str:
        status, out, err = self.status(line, *more)
        assert (status, out) == (2, "")
        assert err.count("\n") == 1
        return err

    def status(self, line: str, *more: str) -> tuple[int, str, str]:
        self._capsys.readouterr()
        status = run(registry_verb, [*line.split(), *more, "--registry", self._root])
        return status, *self._capsys.readouterr()


@pytest.fixture
def shell(root: str, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(root, capsys)


def test_every_verb_has_a_table_and_json(shell: Shell, root: str, tmp_path: Path) -> None:
    a, b = (
        write_adapter(tmp_path / name, f1, lr=lr)
        for name, f1, lr in (("a", (6, 2), 1e-4), ("b", (8, 1), 2e-4))
    )
    data = tmp_path / "train.jsonl"
    write_jsonl(str(data), [Example("1", "One."), Example("2", "Two.")])
    out = shell(f"publish {a} acme/news --data {data}", "--note", "the\x1b[31m first")
    assert out.startswith("published: acme/news@1\nfiles: ")
    published = shell.json(f"publish {b} acme/news --parent acme/news@1")
    assert (published["number"], published["parent"]) == (2, "acme/news@1")
    shell(f"publish {b} acme/news")
    assert shell("tag acme/news@1 baseline") == "acme/news@1 is tagged baseline\n"
    assert shell.json("tag acme/news@1 old") == {"version": "acme/news@1", "tag": "old"}
    assert shell("promote acme/news@1 production") == "production points to version 1\n"
    moved = shell.json("promote acme/news@2 production --replaces 1")
    assert (moved["version"], moved["replaced"]) == (2, 1)
    assert shell("list acme").splitlines() == [
        "domain  latest  aliases",
        "news    3       production = 2",
    ]
    assert shell.json("list acme")[0]["aliases"] == {"production": 2}
    shell("delete acme/news@3")
    lines = [line.split("  ") for line in shell("list acme/news").splitlines()]
    cells = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    assert cells[0] == ["version", "published", "F1", "points to it", "tags", "note"]
    assert [[row[0], *row[2:]] for row in cells[1:]] == [
        ["3", "deleted"],
        ["2", "0.4500", "production"],
        ["1", "0.4000", "baseline, old", "the␛[31m first"],
    ]
    assert [one["version"]["number"] for one in shell.json("list acme/news --limit 1")] == [3]
    shown = shell("show acme/news@production")
    said = [line.split() for line in shown.splitlines()]
    assert ["parent", "acme/news@1"] in said
    assert ["F1", "LOC", "0.8000"] in said
    assert shell.json("show acme/news@1")["note"] == "the\x1b[31m first"
    compared = shell("compare acme/news@1 acme/news@2").splitlines()
    assert compared[1].split() == ["LOC", "0.6000", "0.8000", "+0.2000"]
    assert compared[-1].split() == ["lr", "0.0001", "0.0002"]
    assert shell.json("compare acme/news@1 acme/news@2")["f1"]["PER"] == [0.2, 0.1]
    assert "no setting differs" in shell("compare acme/news@2 acme/news@2")
    back = shell("rollback acme/news@production")
    assert back == "acme/news@production points to version 1 again\n"
    history = shell("history acme/news@production").splitlines()
    assert [line.split()[0] for line in history] == ["move", "3", "2", "1"]
    assert history[1].split()[2:] == ["rollback", "1", "2"]
    assert shell.json("history acme/news@production")[0]["action"] == "rollback"
    shell("promote acme/news@2 production")
    assert shell.json("rollback acme/news@production")["version"] == 1
    assert shell("verify acme/news@1").startswith("acme/news@1: 3 files, ")
    assert shell.json("verify acme/news@1")["files"] == 3
    assert shell.json("delete acme/news@2") == {"deleted": "acme/news@2"}
    assert shell("gc acme") == "nothing to remove\n"
    assert shell.json("gc acme/news") == []
    half = storage.join(root, "acme", "news", "uploads", "20200101T000000Z-0123456789ab")
    storage.write_bytes(storage.join(half, "file"), b"half")
    assert shell("gc acme").splitlines()[1].split() == ["never", "finished", "1", "4", half]


def test_mistakes_are_one_line(shell: Shell, adapter: str, tmp_path: Path) -> None:
    shell(f"publish {adapter} acme/news")
    assert "there is no acme/news@9; the latest version is 1" in shell.error("show acme/news@9")
    assert "names no domain; write tenant/domain" in shell.error(f"publish {adapter} acme")
    assert "is no tenant name" in shell.error("list ../x")
    assert "has nothing to go back to" in shell.error("rollback acme/news@production")
    assert "name an alias" in shell.error("history acme/news@1")
    assert "is no adapter" in shell.error(f"publish {tmp_path} acme/news")
    assert "must not be negative" in shell.error("gc acme --lease-hours=-1")
    assert "was published without its training texts" in shell.error(
        f"promote acme/news@1 production --if-better {held_out(tmp_path)}"
    )
    assert shell("list nobody") == "nobody has no domains\n"
    assert shell("list acme/nothing") == "acme/nothing has no versions\n"
    assert shell("history acme/news@production") == "acme/news@production was never moved\n"


def test_the_first_promotion_on_merit_says_there_was_none_before(
    shell: Shell, adapter: str, tmp_path: Path
) -> None:
    data = tmp_path / "train.jsonl"
    write_jsonl(str(data), [Example("1", "One.")])
    shell(f"publish {adapter} acme/news --data {data}")
    out = shell(f"promote acme/news@1 production --if-better {held_out(tmp_path)}")
    assert out.splitlines()[1] == "there was none before it to compare it with"
    assert shell("history acme/news@production").splitlines()[1].endswith("none before it")


def held_out(folder: Path) -> Path:
    file = folder / "held_out.jsonl"
    write_jsonl(str(file), [Example("1", "Something else.")])
    return file


def test_a_verb_that_only_reads_records_loads_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from raytag.cli import registry; "
        f"registry(['list', 'acme', '--registry', {str(tmp_path)!r}]); "
        "print({'torch', 'transformers', 'ray', 'numpy'} & {*sys.modules})"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ran.stdout == "acme has no domains\nset()\n", ran.stderr
