"""From nothing to a job: the documented commands on hosts of their own, and whom they refuse."""

import json
import subprocess
import urllib.error
import urllib.request

import psutil
import pytest
from hosts import Host
from ray_hosts import DASHBOARD, GCS, IMAGE, RAY, RayHosts, finished

from waiting import until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

WHERE = """
import json, ray, socket
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On
ray.init()

@ray.remote(num_cpus=0)
def where():
    return socket.gethostname()

alive = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
places = [where.options(scheduling_strategy=On(node, soft=False)).remote() for node in alive]
print(json.dumps([socket.gethostname(), *sorted(ray.get(places))]))
"""


@pytest.fixture
def whole(hosts: RayHosts) -> RayHosts:
    """Three hosts: the head and two workers."""
    hosts.have_workers(2)
    return hosts


def test_a_job_of_the_client_runs_on_all_three_hosts(whole: RayHosts) -> None:
    said = finished(whole.submit("--", "python", "-c", WHERE))
    places = json.loads(next(line for line in said.splitlines() if line.startswith("[")))
    assert places == ["head", "head", *sorted(worker.name for worker in whole.workers)]


def test_what_the_image_says_reaches_the_head_and_every_raylet(whole: RayHosts) -> None:
    assert {name for name in IMAGE if "health_check" in name}
    for host in (whole.head, *whole.workers):
        there = {one.name(): one for one in psutil.process_iter() if host.has(one.pid)}
        assert ("gcs_server" in there) == (host is whole.head)
        for name in there.keys() & {"gcs_server", "raylet"}:
            assert IMAGE.items() <= there[name].environ().items(), f"{name} of {host.name}"
        assert "raylet" in there


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": ""}, "Missing authentication token"),
        ({"RAY_AUTH_TOKEN": "f" * 64}, "Invalid authentication token"),
    ],
    ids=["none", "another"],
)
def test_without_the_token_a_job_is_refused(
    whole: RayHosts, variables: dict[str, str], said: str
) -> None:
    before = whole.ask("/api/jobs/")
    job = whole.submit("--", "python", "-c", "print('in')", **variables)
    heard, _ = job.communicate(timeout=60)
    assert job.returncode != 0
    assert said in heard
    assert whole.ask("/api/jobs/") == before


def test_a_host_with_another_token_cannot_join(whole: RayHosts) -> None:
    stranger = whole.network.add("stranger")
    joined = stranger.start(
        [RAY, "start", f"--address={whole.head.address}:{GCS}", "--block"],
        {**whole.variables, "RAY_AUTH_TOKEN": "f" * 64},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    said, _ = joined.communicate(timeout=120)
    assert joined.returncode != 0
    assert "InvalidAuthToken" in said
    stranger.kill()
    assert stranger.address not in whole.alive()


def test_the_dashboard_answers_on_the_head_alone(whole: RayHosts) -> None:
    def status(host: Host, address: str) -> int:
        with host.network():
            try:
                url = f"http://{address}:{DASHBOARD}/api/jobs/"
                return urllib.request.urlopen(url, timeout=10).status
            except urllib.error.HTTPError as error:
                return error.code

    assert status(whole.head, "127.0.0.1") == 401
    with pytest.raises(urllib.error.URLError, match="refused"):
        status(whole.client, whole.head.address)


def test_a_host_that_is_killed_is_noticed_and_can_be_replaced(whole: RayHosts) -> None:
    lost = whole.workers[0]
    whole.kill(lost)
    assert until(lambda: lost.address not in whole.alive(), 60) < 30
    whole.have_workers(2)
    assert lost.address not in whole.alive()
