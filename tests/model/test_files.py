"""A model's files on an object store: one copy a host, whole, of what is there now, or none."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tiny import checkpoint

from raytag import storage
from raytag.errors import ModelError, ResourceError, StorageError
from raytag.model import files
from raytag.model.adapter import AdapterCard, base_of
from raytag.model.base import find_base, load_model
from raytag.model.files import find_model, fingerprint, revision_of

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("local") / "base")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for copies, of this test alone."""
    monkeypatch.setenv("RAYTAG_MODELS", str(tmp_path / "models"))
    return tmp_path / "models"


@pytest.fixture
def base(s3: "S3Client", local: Path, cache: Path) -> str:
    """The local base on S3, with what a download does not need, at an address of this test's."""
    s3.create_bucket(Bucket="bases")
    uri = f"s3://bases/{cache.parent.name}/llama"
    storage.upload_folder(local, uri)
    storage.write_bytes(f"{uri}/pytorch_model.bin", b"pickled")
    storage.write_bytes(f"{uri}/original/{WEIGHTS}", b"another")
    return uri


def python(code: str, *arguments: str) -> "subprocess.Popen[str]":
    """A process that has made its S3 client once it says so, and then waits for a line."""
    start = "import sys\nfrom raytag import storage\nfrom raytag.model.files import *\n"
    start += "storage.is_folder('s3://bases')\n"
    return subprocess.Popen(
        [sys.executable, "-c", f"{start}print('ready', flush=True)\ninput()\n{code}", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def started(processes: "list[subprocess.Popen[str]]") -> None:
    """Lets all of them go at once."""
    for process in processes:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()


def test_processes_that_start_together_make_one_download(
    base: str, local: Path, given: Callable[[str], int]
) -> None:
    racing = [python("print(find_model(sys.argv[1]).path)", base) for _ in range(4)]
    started(racing)
    paths = {process.communicate(timeout=60)[0] for process in racing}
    assert len(paths) == 1
    assert given(f"{base}/{WEIGHTS}") == 1
    assert fingerprint(Path(paths.pop().strip())) == fingerprint(local)


def test_a_copy_is_the_base_it_was_made_of(
    base: str, local: Path, cache: Path, given: Callable[[str], int]
) -> None:
    small = find_base(base, weights=False)
    assert small.config.model_type == find_base(str(local)).config.model_type
    assert given(f"{base}/{WEIGHTS}") == 0
    whole = find_base(base, small.revision)
    assert whole.revision == small.revision == revision_of(base)
    assert whole.fingerprint() == find_base(str(local)).fingerprint()
    assert find_base(base).path == whole.path
    assert given(f"{base}/{WEIGHTS}") == 1
    load_model(whole, "generate", ())
    assert {file.name for file in whole.path.iterdir()} == {
        *(file.name for file in local.iterdir() if file.name != "README.md"),
        "in-use",
    }
    # Files at another address with the same content are the same model.
    storage.upload_folder(local, f"{base}-again")
    assert find_model(f"{base}-again").path == whole.path
    assert {entry.name for entry in cache.iterdir()} == {
        *(str(whole.revision), f"{whole.revision}-small", "lock")
    }
    assert find_base(local.as_uri()).path == find_base(str(local)).path


def test_a_card_names_a_base_and_the_revision_is_of_that_one(base: str, local: Path) -> None:
    card = AdapterCard(
        head="generate",
        labels=("PER",),
        base=base,
        revision=revision_of(base),
        base_fingerprint=fingerprint(local),
        load_in="fp32",
        window=100,
    )
    assert base_of(card).fingerprint() == card.base_fingerprint
    assert base_of(card, str(local)).path == local


def test_a_download_that_was_killed_leaves_nothing_to_be_taken_for_a_model(
    base: str, local: Path, cache: Path, given: Callable[[str], int]
) -> None:
    code = """
import os, signal
def kill(**_):
    if len(list(storage.local_path(sys.argv[2]).glob("*/*.json"))) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
storage._s3().meta.events.register("before-send.s3.GetObject", kill)
find_model(sys.argv[1])
"""
    killed = python(code, base, str(cache))
    started([killed])
    killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert {entry.name for entry in cache.iterdir()} == {"lock", "unfinished"}
    assert fingerprint(find_model(base).path) == fingerprint(local)
    assert not (cache / "unfinished").exists()


def test_what_is_put_in_a_bases_place_is_another_base(base: str, local: Path, cache: Path) -> None:
    before = find_model(base)
    other = checkpoint(cache.parent / "other", seed=7)
    storage.upload_folder(other, base)
    after = find_model(base)
    assert fingerprint(after.path) == fingerprint(other) != fingerprint(before.path)
    with pytest.raises(ModelError, match="holds another model than was asked for"):
        find_model(base, before.revision)
    # A folder has no revision but its fingerprint.
    assert find_model(str(local), revision_of(str(local))).path == local
    with pytest.raises(ModelError, match="differ from host to host"):
        find_model(str(local), fingerprint(other))


def test_what_is_replaced_while_it_is_read_is_not_kept(base: str, cache: Path) -> None:
    def replace(request: object, **_: object) -> None:
        if f"/{WEIGHTS}" in str(getattr(request, "url", "")):
            storage.write_bytes(f"{base}/config.json", b"another")

    events = storage._s3().meta.events
    events.register("before-send.s3.GetObject", replace)
    try:
        with pytest.raises(StorageError, match="it was changed while it was read; start again"):
            find_model(base)
    finally:
        events.unregister("before-send.s3.GetObject", replace)
    assert [entry.name for entry in cache.iterdir()] == ["lock"]
    assert (find_model(base).path / "config.json").read_bytes() == b"another"


def test_a_copy_that_lost_a_files_end_is_made_again(base: str, local: Path) -> None:
    copy = find_model(base).path
    os.truncate(copy / WEIGHTS, 1000)
    assert fingerprint(find_model(base).path) == fingerprint(local)


def test_what_is_no_model_is_refused_before_it_is_downloaded(
    base: str, cache: Path, given: Callable[[str], int]
) -> None:
    storage.remove(f"{base}/{WEIGHTS}")
    with pytest.raises(ModelError, match=r"no \.safetensors weights"):
        find_model(base)
    storage.remove(f"{base}/config.json")
    with pytest.raises(ModelError, match=r"holds no config\.json"):
        find_model(base)
    assert given(f"{base}/tokenizer.json") == 0
    with pytest.raises(StorageError, match="has no bucket 'base'; did you mean bases"):
        find_model(base.replace("bases", "base"))
    (cache.parent / "models").write_text("no folder")
    storage.write_bytes(f"{base}/config.json", b"{}")
    storage.write_bytes(f"{base}/{WEIGHTS}", b"0")
    with pytest.raises(StorageError, match="models cannot be kept there: .*let RAYTAG_MODELS"):
        find_model(base)


def kept(cache: Path, name: str, last_use: float) -> Path:
    """A copy of a model of a million bytes."""
    model = cache / name
    model.mkdir(parents=True)
    (model / WEIGHTS).write_bytes(b"0" * 1_000_000)
    (model / "in-use").touch()
    os.utime(model / "in-use", (last_use, last_use))
    return model


def test_the_one_that_was_used_longest_ago_goes_and_never_one_in_use(cache: Path) -> None:
    used, oldest, older, newest = (kept(cache, name, at) for at, name in enumerate("acbd"))
    code = "import fcntl\nf = open(sys.argv[1])\nfcntl.flock(f, fcntl.LOCK_SH)\nprint(flush=True)"
    user = python(f"{code}\ninput()", str(used / "in-use"))
    started([user])
    assert user.stdout
    user.stdout.readline()
    total = 100 << 30

    def make_room(size: int, free: int) -> None:
        files._make_room("s3://bases/big", size, cache, free, total)

    make_room(10 << 30, 26 << 30)
    assert oldest.exists()
    # So many bytes short of what is kept free: two have to go.
    make_room(10 << 30, (25 << 30) - 1_500_000)
    assert used.exists()
    assert not oldest.exists()
    assert not older.exists()
    assert newest.exists()
    # The last bytes are not given away, and nothing goes in vain.
    with pytest.raises(ResourceError, match=r"takes 10.0 GiB.* let RAYTAG_MODELS name a folder"):
        make_room(10 << 30, (11 << 30) - 1_500_000)
    assert newest.exists()
    make_room(10 << 30, (11 << 30) - 900_000)
    assert not newest.exists()
    user.communicate("\n", timeout=60)
    make_room(10 << 30, (11 << 30) - 900_000)
    assert not used.exists()


def test_a_model_is_in_use_while_a_process_lives_that_asked_for_it(base: str, cache: Path) -> None:
    user = python("print(find_model(sys.argv[1]).path, flush=True)\ninput()", base)
    started([user])
    assert user.stdout
    model = Path(user.stdout.readline().strip())
    with pytest.raises(ResourceError):
        files._make_room("s3://bases/big", 1, cache, 0, 1 << 40)
    user.communicate("\n", timeout=60)
    files._make_room("s3://bases/big", 1, cache, files.LEAST_FREE, 1 << 40)
    assert not model.exists()


def test_what_the_hub_calls_main_is_one_commit_on_every_host(local: Path, tmp_path: Path) -> None:
    """With a hub's cache as it is after two downloads, and main moved between them."""
    model = tmp_path / "models--acme--llama"
    (model / "snapshots").mkdir(parents=True)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("b" * 40)
    for commit in "ab":
        (model / "snapshots" / (commit * 40)).symlink_to(local)
    code = """
from raytag.model.files import *
for revision in (None, "a" * 40):
    found = find_model("acme/llama", revision)
    print(found.path.name, found.revision)
"""
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert ran.stdout.split() == ["b" * 40] * 2 + ["a" * 40] * 2
