"""API keys: who holds one is let in until it is revoked, and nobody else ever is."""

import hashlib
import json
import logging
import traceback
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from raytag import storage
from raytag.cli import run
from raytag.errors import RaytagError, SettingsError, StorageError
from raytag.serve.key_verbs import main as do_verb
from raytag.serve.keys import ANY, Identity, KeyRing, Keys, KeysUnread, NewKey, Unauthorized
from s3 import free_port

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

NOW = datetime(2026, 1, 1, tzinfo=UTC).timestamp()


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty folder of keys."""
    if request.param == "local":
        return str(tmp_path / "keys")
    client: S3Client = request.getfixturevalue("s3")
    bucket = f"keys-{uuid.uuid4().hex[:12]}"
    client.create_bucket(Bucket=bucket)
    return f"s3://{bucket}/deep/keys"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The same on disk, for what does not depend on the store."""
    folder = tmp_path / "folder"
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def some_ring(tmp_path_factory: pytest.TempPathFactory) -> KeyRing:
    """With one key that nobody knows."""
    root = str(tmp_path_factory.mktemp("some"))
    Keys(root).create("acme", "extract")
    return ring_of(root)


def ring_of(root: str | Path, now: float = NOW) -> KeyRing:
    ring = KeyRing(str(root))
    ring.refresh(now)
    return ring


def check(ring: KeyRing, key: str, now: float = NOW) -> Identity:
    return ring.check(f"Bearer {key}", now)


def refusal(ring: KeyRing, key: str, now: float = NOW) -> str:
    with pytest.raises(Unauthorized) as refused:
        check(ring, key, now)
    return str(refused.value)


def test_a_key_says_whose_it_is_and_what_it_may_do(root: str) -> None:
    keys = Keys(root)
    acme = keys.create("acme", "extract", note="of the laptop")
    boss = keys.create("acme", "release")
    operator = keys.create(ANY, "operator")
    ring = ring_of(root)
    assert check(ring, acme.text) == Identity("acme", "extract", acme.key.id)
    assert check(ring, boss.text) == Identity("acme", "release", boss.key.id)
    assert check(ring, operator.text) == Identity("*", "operator", operator.key.id)
    assert not ring.problems
    assert ring.check(f"bEARER   {acme.text} ", NOW).tenant == "acme"
    assert set(keys.list().keys) == {acme.key.id, boss.key.id, operator.key.id}


def test_a_key_is_replaced_without_a_moment_when_none_is_valid(root: str) -> None:
    keys = Keys(root)
    old = keys.create("acme", "extract")
    ring = ring_of(root)
    new = keys.create("acme", "extract")
    ring.refresh(NOW + 1)
    assert check(ring, old.text).key_id != check(ring, new.text).key_id
    assert keys.revoke(old.key.id)
    assert check(ring, old.text).key_id == old.key.id  # until the next refresh
    ring.refresh(NOW + 2)
    assert "revoked" in refusal(ring, old.text)
    assert check(ring, new.text).key_id == new.key.id


def test_revoking_is_for_good_and_can_be_repeated(root: str) -> None:
    keys = Keys(root)
    key = keys.create("acme", "extract")
    with ThreadPoolExecutor(8) as pool:
        first = list(pool.map(lambda _: keys.revoke(key.key.id), range(8)))
    assert first.count(True) == 1
    assert "revoked" in refusal(ring_of(root), key.text)
    assert keys.list().state(key.key, NOW) == "revoked"


def test_a_key_ends_when_it_expires(folder: Path) -> None:
    end = datetime.now(UTC) + timedelta(hours=1)
    key = Keys(str(folder)).create("acme", "extract", expires_at=end)
    at = int(end.timestamp())
    ring = ring_of(folder, at)
    assert check(ring, key.text, at - 0.001).tenant == "acme"
    assert "expired" in refusal(ring, key.text, at)
    with pytest.raises(SettingsError, match="expire"):
        Keys(str(folder)).create("acme", "extract", expires_at=datetime.now(UTC))


def test_no_part_of_a_key_can_be_another_keys(folder: Path) -> None:
    keys = Keys(str(folder))
    acme, other, operator = (
        keys.create(*whose).text
        for whose in (("acme", "extract"), ("other", "release"), (ANY, "operator"))
    )
    ring = ring_of(folder)
    texts = [key.split("~") for key in (acme, other, operator)]
    tried = 0
    for tenant in ("acme", "other", "*", "nobody"):
        for id in (*(text[2] for text in texts), "0" * 16, ""):
            for secret in (*(text[3] for text in texts), "A" * 43, ""):
                key = f"rt~{tenant}~{id}~{secret}"
                if key not in (acme, other, operator):
                    refusal(ring, key)
                    tried += 1
    assert tried == 4 * 5 * 5 - 3


