"""A cluster of hosts made of namespaces, which the tests of this folder take apart and mend."""

import os
from collections.abc import Iterator

import pytest
from hosts import Network, Relay, missing
from ray_hosts import RayHosts

STORE = 9000


@pytest.fixture(scope="package")
def network() -> Iterator[Network]:
    if lack := missing():
        pytest.skip(f"no hosts here: {lack}")
    with Network() as made:
        yield made


@pytest.fixture(scope="package")
def hosts(network: Network, s3: object) -> Iterator[RayHosts]:
    """A head, and workers as tests ask for them; all of them reach the S3 server of ``s3``, at an
    address of their network."""
    store = network.add("store")
    port = int(os.environ["AWS_ENDPOINT_URL"].rpartition(":")[2])
    variables = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    variables["AWS_ENDPOINT_URL"] = f"http://{store.address}:{STORE}"
    with Relay(store.listen(STORE), [("127.0.0.1", port)]):
        made = RayHosts(network, variables)
        made.start_head()
        yield made
        made.close()
