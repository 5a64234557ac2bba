"""What can be done with a registry, on a disk and on S3."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from registry_cases import write_adapter

from raytag import __version__, storage
from raytag.errors import ModelError, RaytagError, SettingsError, StorageError
from raytag.model.adapter import CARD, WEIGHTS
from raytag.registry.folder import TRAINING_TEXTS
from raytag.registry.layout import Domain, key
from raytag.registry.records import Tombstone
from raytag.registry.registry import Registry


@pytest.fixture
def registry(root: str) -> Registry:
    return Registry(root)


def domain(root: str) -> Domain:
    return Domain(root, "acme", "news")


def test_what_is_published_is_found_again(registry: Registry, root: str, adapter: str) -> None:
    first = registry.publish(adapter, "acme", "news", note="a first try")
    second = registry.publish(
        adapter, "acme", "news", parent="acme/news@1", training_texts=["One  text.", "Another."]
    )
    assert (str(first), str(second)) == ("acme/news@1", "acme/news@2")
    assert registry.resolve("acme/news@1") == first
    assert registry.resolve("acme/news@2") == second
    assert first.uri == storage.join(root, "acme", "news", "uploads", first.uid)
    assert (first.note, first.parent, second.parent) == ("a first try", None, "acme/news@1")
    assert (first.base, first.revision, first.code_version) == ("some/base", "abc", __version__)
    assert first.data["counts"]["train"]["examples"] == 9
    assert (first.f1, first.f1_per_type) == (0.4, {"LOC": 0.6, "PER": 0.2})
    assert list(first.files) == [WEIGHTS, CARD]
    with storage.on_disk(second.uri) as folder:
        assert {path.name for path in folder.iterdir()} == {WEIGHTS, CARD, TRAINING_TEXTS}
        assert (folder / WEIGHTS).read_bytes() == (Path(adapter) / WEIGHTS).read_bytes()
        assert len(json.loads((folder / TRAINING_TEXTS).read_text())) == 2
    with pytest.raises(SettingsError, match="no acme/news@3; the latest version is 2"):
        registry.resolve("acme/news@3")
    with pytest.raises(SettingsError, match="acme/news@production points nowhere; acme/news has"):
        registry.resolve("acme/news@production")
    assert not [uri for uri in storage.list_files(root) if "probe" in uri]


def test_an_alias_moves_and_goes_back_again_and_again(registry: Registry, adapter: str) -> None:
    for _ in range(4):
        registry.publish(adapter, "acme", "news")

    def promote(number: int, **more: Any) -> None:
        registry.promote(f"acme/news@{number}", "production", **more)

    for number in (1, 2, 3):
        promote(number)
    registry.promote("acme/news@production", "staging")
    assert registry.resolve("acme/news@staging").number == 3
    assert registry.rollback("acme/news@production").version == 2
    promote(4)
    assert registry.rollback("acme/news@production").version == 2
    assert registry.rollback("acme/news@production").version == 1
    with pytest.raises(SettingsError, match="acme/news@production has nothing to go back to"):
        registry.rollback("acme/news@production")
    moves = registry.history("acme/news@production")
    assert [(m.number, m.action, m.replaced, m.version) for m in reversed(moves)] == [
        (1, "promote", None, 1),
        (2, "promote", 1, 2),
        (3, "promote", 2, 3),
        (4, "rollback", 3, 2),
        (5, "promote", 2, 4),
        (6, "rollback", 4, 2),
        (7, "rollback", 2, 1),
    ]
    with pytest.raises(StorageError, match="points to 1, not to 2; nothing was changed"):
        promote(4, replaces=2)
    promote(1)
    assert len(registry.history("acme/news@production")) == 7
    promote(4, replaces=1)
    assert registry.resolve("acme/news@production").number == 4
    with pytest.raises(StorageError, match="points to no version, not to 1"):
        registry.promote("acme/news@1", "canary", replaces=1)
    registry.promote("acme/news@1", "canary", replaces=0)


def test_a_deleted_version_is_gone_and_one_in_use_stays(
    registry: Registry, adapter: str, root: str
) -> None:
    for number in (1, 2, 3):
        registry.publish(adapter, "acme", "news")
        registry.promote(f"acme/news@{number}", "production")
    with pytest.raises(SettingsError, match="acme/news@3 stays: production points to it"):
        registry.delete("acme/news@3")
    with pytest.raises(SettingsError, match="name the version to delete by its number"):
        registry.delete("acme/news@production")
    registry.delete("acme/news@2")
    for gone in (
        lambda: registry.resolve("acme/news@2"),
        lambda: registry.promote("acme/news@2", "production"),
        lambda: registry.delete("acme/news@2"),
    ):
        with pytest.raises(SettingsError, match="acme/news@2 is deleted"):
            gone()
    assert registry.rollback("acme/news@production").version == 1  # past the deleted one
    assert [one.deleted for one in registry.versions("acme", "news")] == [False, True, False]
    assert registry.publish(adapter, "acme", "news").number == 4
    # A deletion that was killed before it could see the alias counts for nothing there.
    domain(root).bury(1, Tombstone(at="2020-01-01T00:00:00+00:00"))
    assert registry.resolve("acme/news@production").number == 1
    registry.gc("acme")
    assert registry.verify("acme/news@1").number == 1


def test_listings_say_what_there_is(registry: Registry, adapter: str, root: str) -> None:
    for _ in range(3):
        registry.publish(adapter, "acme", "news")
    registry.publish(adapter, "acme", "law")
    registry.publish(adapter, "acme2", "other")
    registry.promote("acme/news@1", "production")
    registry.promote("acme/news@1", "staging")
    registry.tag("acme/news@production", "baseline")
    registry.tag("acme/news@1", "good.one")
    domains = registry.domains("acme")
    assert [(d.domain, d.latest, dict(d.aliases)) for d in domains] == [
        ("law", 1, {}),
        ("news", 3, {"production": 1, "staging": 1}),
    ]
    listed = registry.versions("acme", "news")
    assert [one.version.number for one in listed] == [3, 2, 1]
    assert listed[2].aliases == ("production", "staging")
    assert listed[2].tags == ("baseline", "good.one")
    assert [one.version.number for one in registry.versions("acme", "news", limit=2)] == [3, 2]
    assert registry.domains("nobody") == []
    assert registry.versions("acme", "nothing") == []


def test_two_versions_are_compared_type_by_type(registry: Registry, tmp_path: Path) -> None:
    for name, f1, lr in (("a", (6, 2), 1e-4), ("b", (8, 1), 2e-4)):
        folder = write_adapter(tmp_path / name, f1, lr=lr)
        registry.publish(folder, "acme", "news")
    found = registry.compare("acme/news@1", "acme/news@2")
    assert found.f1 == {"LOC": (0.6, 0.8), "PER": (0.2, 0.1), "all types": (0.4, 0.45)}
    assert found.settings == {"lr": (1e-4, 2e-4)}


def test_verify_sees_every_changed_file(registry: Registry, adapter: str) -> None:
    version = registry.publish(adapter, "acme", "news")
    assert registry.verify("acme/news@1") == version
    for name in (WEIGHTS, CARD):
        uri = storage.join(version.uri, name)
        good = storage.read_bytes(uri)
        storage.write_bytes(uri, good[:-1] + b"?")
        with pytest.raises(StorageError, match=f"{name} is not what was published"):
            registry.verify("acme/news@1")
        storage.write_bytes(uri, good)
    added = storage.join(version.uri, "more.json")
    storage.write_bytes(added, b"{}")
    with pytest.raises(StorageError, match="more.json was not published with acme/news@1"):
        registry.verify("acme/news@1")


def test_the_sweep_removes_what_is_old_and_unused_only(
    registry: Registry, adapter: str, root: str
) -> None:
    for number in (1, 2, 3):
        registry.publish(adapter, "acme", "news")
        registry.promote(f"acme/news@{number}", "production")
    registry.delete("acme/news@1")
    place = domain(root)
    half = place.uri("uploads", "20200101T000000Z-0123456789ab")
    storage.write_bytes(storage.join(half, WEIGHTS), b"half")
    fresh = place.uri("uploads", "29990101T000000Z-0123456789ab")
    storage.write_bytes(storage.join(fresh, WEIGHTS), b"half")
    probe = storage.join(root, "acme", ".probe-20200101T000000Z-0123456789ab", "0")
    storage.write_bytes(probe, b"")
    foreign = place.uri("uploads", "someone's")
    storage.write_bytes(storage.join(foreign, "file"), b"")
    (swept,) = registry.gc("acme")
    assert (swept.uri, swept.reason, swept.files, swept.bytes) == (half, "never finished", 1, 4)
    assert registry.gc("acme") == []
    assert not storage.exists(probe)
    first = place.version(1)
    assert first
    assert storage.is_folder(first.uri)
    (swept,) = registry.gc("acme", "news", lease=-1)
    assert (swept.uri, swept.reason, swept.files) == (first.uri, "deleted", 2)
    for number in (2, 3):
        registry.verify(f"acme/news@{number}")
    assert storage.is_folder(fresh)
    assert storage.is_folder(foreign)
    assert not storage.list_files(place.uri("marks"))


@pytest.mark.parametrize("gone", ["marked", "swept"])
def test_a_publisher_whose_upload_was_swept_says_so(
    registry: Registry, adapter: str, root: str, gone: str
) -> None:
    def texts() -> Iterator[str]:
        """Come when the weights are there and the card is not."""
        place = domain(root)
        (upload,) = storage.names(place.uri("uploads"))
        if gone == "marked":
            storage.write_bytes(place.uri("marks", upload.rstrip("/")), b"")
        else:
            (swept,) = registry.gc("acme", lease=-1)
            assert swept.files == 1
        yield "One."

    with pytest.raises(StorageError, match="acme/news@1 took longer to upload"):
        registry.publish(adapter, "acme", "news", training_texts=texts())
    with pytest.raises(SettingsError, match="is deleted"):
        registry.resolve("acme/news@1")
    assert registry.publish(adapter, "acme", "news").number == 2


def spoil_suffix(folder: Path) -> None:
    (folder / "weights.BIN").write_bytes(b"anything")


def spoil_pickle(folder: Path) -> None:
    import pickle

    (folder / "notes.txt").write_bytes(pickle.dumps({"a": 1}))


def spoil_zip(folder: Path) -> None:
    import zipfile

    with zipfile.ZipFile(folder / "notes.json", "w") as archive:
        archive.writestr("data.pkl", "x")


def spoil_weights(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"\x80\x02}q\x00.")


def spoil_absent(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


def spoil_link(folder: Path) -> None:
    (folder / "README.md").symlink_to("/etc/hostname")


def spoil_folder_link(folder: Path) -> None:
    (folder / "more").symlink_to("/etc")


def spoil_more(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((folder / WEIGHTS).read_bytes())


def spoil_card(folder: Path) -> None:
    (folder / CARD).write_text("{}")


def spoil_merged(folder: Path) -> None:
    card = json.loads((folder / CARD).read_text())
    (folder / CARD).write_text(json.dumps({**card, "merged": {"dtype": "fp32"}}))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (spoil_suffix, "weights.BIN holds other weights"),
        (spoil_pickle, "notes.txt holds pickled data"),
        (spoil_zip, "notes.json holds pickled data or an archive"),
        (spoil_weights, f"{WEIGHTS} is not safetensors"),
        (spoil_absent, f"holds no {WEIGHTS}"),
        (spoil_link, "README.md is a symbolic link"),
        (spoil_folder_link, "more is a symbolic link"),
        (spoil_more, "model.safetensors holds other weights"),
        (spoil_card, "card.json has format None"),
        (spoil_merged, "is a merged model"),
    ],
)
def test_what_is_no_plain_adapter_is_refused_and_leaves_nothing(
    spoil: Callable[[Path], None], said: str, adapter: str, tmp_path: Path
) -> None:
    spoil(Path(adapter))
    with pytest.raises(ModelError, match=said):
        Registry(str(tmp_path / "registry")).publish(adapter, "acme", "news")
    assert not (tmp_path / "registry").exists()


def test_weights_whose_header_begins_like_a_pickle_are_weights(
    adapter: str, tmp_path: Path
) -> None:
    data = (Path(adapter) / WEIGHTS).read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + size].ljust(0x280)
    odd = (0x280).to_bytes(8, "little") + header + data[8 + size :]
    assert odd[:2] == b"\x80\x02"
    (Path(adapter) / WEIGHTS).write_bytes(odd)
    assert Registry(str(tmp_path / "registry")).publish(adapter, "acme", "news").number == 1


@pytest.mark.parametrize(
    "change",
    [
        {"uid": "../../other/uploads/x"},
        {"number": 2},
        {"files": {"../x": {"size": 1, "sha256": ""}}},
        {"files": {"/etc/passwd": {"size": 1, "sha256": ""}}},
        {"tenant": "other"},
        {"scores": {"test": 3}},
        {"format": 9},
        {"more": 1},
    ],
)
def test_a_record_that_is_none_is_named(root: str, adapter: str, change: dict[str, Any]) -> None:
    Registry(root).publish(adapter, "acme", "news")
    uri = domain(root).uri("versions", f"{key(1)}.json")
    content = json.loads(storage.read_bytes(uri))
    storage.write_bytes(uri, json.dumps({**content, **change}).encode())
    with pytest.raises(StorageError, match=f"^{uri} "):
        Registry(root).resolve("acme/news@1")


@pytest.mark.parametrize("version", [0, -1, 10**9, "1", True])
def test_a_move_to_no_version_is_named(root: str, adapter: str, version: object) -> None:
    registry = Registry(root)
    registry.publish(adapter, "acme", "news")
    registry.promote("acme/news@1", "production")
    uri = domain(root).uri("aliases", "production", f"{key(1)}.json")
    content = json.loads(storage.read_bytes(uri))
    storage.write_bytes(uri, json.dumps({**content, "version": version}).encode())
    with pytest.raises(StorageError, match=f"^{uri} "):
        Registry(root).resolve("acme/news@production")


def test_a_root_must_be_one() -> None:
    for wrong in ("", "/"):
        with pytest.raises(SettingsError, match="is no registry"):
            Registry(wrong)
    with pytest.raises(RaytagError, match="give a path or s3://bucket/key"):
        Registry("gs://bucket").domains("acme")