def test_each_character_of_a_key_counts(folder: Path) -> None:
    key = Keys(str(folder)).create("acme", "extract").text
    ring = ring_of(folder)
    for place in range(len(key)):
        refusal(ring, key[:place] + ("b" if key[place] == "a" else "a") + key[place + 1 :])
        refusal(ring, key[:place] + key[place + 1 :])
        refusal(ring, key[:place] + "\n" + key[place:])
    refusal(ring, key + "\n")
    refusal(ring, key + "=")


PIECES = ("rt", "~", "acme", "*", "0" * 16, "f" * 16, "A" * 43, "Bearer ", "bearer", " ", "Basic ")


@settings(deadline=None)
@given(
    st.none()
    | st.text()
    | st.text(st.characters(max_codepoint=255)).map("Bearer {}".format)
    | st.lists(st.sampled_from(PIECES) | st.text(max_size=3)).map("".join)
    | st.text("0123456789abcdef", min_size=16, max_size=16).map(
        lambda id: f"Bearer rt~acme~{id}~{'A' * 43}"
    )
)
@example("Bearer rt~acme~" + "0" * 16 + "~" + "A" * 43)
@example("Bearer rt~" + "١" * 16)
@example("Bearer \ud800")
@example("Bearer " + "~" * 100_000)
def test_whatever_the_header_holds_it_is_refused_and_not_repeated(
    some_ring: KeyRing, header: str | None
) -> None:
    with pytest.raises(Unauthorized) as refused:
        some_ring.check(header, NOW)
    assert "key" in str(refused.value)
    assert "A" * 43 not in str(refused.value)
    assert len(str(refused.value)) < 200


def test_no_secret_is_stored_logged_or_shown(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    keys = Keys(str(folder))
    made = keys.create("acme", "extract", note="a note")
    secret = made.text.split("~")[3]
    ring = ring_of(folder)
    shown = [repr(made), str(made.key), repr(ring), repr(keys.list()), caplog.text]
    shown += [path.name + path.read_text() for path in folder.iterdir()]
    keys.revoke(made.key.id)
    ring.refresh(NOW)
    for header in (f"Bearer {made.text}", f"Basic {made.text}", f"Bearer x{made.text}"):
        with pytest.raises(Unauthorized) as refused:
            ring.check(header, NOW)
        shown.append("".join(traceback.format_exception(refused.value)))
    with pytest.raises(SettingsError) as wrong:
        keys.revoke(made.text)
    shown.append("".join(traceback.format_exception(wrong.value)))
    assert not [text for text in shown if secret in text or secret[5:20] in text]
    record = json.loads((folder / f"{made.key.id}.json").read_bytes())
    assert record["sha256"] == hashlib.sha256(secret.encode()).hexdigest()
    assert len(secret) == 43


def test_secrets_and_ids_are_never_the_same(folder: Path) -> None:
    made = [Keys(str(folder)).create("acme", "extract") for _ in range(50)]
    assert len({new.key.id for new in made}) == len({new.key.sha256 for new in made}) == 50


def record(made: NewKey, **changes: Any) -> bytes:
    return json.dumps({"format": 1, **asdict(made.key), **changes}).encode()


def test_what_is_no_record_is_named_and_never_trusted(folder: Path) -> None:
    keys = Keys(str(folder))
    good, made = keys.create("acme", "extract"), keys.create("acme", "extract")
    file = folder / f"{made.key.id}.json"
    without_role = {k: v for k, v in json.loads(record(made)).items() if k != "role"}
    bad: list[bytes] = [
        *(b"", b"{", b"null", b"[]", b"1", b'"x"', b"\xff\xfe", b"[" * 100_000, b"9" * 5000),
        json.dumps(without_role).encode(),
        record(made, format=2),
        record(made, more="x"),
        record(made, id=good.key.id),
        *(record(made, tenant=tenant) for tenant in ("", "*", "../x", "Acme", None, 1, ["acme"])),
        *(record(made, role=role) for role in ("admin", "operator", "", None, 1, ["extract"])),
        *(record(made, sha256=digest) for digest in ("", "0" * 63, "G" * 64, None, 0)),
        *(
            record(made, **{name: at})
            for name in ("created_at", "expires_at")
            for at in ("", "soon", "2026-01-01", "2026-01-01T00:00:00", 0, False, [])
        ),
        record(made, expires_at="0001-01-01T00:00:00+23:59"),
        record(made, note=None),
        record(made, note=7),
    ]
    ring = KeyRing(str(folder))
    for content in bad:
        file.write_bytes(content)
        ring.refresh(NOW)
        assert list(ring.problems) == [file.name], content[:200]
        assert "not known" in refusal(ring, made.text)
        assert check(ring, good.text).tenant == "acme"
    file.write_bytes(record(made))
    ring.refresh(NOW)
    assert not ring.problems
    assert check(ring, made.text).tenant == "acme"


@settings(deadline=None)
@given(st.binary() | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps))
def test_arbitrary_records_stop_no_refresh(
    tmp_path_factory: pytest.TempPathFactory, content: bytes | str
) -> None:
    folder = tmp_path_factory.getbasetemp() / "arbitrary"
    data = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
    folder.mkdir(exist_ok=True)
    (folder / f"{'0' * 16}.json").write_bytes(data)
    assert len(ring_of(folder).problems) == 1


