"""Storage on a local disk and on S3: the same promises, and errors that say what to do."""

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from raytag import storage
from raytag.errors import StorageError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


@pytest.fixture(params=["local", "s3"])
def top(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty folder on either kind of storage."""
    if request.param == "local":
        return str(tmp_path / "top")
    client: S3Client = request.getfixturevalue("s3")
    client.create_bucket(Bucket="store")
    return f"s3://store/{tmp_path.name}"


def test_what_is_written_is_read_replaced_and_found(top: str) -> None:
    uri = storage.join(top, "a", "b.txt")
    assert not storage.exists(uri)
    storage.write_bytes(uri, b"one")
    storage.write_bytes(uri, b"two\x00\xff")
    assert storage.read_bytes(uri) == b"two\x00\xff"
    assert storage.exists(uri)
    assert not storage.exists(storage.join(top, "a"))
    assert not storage.exists(uri[:-1])
    assert storage.is_folder(top)
    assert storage.is_folder(storage.join(top, "a"))
    assert not storage.is_folder(uri)


def test_listing_is_whole_sorted_and_of_one_folder_only(top: str) -> None:
    names = ["b/2", "b/10", "a", "b/c/d"]
    for name in names:
        storage.write_bytes(storage.join(top, name), b"")
    storage.write_bytes(f"{top}-other/x", b"")
    assert storage.list_files(top) == [storage.join(top, name) for name in sorted(names)]
    assert storage.list_files(f"{top}/") == storage.list_files(top)
    assert storage.list_files(storage.join(top, "none")) == []


def test_names_are_those_directly_in_a_folder_and_no_more_are_asked_for_than_taken(
    top: str,
) -> None:
    for name in ("b/2", "b/10", "b/c/d", "b/c/e", "b/f/g", "bb/x", "a"):
        storage.write_bytes(storage.join(top, name), b"")
    assert list(storage.names(storage.join(top, "b"))) == ["10", "2", "c/", "f/"]
    assert list(storage.names(storage.join(top, "b"), page=1)) == ["10", "2", "c/", "f/"]
    assert next(storage.names(f"{top}/", page=1)) == "a"
    assert list(storage.names(storage.join(top, "none"))) == []


def test_an_entry_says_size_and_version(top: str) -> None:
    for name, data in {"b": b"two", "a/x": b"one"}.items():
        storage.write_bytes(storage.join(top, name), data)
    entries = storage.list_entries(top)
    assert [entry.uri for entry in entries] == storage.list_files(top)
    assert [entry.size for entry in entries] == [3, 3]
    uri = storage.join(top, "b")
    assert storage.entry(uri) == entries[1]
    storage.write_bytes(uri, b"TWO")
    again = storage.entry(uri)
    assert again.size == 3
    assert again.version != entries[1].version
    with pytest.raises(StorageError, match=r"there is no such file; did you mean b\?"):
        storage.entry(storage.join(top, "bb"))


def test_a_file_is_read_as_a_stream_from_any_byte(top: str) -> None:
    uri = storage.join(top, "large")
    data = b"".join(b"line %d\n" % i for i in range(1_000_000))
    storage.write_bytes(uri, data)
    with storage.open_read(uri) as stream:
        assert stream.readline() == b"line 0\n"
        assert stream.read() == data[7:]
        assert stream.read(1) == b""
        stream.seek(-7, os.SEEK_END)
        assert stream.read() == b"999999\n"
        stream.seek(9_000_000)
        assert stream.read(5_000_000) == data[9_000_000:14_000_000]
        assert stream.tell() == min(14_000_000, len(data))
    with storage.open_read(uri, 8_000_000) as stream:
        assert list(stream) == data[8_000_000:].splitlines(keepends=True)
    with storage.open_read(uri, len(data) + 5) as stream:
        assert stream.read() == b""
    storage.write_bytes(uri, b"")
    with storage.open_read(uri) as stream:
        assert stream.read() == b""
    with pytest.raises(StorageError, match="there is no such file"), storage.open_read(f"{uri}x"):
        pass


def test_a_stream_is_of_one_version_of_an_object(s3: "S3Client") -> None:
    s3.create_bucket(Bucket="moving")
    s3.put_object(Bucket="moving", Key="k", Body=b"a" * 5_000_000)
    with storage.open_read("s3://moving/k") as stream:
        assert stream.read(1) == b"a"
        s3.put_object(Bucket="moving", Key="k", Body=b"b" * 5_000_000)
        with pytest.raises(StorageError, match="it was changed while it was read; start again"):
            stream.read()


@pytest.fixture
def breaking(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """A store with one object of 10 bytes; the list says which readings of it break off."""
    breaks: list[bool] = []
    listed = (
        "<ListBucketResult><Contents><Key>k</Key><Size>10</Size><ETag>&quot;e&quot;</ETag>"
        "</Contents></ListBucketResult>"
    )

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = listed.encode() if "list-type" in self.path else b"0123456789"
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", '"e"')
            self.end_headers()
            broken = "list-type" not in self.path and breaks.pop(0)
            self.wfile.write(body[:4] if broken else body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "anyone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "anything")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    yield breaks
    server.shutdown()
    server.server_close()


def test_a_connection_that_breaks_is_tried_again_and_then_an_error(breaking: list[bool]) -> None:
    breaking[:] = [True, True, False]
    with storage.open_read("s3://bucket/k") as stream:
        assert stream.read() == b"0123456789"
    breaking[:] = [True] * 20
    with (
        storage.open_read("s3://bucket/k") as stream,
        pytest.raises(StorageError, match=r"^s3://bucket/k: http://127.0.0.1:\d+ does not answer"),
    ):
        stream.read()
    assert len(breaking) == 17


def test_create_happens_once(top: str) -> None:
    uri = storage.join(top, "once")
    assert storage.create(uri, b"first")
    assert not storage.create(uri, b"second")
    assert storage.read_bytes(uri) == b"first"


def test_of_sixteen_who_create_one_wins(top: str) -> None:
    for race in range(3):
        uri = storage.join(top, f"race-{race}")
        with ThreadPoolExecutor(16) as pool:
            won = list(pool.map(lambda i, uri=uri: storage.create(uri, b"%d" % i), range(16)))
        assert won.count(True) == 1
        assert storage.read_bytes(uri) == b"%d" % won.index(True)
    assert len(storage.list_files(top)) == 3


def test_a_folder_goes_up_and_comes_down_the_same(top: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / "x").write_bytes(b"x")
    (source / "deep" / "y").write_bytes(os.urandom(100_000))
    assert storage.upload_folder(source, storage.join(top, "up")) == ["deep/y", "x"]
    back = tmp_path / "back"
    assert storage.download_folder(storage.join(top, "up"), back) == ["deep/y", "x"]
    assert (back / "deep" / "y").read_bytes() == (source / "deep" / "y").read_bytes()
    with pytest.raises(StorageError, match="no files below it"):
        storage.download_folder(storage.join(top, "void"), back)


def test_a_wrong_name_gets_the_nearest_right_one(top: str) -> None:
    storage.write_bytes(storage.join(top, "train.jsonl"), b"")
    wrong = storage.join(top, "trian.jsonl")
    with pytest.raises(StorageError) as caught:
        storage.read_bytes(wrong)
    assert str(caught.value) == f"{wrong}: there is no such file; did you mean train.jsonl?"
    with pytest.raises(StorageError, match=r"no such file; check the name$"):
        storage.read_bytes(storage.join(top, "unlike", "zzz"))


def test_local_files_are_replaced_whole_and_leave_nothing_behind(tmp_path: Path) -> None:
    target = tmp_path / "file"
    storage.write_bytes(target, b"old")
    storage.write_bytes(target, b"new")
    storage.create(target, b"no")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert target.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_join_keeps_one_slash_between_parts() -> None:
    assert storage.join("s3://b", "k", "x") == "s3://b/k/x"
    assert storage.join("s3://b/p/", "/k/") == "s3://b/p/k"
    assert storage.join("/", "a") == "/a"
    assert storage.join("here") == "here"


@pytest.mark.parametrize("uri", ["gs://b/k", "s3:///k", "", "http://x/y"])
def test_unknown_places_are_refused(uri: str) -> None:
    with pytest.raises(StorageError, match="give a path or s3://bucket/key"):
        storage.read_bytes(uri)


def test_local_errors_are_one_line_that_helps(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="this is a folder; name a file in it"):
        storage.read_bytes(tmp_path)
    with pytest.raises(StorageError, match="a file stands where a folder is needed"):
        storage.write_bytes(tmp_path / "file" / "x", b"")
    with pytest.raises(StorageError, match="no such folder to upload"):
        storage.upload_folder(tmp_path / "none", tmp_path / "to")


def test_a_missing_bucket_is_named(s3: "S3Client") -> None:
    s3.create_bucket(Bucket="tagged-data")
    for act in (
        lambda: storage.read_bytes("s3://taged-data/x"),
        lambda: storage.write_bytes("s3://taged-data/x", b""),
        lambda: storage.exists("s3://taged-data/x"),
        lambda: storage.list_files("s3://taged-data/x"),
    ):
        with pytest.raises(StorageError, match=r"has no bucket 'taged-data'; did you mean tagged-"):
            act()


def test_wrong_credentials_are_said_to_be_wrong(
    s3: "S3Client", monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.create_bucket(Bucket="closed")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StorageError, match=r"does not accept the credentials.*AWS_ACCESS_KEY_ID"):
        storage.write_bytes("s3://closed/x", b"")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    with pytest.raises(StorageError, match="does not accept the credentials"):
        storage.upload_folder(Path(__file__).parent / "text", "s3://closed/x")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(StorageError, match="no S3 credentials; set AWS_ACCESS_KEY_ID"):
        storage.read_bytes("s3://closed/x")


def test_a_silent_endpoint_is_named(s3: "S3Client", monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(
        StorageError, match=r"^s3://bucket/k: http://127.0.0.1:9 does not answer; check"
    ):
        storage.read_bytes("s3://bucket/k")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "127.0.0.1:9")
    with pytest.raises(StorageError, match="mend AWS_ENDPOINT_URL"):
        storage.read_bytes("s3://bucket/k")


@pytest.mark.slow
def test_many_files_are_listed_page_by_page(s3: "S3Client") -> None:
    s3.create_bucket(Bucket="many")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: s3.put_object(Bucket="many", Key=f"k/{i:04}"), range(1005)))
    assert len(storage.list_files("s3://many")) == 1005
