"""A serving application on the shared cluster, and adapters that it serves."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from serve_cases import STEADY, Served, write_adapter
from tiny import encoder

from driving import driving
from raytag import storage
from raytag.local import LocalCluster
from raytag.registry.registry import Registry
from raytag.serve.keys import ANY, Keys
from raytag.serve.limits import Limits
from raytag.serve.settings import ServeSettings
from s3 import free_port

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

LEASE = 2.0
TENANTS = ("acme", "globex", "small", "steady", "paper")
HERE = Path(__file__).parent


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Last of all: what is served here would take its time from all that came after."""
    items.sort(key=lambda item: item.path.is_relative_to(HERE))


@pytest.fixture(scope="package")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    base = encoder(folder / "base")
    for seed in range(16):
        write_adapter(folder / str(seed), base, seed)
    return folder


@pytest.fixture(scope="package")
def served(
    cluster: LocalCluster,
    s3: "S3Client",
    adapters: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Served]:
    """acme/news with versions 1 and 2, production and candidate; acme/other; globex/news. Tests
    publish more of acme's; small and steady have limits; paper/news is like acme/news, and stays
    so."""
    folder = tmp_path_factory.mktemp("served")
    registry = Registry(str(folder / "registry"))
    for tenant, domain, seed in (
        *(("acme", "news", 0), ("acme", "news", 2)),
        *(("acme", "other", 1), ("globex", "news", 4), ("small", "news", 0)),
        ("steady", "news", 0),
        *(("paper", "news", 0), ("paper", "news", 2)),
    ):
        registry.publish(str(adapters / str(seed)), tenant, domain)
    for name in ("acme/other", *(f"{tenant}/news" for tenant in TENANTS)):
        registry.promote(f"{name}@1", "production")
    for name in ("acme/news", "paper/news"):
        registry.promote(f"{name}@2", "candidate")
    store = Keys(str(folder / "keys"))
    keys = {tenant: store.create(tenant, "extract").text for tenant in TENANTS}
    keys["release"] = store.create("acme", "release").text
    keys["operator"] = store.create(ANY, "operator").text
    keys["wrong"] = keys["acme"][:-4] + ("AAAA" if keys["acme"][-4:] != "AAAA" else "BBBB")
    port = free_port()
    s3.create_bucket(Bucket="served")
    storage.upload_folder(adapters / "base", "s3://served/base")
    settings = ServeSettings(
        base="s3://served/base",
        registry=str(folder / "registry"),
        keys=str(folder / "keys"),
        port=port,
        replicas="1",
        ingresses=2,
        lease=LEASE,
        tenants={
            "small": Limits(requests_per_second=1, burst_seconds=2),
            "steady": Limits(requests_per_second=STEADY, burst_seconds=1),
        },
        wait=False,
    )
    with driving(cluster):
        from ray import serve

        from raytag.serve.app import run

        run(settings)
        yield Served(
            url=f"http://127.0.0.1:{port}",
            keys=keys,
            registry=registry,
            key_store=store,
            settings=settings,
            adapters=adapters,
        )
        serve.shutdown()
