"""Names that want to be elsewhere: none leaves its prefix, none makes a file."""

import random
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from raytag import storage
from raytag.errors import RaytagError, SettingsError
from raytag.registry.names import Ref, check_name, check_word
from raytag.registry.registry import Registry

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

HOSTILE = [
    *("", ".", "..", "...", "a..b", "../x", "/x", "//", "x/", "x/..", "x/../y", "~", "~root"),
    *("/etc/passwd", "file:///etc", "s3://other/x", "C:\\x", "..\\x", "\\\\host\\x", "a\\b"),
    *("%2e%2e", "%2e", "%2f", "a%2fb", "%252e", "..%2f", "%00", "a%00b", "&#46;", "\\x2e\\x2e"),
    *("\0", "a\0", "a\0b", "\n", "a\n", "a\r", "\ta", "a ", " a", "a b", "\x7f", "\x1b[2J", "\b"),
    *("аcme", "acmе", "ａｃｍｅ", "acme\u200b", "\u202eacme", "a\u2024\u2024b", "a∕b", "a／b"),
    *("‥", "．．", "acme\ufeff", "é", "e\u0301", "ſ", "K", "İ", "١", "１", "𝟏", "\ud800", "🙂"),
    *("ACME", "Acme", "-a", "a-", "_a", "a_", ".a", "a.", ".probe-x", "*", "?", "[a]", "$HOME"),
    *("`id`", "$(id)", "a;b", "a|b", "a&b", "a'b", 'a"b', "a<b", "a:b", "a,b", "a=b", "a#b", "a+b"),
    *("a" * 64, "a" * 10_000, "a/" * 500, "../" * 50, "\0" * 99, "a" * 63 + "\n"),
]


def hostile(count: int) -> list[str]:
    """These, and others put together from their parts and good names."""
    chance = random.Random(0)
    names = list(dict.fromkeys(HOSTILE))
    while len(names) < count:
        name = "".join(chance.choices([*HOSTILE, "acme", "1", "-"], k=chance.randint(2, 4)))
        if name not in names and not is_plain(name):
            names.append(name)
    return names


def is_plain(name: str) -> bool:
    """Said otherwise than the code says it."""
    good = set("abcdefghijklmnopqrstuvwxyz0123456789")
    ends = bool(name) and name[0] in good and name[-1] in good
    return ends and set(name) <= good | set("._-") and ".." not in name and len(name) < 64


def test_five_hundred_hostile_names_reach_no_storage(
    root: str, adapter: str, request: pytest.FixtureRequest
) -> None:
    registry = Registry(root)
    registry.publish(adapter, "acme", "news")
    before = everything(root, request)
    for name in hostile(500):
        for do in (
            lambda name=name: registry.publish(adapter, name, "news"),
            lambda name=name: registry.publish(adapter, "acme", name),
            lambda name=name: registry.promote("acme/news@1", name),
            lambda name=name: registry.tag("acme/news@1", name),
            lambda name=name: registry.resolve(f"{name}/news@1"),
            lambda name=name: registry.resolve(f"acme/{name}@1"),
            lambda name=name: registry.resolve(f"acme/news@{name}"),
            lambda name=name: registry.resolve(name),
            lambda name=name: registry.domains(name),
            lambda name=name: registry.versions("acme", name),
            lambda name=name: registry.gc(name, lease=-1),
            lambda name=name: registry.gc("acme", name, lease=-1),
            lambda name=name: registry.delete(f"acme/{name}@1"),
            lambda name=name: registry.rollback(f"acme/news@{name}"),
        ):
            with pytest.raises(SettingsError) as caught:
                do()
            said = str(caught.value)
            assert said.isprintable()
            assert len(said) < 400
    assert everything(root, request) == before


def everything(root: str, request: pytest.FixtureRequest) -> list[str]:
    """All that is there, around the registry too."""
    if "://" not in root:
        return storage.list_files(Path(root).parents[1])
    client: S3Client = request.getfixturevalue("s3")
    buckets = [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]
    return buckets + storage.list_files(f"s3://{root.split('/')[2]}")


def test_a_bad_name_is_told_before_storage_is_asked() -> None:
    nowhere = Registry("s3://no-such-bucket/x")
    with pytest.raises(SettingsError, match=r"^'..' is no tenant name; take up to 63 of a-z"):
        nowhere.publish("no-such-folder", "..", "news")
    with pytest.raises(SettingsError, match=r"^'ac\\u043ce' is no tenant name"):
        nowhere.resolve("acмe/news@1")
    with pytest.raises(SettingsError, match="'12' is no alias name; it needs a letter"):
        nowhere.promote("acme/news@1", "12")


def test_good_names_are_good() -> None:
    for name in ("a", "7", "acme", "a.b-c_d", "a" * 63, "0-0", "x--y", "x.-.y"):
        assert check_name("tenant", name) == name
    assert check_word("alias", "v2") == "v2"
    assert Ref.parse("acme/news@3") == Ref("acme", "news", 3)
    assert Ref.parse("acme/news@production") == Ref("acme", "news", "production")
    assert str(Ref.parse("acme/bio.med@v1")) == "acme/bio.med@v1"
    for wrong in ("acme/news", "acme@1", "acme/news@", "acme/news@0", "acme/news@03", "a/b/c@1"):
        with pytest.raises(SettingsError):
            Ref.parse(wrong)
    for number in (0, -1, 10**8):
        with pytest.raises(SettingsError, match="is no version number"):
            Ref("acme", "news", number)


@pytest.mark.parametrize(
    "link", ["acme", "acme/news", "acme/news/versions", "acme/news/uploads", "acme/news/aliases"]
)
def test_a_symbolic_link_below_the_root_is_not_followed(
    tmp_path: Path, adapter: str, link: str
) -> None:
    outside = tmp_path / "outside"
    registry = Registry(str(tmp_path / "registry"))
    Registry(str(outside)).publish(adapter, "acme", "news")
    Registry(str(outside)).promote("acme/news@1", "production")
    before = storage.list_files(outside)
    place = tmp_path / "registry" / link
    place.parent.mkdir(parents=True)
    place.symlink_to(outside / link)
    said = []
    for do in (
        lambda: registry.publish(adapter, "acme", "news"),
        lambda: registry.promote("acme/news@1", "staging"),
        lambda: registry.versions("acme", "news"),
        lambda: registry.gc("acme", "news", lease=-1),
    ):
        try:
            do()
        except RaytagError as exc:
            said.append(str(exc))
    assert any("a symbolic link stands in this path" in line for line in said)
    assert storage.list_files(outside) == before


def test_a_root_may_be_reached_by_a_link(tmp_path: Path, adapter: str) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    Registry(str(tmp_path / "link")).publish(adapter, "acme", "news")
    assert Registry(str(tmp_path / "real")).resolve("acme/news@1").number == 1
