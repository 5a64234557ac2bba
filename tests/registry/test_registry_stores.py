"""Stores that cannot hold a registry, and users who may see one tenant of it only."""

import json
import os
import threading
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from raytag import storage
from raytag.errors import StorageError
from raytag.registry.probe import ROUNDS, WRITERS, check_store
from raytag.registry.registry import Registry

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

    from ceph import Ceph

TENANTS = ("acme", "globex")


@pytest.fixture
def careless(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """An S3 server that lets every write through; the list holds the paths written to."""
    import boto3
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    answer = DomainDispatcherApplication(create_backend_app)
    turn, written = threading.Lock(), list[str]()

    def application(environ: Any, start_response: Any) -> Any:
        if environ.pop("HTTP_IF_NONE_MATCH", None):
            written.append(environ["PATH_INFO"])
        with turn:
            return answer(environ, start_response)

    server = make_server("127.0.0.1", 0, application, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "anyone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "anything")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    boto3.session.Session().client("s3").create_bucket(Bucket="careless")
    yield written
    server.shutdown()
    server.server_close()


def test_a_store_without_conditional_writes_is_refused(careless: list[str], adapter: str) -> None:
    registry = Registry("s3://careless/root")
    for _ in range(2):
        with pytest.raises(StorageError, match=r"^s3://careless/root: of 16 writers .* 16 were"):
            registry.publish(adapter, "acme", "news")
    assert storage.list_files("s3://careless") == []
    assert all("/root/acme/.probe-" in path for path in careless)
    assert len(careless) == 2 * WRITERS


def test_a_good_store_is_tried_once_and_nothing_is_left(root: str, adapter: str) -> None:
    check_store(root, "acme")
    before = check_store.cache_info()
    check_store(root, "acme")
    assert check_store.cache_info().hits == before.hits + 1
    assert storage.list_files(root) == []
    assert ROUNDS >= 5


@dataclass(frozen=True)
class Shared:
    """A registry that two users share, each with rights below one tenant only."""

    root: str
    users: Mapping[str, Mapping[str, str]]
    """By tenant, AWS variables."""
    keeps_listings: bool
    """Whether the server refuses listings by their prefix; moto does not."""


@contextmanager
def acting(user: Mapping[str, str]) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in user.items():
            patch.setenv(name, value)
        yield


def rights(bucket: str, tenant: str) -> list[dict[str, Any]]:
    """What a user needs to do everything in one tenant, and nothing elsewhere."""
    objects = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject"]
    listed = {"StringLike": {"s3:prefix": [f"root/{tenant}/*"]}}
    place = f"arn:aws:s3:::{bucket}"
    return [
        {"Effect": "Allow", "Action": objects, "Resource": f"{place}/root/{tenant}/*"},
        {"Effect": "Allow", "Action": "s3:ListBucket", "Resource": place, "Condition": listed},
    ]


def on_moto(client: "S3Client") -> Shared:
    import boto3

    endpoint, bucket = os.environ["AWS_ENDPOINT_URL"], f"shared-{uuid.uuid4().hex[:8]}"
    client.create_bucket(Bucket=bucket)
    users = {}
    for tenant in TENANTS:
        # The next three calls are let through: they make the user.
        unchecked = urllib.request.Request(
            f"{endpoint}/moto-api/reset-auth", b"3", {"Content-Type": "text/plain"}
        )
        urllib.request.urlopen(unchecked).close()
        iam = boto3.client("iam", endpoint_url=endpoint, region_name="us-east-1")
        name = f"{tenant}-{bucket}"
        iam.create_user(UserName=name)
        allowed, listing = rights(bucket, tenant)
        del listing["Condition"]  # moto would take it for never fulfilled
        policy = json.dumps({"Version": "2012-10-17", "Statement": [allowed, listing]})
        iam.put_user_policy(UserName=name, PolicyName="own", PolicyDocument=policy)
        made = iam.create_access_key(UserName=name)["AccessKey"]
        users[tenant] = {
            "AWS_ACCESS_KEY_ID": made["AccessKeyId"],
            "AWS_SECRET_ACCESS_KEY": made["SecretAccessKey"],
        }
    return Shared(f"s3://{bucket}/root", users, keeps_listings=False)


def on_ceph(store: "Ceph") -> Shared:
    import boto3

    bucket, users, statements = f"shared-{uuid.uuid4().hex[:8]}", {}, []
    for tenant in TENANTS:
        name = f"{tenant}-{bucket}"
        keys = (f"--access-key={name}", f"--secret-key={name}-secret")
        store._run("radosgw-admin", "user", "create", f"--uid={name}", "--display-name=x", *keys)
        variables = {"AWS_ACCESS_KEY_ID": name, "AWS_SECRET_ACCESS_KEY": f"{name}-secret"}
        users[tenant] = {**store.variables, **variables}
        principal = {"AWS": [f"arn:aws:iam:::user/{name}"]}
        statements += [{**right, "Principal": principal} for right in rights(bucket, tenant)]
    policy = {"Version": "2012-10-17", "Statement": statements}
    with acting(store.variables):
        owner = boto3.session.Session().client(
            "s3", endpoint_url=store.variables["AWS_ENDPOINT_URL"]
        )
        owner.create_bucket(Bucket=bucket)
        owner.put_bucket_policy(Bucket=bucket, Policy=json.dumps(policy))
    return Shared(f"s3://{bucket}/root", users, keeps_listings=True)


@pytest.fixture(params=["moto", pytest.param("ceph", marks=pytest.mark.slow)])
def shared(request: pytest.FixtureRequest, s3: "S3Client") -> Shared:
    if request.param == "moto":
        return on_moto(s3)
    return on_ceph(request.getfixturevalue("ceph"))


def test_a_user_with_rights_below_one_tenant_can_do_all_there_and_nothing_elsewhere(
    shared: Shared, adapter: str
) -> None:
    registry = Registry(shared.root)
    for own in TENANTS:
        with acting(shared.users[own]):
            registry.publish(adapter, own, "news")
            registry.publish(adapter, own, "news", training_texts=["One."])
            registry.promote(f"{own}/news@1", "production")
            registry.promote(f"{own}/news@2", "production")
            assert registry.rollback(f"{own}/news@production").version == 1
            registry.tag(f"{own}/news@1", "good")
            assert [d.domain for d in registry.domains(own)] == ["news"]
            assert len(registry.versions(own, "news")) == 2
            with storage.on_disk(registry.resolve(f"{own}/news@production").uri) as folder:
                assert len(list(Path(folder).iterdir())) == 2
            registry.verify(f"{own}/news@2")
            registry.delete(f"{own}/news@2")
            assert len(registry.gc(own, lease=-1)) == 1
    check_store.cache_clear()  # the race is run with these credentials too
    for own, other in (TENANTS, TENANTS[::-1]):
        refused = [
            lambda other=other: registry.publish(adapter, other, "news"),
            lambda other=other: registry.tag(f"{other}/news@1", "mine"),
            lambda other=other: registry.resolve(f"{other}/news@1"),
            lambda other=other: registry.promote(f"{other}/news@1", "production"),
            lambda other=other: storage.read_bytes(f"{shared.root}/{other}/x"),
            lambda: storage.write_bytes(f"{shared.root}/x", b""),
        ]
        if shared.keeps_listings:
            refused += [
                lambda other=other: registry.domains(other),
                lambda other=other: registry.versions(other, "news"),
                lambda: storage.list_files(shared.root),
            ]
        for do in refused:
            with (
                acting(shared.users[own]),
                pytest.raises(StorageError, match=r"the credentials may not .*AccessDenied"),
            ):
                do()
