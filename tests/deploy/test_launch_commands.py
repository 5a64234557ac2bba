"""cluster.yaml's own commands, word for word, on two hosts made of network namespaces: what the
launcher would send over SSH is run in a shell on each, and for AWS stands Ray's provider for one
machine."""

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
HEAD, WORKER = "10.99.0.1", "10.99.0.2"
HEAD_ID = "f" * 51 + "00000"
"""By which Ray's provider for one machine knows the head."""

HOST = """
set -e
export HOME={home}
mount -t tmpfs none /tmp/ray  # its disk is its own
ip link set lo up
until ip addr add {address}/24 dev {link} 2>/dev/null; do sleep 0.1; done
ip link set {link} up
ip route add default dev {link}
set +e  # a limit that may not be raised here ends no shell there either
{commands}
"""
BOTH = """
mkdir -p /tmp/ray
ip link add name head0 type veth peer name worker0
unshare --net --pid --mount --fork --kill-child --mount-proc bash {folder}/worker.sh &
until [ "$(readlink /proc/$!/ns/net)" != "$(readlink /proc/self/ns/net)" ]; do
    sleep 0.1
done
ip link set worker0 netns $!
exec bash {folder}/head.sh
"""
DRIVER = """
import json, os, socket, sys, time, urllib.error, urllib.request
import ray

def status(address, token=None):
    headers = {"Authorization": "Bearer " + token} if token else {}
    request = urllib.request.Request(f"http://{address}:8265/api/version", headers=headers)
    try:
        return urllib.request.urlopen(request, timeout=10).status
    except urllib.error.HTTPError as exc:
        return exc.code

def reachable(address, port):
    try:
        socket.create_connection((address, port), timeout=5).close()
        return True
    except OSError:
        return False

token = open(os.path.expanduser("~/.ray/auth_token")).read()
ray.init(address="auto", log_to_driver=False)
deadline = time.monotonic() + 120
while not any(n["Alive"] and n["NodeManagerAddress"] == sys.argv[1] for n in ray.nodes()):
    assert time.monotonic() < deadline, ray.nodes()
    time.sleep(0.5)

@ray.remote(num_cpus=0, num_gpus=1, max_retries=0)
def where():
    return ray.get_runtime_context().get_node_labels()

@ray.remote(num_cpus=0, resources={"node:" + sys.argv[1]: 0.001})
def dashboard(address):
    return reachable(address, 8265)

on_spot = where.options(label_selector={"ray.io/market-type": "spot"})
found = {
    "spot": ray.get(on_spot.remote(), timeout=150),
    "L4": ray.get(where.options(accelerator_type="L4").remote(), timeout=150),
    "head": next(n for n in ray.nodes() if "node:__internal_head__" in n["Resources"])["Resources"],
    "with token": status("127.0.0.1", token),
    "without": status("127.0.0.1"),
    "dashboard from another host": ray.get(dashboard.remote(sys.argv[2]), timeout=60),
}
with open(sys.argv[3] + ".part", "w") as file:
    json.dump(found, file)
os.rename(sys.argv[3] + ".part", sys.argv[3])
"""