def test_other_files_in_the_folder_are_named_and_not_read(folder: Path) -> None:
    made = Keys(str(folder)).create("acme", "extract")
    good = (folder / f"{made.key.id}.json").read_bytes()
    for name in ("readme.txt", "x.json", f"{made.key.id.upper()}G.json", f"{made.key.id}.json.bak"):
        (folder / name).write_bytes(good)
    (folder / "deeper").mkdir()
    ring = ring_of(folder)
    assert len(ring.problems) == 5
    assert check(ring, made.text).tenant == "acme"


def test_a_record_is_read_once(folder: Path) -> None:
    keys = Keys(str(folder))
    made = keys.create("acme", "extract")
    ring = ring_of(folder)
    (folder / f"{made.key.id}.json").write_bytes(b"what nobody reads")
    later = keys.create("acme", "extract")
    ring.refresh(NOW)
    assert not ring.problems
    assert check(ring, made.text).tenant == check(ring, later.text).tenant == "acme"


def test_a_key_whose_record_is_gone_is_refused(root: str) -> None:
    keys = Keys(root)
    gone, stays = keys.create("acme", "extract"), keys.create("acme", "extract")
    ring = ring_of(root)
    storage.remove(storage.join(root, f"{gone.key.id}.json"))
    ring.refresh(NOW)
    assert "not known" in refusal(ring, gone.text)
    assert check(ring, stays.text).tenant == "acme"


def test_when_the_store_fails_keys_stay_valid_for_a_while_and_then_none_is(
    s3: "S3Client", monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = f"keys-{uuid.uuid4().hex[:12]}"
    s3.create_bucket(Bucket=bucket)
    made = Keys(f"s3://{bucket}").create("acme", "extract")
    ring = ring_of(f"s3://{bucket}")
    with monkeypatch.context() as down:
        down.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
        down.setenv("AWS_MAX_ATTEMPTS", "1")
        with pytest.raises(StorageError, match="does not answer"):
            ring.refresh(NOW + 30)
    assert check(ring, made.text, NOW + 60).tenant == "acme"
    with pytest.raises(KeysUnread, match="not read in the last 60 seconds"):
        check(ring, made.text, NOW + 60.001)
    ring.refresh(NOW + 90)
    assert check(ring, made.text, NOW + 91).tenant == "acme"


def test_a_disk_that_is_not_mounted_is_a_store_that_fails(folder: Path, tmp_path: Path) -> None:
    made = Keys(str(folder)).create("acme", "extract")
    ring = ring_of(folder)
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match="is it there"):
        ring.refresh(NOW + 30)
    assert check(ring, made.text, NOW + 60).tenant == "acme"
    with pytest.raises(KeysUnread):
        check(ring, made.text, NOW + 61)


def test_a_bucket_that_is_gone_fails_the_refresh(s3: "S3Client") -> None:
    ring = KeyRing(f"s3://gone-{uuid.uuid4().hex[:12]}/keys", stale_after=5)
    with pytest.raises(StorageError, match="no bucket"):
        ring.refresh(NOW)
    with pytest.raises(KeysUnread):
        check(ring, f"rt~acme~{'0' * 16}~{'A' * 43}")


def test_before_the_first_refresh_every_key_is_refused(folder: Path) -> None:
    made = Keys(str(folder)).create("acme", "extract")
    with pytest.raises(KeysUnread):
        check(KeyRing(str(folder)), made.text)