def one_machine(config: dict[str, Any]) -> dict[str, Any]:
    """The same groups for Ray's provider that needs no cloud.

    Without CPUs: its nodes inherit that the head, on whose machine they are, has none.
    """
    machine = {"g6.12xlarge": {"GPU": 4, "accelerator_type:L4": 1}}
    groups = {
        name: {
            **group,
            "node_config": {},
            "resources": machine[group["node_config"]["InstanceType"]],
        }
        for name, group in config["available_node_types"].items()
        if group.get("max_workers")
    }
    head = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
    return {
        "cluster_name": config["cluster_name"],
        "max_workers": config["max_workers"],
        "idle_timeout_minutes": config["idle_timeout_minutes"],
        "provider": {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "head_node_id": HEAD_ID,
            "launch_multiple": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "available_node_types": {"ray.head.default": head, **groups},
        "head_node_type": "ray.head.default",
        **{name: config[name] for name in ("head_start_ray_commands", "worker_start_ray_commands")},
        "setup_commands": [],
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "initialization_commands": [],
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "cluster_synced_files": [],
    }


def may_make_hosts() -> bool:
    if os.geteuid() or not all(map(shutil.which, ("ip", "unshare"))):
        return False
    trial = "ip link add name one type veth peer name other && mount -t tmpfs none /mnt"
    ran = subprocess.run(["unshare", "--net", "--mount", "bash", "-c", trial], capture_output=True)
    return ran.returncode == 0


@pytest.mark.slow
def test_the_commands_bring_up_a_closed_cluster_that_grows(tmp_path: Path) -> None:
    if not may_make_hosts():
        pytest.skip("hosts are made with root, ip and unshare")
    config = yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text(secrets.token_hex(32), encoding="utf-8")
    (tmp_path / "ray_bootstrap_config.yaml").write_text(json.dumps(one_machine(config)))
    (tmp_path / "driver.py").write_text(DRIVER)
    result = tmp_path / "found.json"
    offered = json.dumps(config["available_node_types"]["head"]["resources"])
    # As the launcher does it: every command in a shell of its own, a token in the user's home.
    head = [
        f"export RAY_enable_autoscaler_v2=1 RAY_FAKE_CLUSTER=1 RAY_CLOUD_INSTANCE_ID={HEAD_ID}",
        f"export RAY_OVERRIDE_NODE_ID_FOR_TESTING={HEAD_ID} RAY_OVERRIDE_RESOURCES='{offered}'",
        *config["head_start_ray_commands"],
        "unset RAY_OVERRIDE_RESOURCES RAY_OVERRIDE_NODE_ID_FOR_TESTING RAY_CLOUD_INSTANCE_ID",
        f"RAY_AUTH_MODE=token {sys.executable} {tmp_path}/driver.py {WORKER} {HEAD} {result}",
        "sleep infinity",
    ]
    worker = [
        f"export RAY_HEAD_IP={HEAD} RAY_OVERRIDE_RESOURCES='{{\"CPU\":1}}'",
        f"until bash -c 'exec 3<>/dev/tcp/{HEAD}/6379' 2>/dev/null; do sleep 0.5; done",
        *config["worker_start_ray_commands"],
        "sleep infinity",
    ]
    for name, address, commands in (("head", HEAD, head), ("worker", WORKER, worker)):
        text = HOST.format(
            home=tmp_path, address=address, link=f"{name}0", commands="\n".join(commands)
        )
        (tmp_path / f"{name}.sh").write_text(text)
    programs = str(Path(sys.executable).parent)
    both = ["unshare", "--net", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc"]
    with (tmp_path / "log").open("wb") as log:
        hosts = subprocess.Popen(
            [*both, "bash", "-c", BOTH.format(folder=tmp_path)],
            stdout=log,
            stderr=log,
            env={
                "PATH": os.pathsep.join((programs, os.environ["PATH"])),
                "PYTHONPATH": str(ROOT / "platform"),
                "OMP_NUM_THREADS": "1",
                "LC_ALL": "C.UTF-8",
            },
        )
    try:
        deadline = time.monotonic() + 270
        while not result.exists() and time.monotonic() < deadline and hosts.poll() is None:
            time.sleep(0.5)
        assert result.exists(), (tmp_path / "log").read_text(errors="replace")[-4000:]
    finally:
        # It kills the namespaces' first process, and with that goes all that is in them.
        hosts.kill()
        hosts.wait(30)
    found = json.loads(result.read_text())
    assert found["spot"]["ray.io/market-type"] == "spot"
    assert found["L4"]["ray.io/market-type"] in {"spot", "on-demand"}
    assert "CPU" not in found["head"], "no work lands on the head"
    assert found["with token"] == 200
    assert found["without"] == 401
    assert not found["dashboard from another host"]