def test_checks_go_on_while_the_ring_is_refreshed(folder: Path) -> None:
    keys = Keys(str(folder))
    stays, goes = keys.create("acme", "extract"), keys.create("acme", "extract")
    ring = ring_of(folder)

    assert check(ring, goes.text).key_id == goes.key.id

    def turn(number: int) -> None:
        if number % 10 == 0:
            keys.create("other", "extract")
            if number == 100:
                keys.revoke(goes.key.id)
            ring.refresh(NOW)
        assert check(ring, stays.text).key_id == stays.key.id

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(turn, range(300)))
    assert "revoked" in refusal(ring, goes.text)
    assert len(keys.list().keys) == 32


@pytest.mark.parametrize("tenant", ["", "..", "a/b", "Acme", "a~b", "acme\n", "*", "é"])
def test_names_that_are_no_tenants_get_no_key(tenant: str, folder: Path) -> None:
    with pytest.raises(SettingsError):
        Keys(str(folder)).create(tenant, "extract")
    if tenant != ANY:
        with pytest.raises(SettingsError):
            Keys(str(folder)).create(tenant, "operator")
    assert not list(folder.iterdir())


@pytest.mark.parametrize("id", ["", "..", "../x", "0" * 15, "G" * 16, "0" * 16 + "\n", "0" * 16])
def test_what_is_no_keys_id_is_not_revoked(id: str, folder: Path) -> None:
    with pytest.raises(SettingsError, match="raytag keys list"):
        Keys(str(folder)).revoke(id)
    assert not list(folder.iterdir())


@pytest.mark.parametrize("root", ["", "/", "file://"])
def test_no_folder_is_one_line(root: str) -> None:
    for make in (Keys, KeyRing):
        with pytest.raises(SettingsError, match="folder"):
            make(root)


class Shell:
    """``raytag keys …`` on one folder."""

    def __init__(self, root: str, capsys: pytest.CaptureFixture[str]) -> None:
        self._root = root
        self._capsys = capsys

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        self._capsys.readouterr()
        status = run(lambda given: do_verb(given, "keys"), [*arguments, "--keys", self._root])
        return status, *self._capsys.readouterr()

    def json(self, *arguments: str) -> Any:
        status, out, err = self(*arguments, "--json")
        assert (status, err) == (0, "")
        return json.loads(out)


def test_keys_are_made_listed_and_revoked_from_a_shell(
    root: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shell = Shell(root, capsys)
    assert shell("list") == (0, "there are no keys\n", "")
    status, out, err = shell("create", "acme", "--note", "the\x1b[31m first\udcff", "--days", "30")
    key = out.removesuffix("\n")
    id, secret = key.split("~")[2:]
    assert status == 0
    assert check(ring_of(root), key).tenant == "acme"
    assert id in err
    assert secret not in err
    made = shell.json("create", "--role", "operator")
    assert (made["tenant"], made["role"], made["expires_at"]) == ("*", "operator", None)
    assert check(ring_of(root), made["key"]).role == "operator"
    assert shell("revoke", id)[1].startswith(f"revoked: {id}")
    assert shell("revoke", id)[1] == f"{id} was revoked before\n"
    assert shell.json("revoke", made["id"]) == {"id": made["id"], "revoked": True}
    storage.write_bytes(storage.join(root, f"{'0' * 16}.json"), b"{}")
    status, out, err = shell("list")
    heads, *rows = out.splitlines()
    assert heads.split() == ["id", "state", "role", "created", "expires", "tenant,", "note"]
    acme = next(row for row in rows if row.startswith(id))
    assert acme.split()[1:3] == ["revoked", "extract"]
    assert acme.endswith("acme  the␛[31m first\ufffd")
    assert len(rows) == 2
    assert secret not in out
    assert f"{'0' * 16}.json" in err
    assert [row["id"] for row in shell.json("list", "acme")["keys"]] == [id]
    assert list(shell.json("list")["problems"]) == [f"{'0' * 16}.json"]
    assert "sha256" not in shell("list", "--json")[1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["create"], "name the tenant"),
        (["create", "Acme"], "no tenant name"),
        (["create", "acme", "--role", "operator"], "name none"),
        (["create", "*"], "no tenant name"),
        (["create", "acme", "--days", "0"], "--days must be from 1"),
        (["create", "acme", "--days", "99999999999999"], "--days must be from 1"),
        (["revoke", "rt~acme~0~SECRET"], "no key's id"),
        (["revoke", "0123456789abcdef"], "holds no key"),
        (["list", "../x"], "no tenant name"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = Shell(str(folder), capsys)(*arguments)
    assert (status, out) == (2, "")
    assert said in err
    assert "SECRET" not in err
    assert err.count("\n") == 1


def test_refusals_are_mistakes_of_the_user() -> None:
    assert issubclass(KeysUnread, Unauthorized)
    assert issubclass(Unauthorized, RaytagError)
