"""cluster.yaml is what Ray's launcher takes, against an AWS on loopback (moto), and what a user was
promised: closed, told apart, sized as it says."""

import copy
import logging
import re
import shlex
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from moto.server import ThreadedMotoServer
from ray.autoscaler._private.commands import _bootstrap_config
from ray.autoscaler._private.providers import _get_node_provider
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.tags import TAG_RAY_NODE_NAME, TAG_RAY_USER_NODE_TYPE
from ray.autoscaler.v2.event_logger import AutoscalerEventLogger
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil

from raytag.model.files import USUALLY

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = ("head_start_ray_commands", "worker_start_ray_commands")
MARKET = "ray.io/market-type"


def written() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))


def groups(config: dict[str, Any]) -> dict[str, Any]:
    types = config["available_node_types"]
    return {name: types[name] for name in types if name != config["head_node_type"]}


def started(config: dict[str, Any], commands: str) -> list[str]:
    """The words of the command that starts Ray."""
    (command,) = [one for one in config[commands] if " ray start " in one]
    return shlex.split(command)


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A security group of an account on loopback, which this process's AWS calls go to."""
    home = tmp_path_factory.mktemp("home")
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text("0" * 64, encoding="utf-8")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("HOME", str(home))  # the launcher keeps its SSH key there
            # It keeps the first credentials that it finds.
            patch.setattr(boto3, "DEFAULT_SESSION", None)
            patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
            patch.setenv("AWS_ACCESS_KEY_ID", "anyone")
            patch.setenv("AWS_SECRET_ACCESS_KEY", "anything")
            patch.setenv("AWS_DEFAULT_REGION", written()["provider"]["region"])
            ec2 = boto3.client("ec2")
            (vpc,) = ec2.describe_vpcs()["Vpcs"]
            made = ec2.create_security_group(
                GroupName="raytag", Description="closed", VpcId=vpc["VpcId"]
            )
            for role in ("raytag-head", "raytag-worker"):
                boto3.client("iam").create_instance_profile(InstanceProfileName=role)
            yield made["GroupId"]
    finally:
        server.stop()


@pytest.fixture(scope="module")
def config(aws: str) -> dict[str, Any]:
    """As `ray up` has it when it launches the head: the account's own names put in."""
    own = written()
    (image,) = boto3.client("ec2").describe_images(
        Filters=[{"Name": "architecture", "Values": ["x86_64"]}], MaxResults=5
    )["Images"][:1]
    for group in own["available_node_types"].values():
        group["node_config"]["SecurityGroupIds"] = [aws]
        group["node_config"]["ImageId"] = image["ImageId"]
    return _bootstrap_config(own, no_config_cache=True)


def test_rays_validator_takes_it() -> None:
    prepared = prepare_config(written())
    validate_config(prepared)
    with pytest.raises(Exception, match="Additional properties"):
        validate_config({**prepared, "max_worker": 3})


def test_the_launcher_finds_all_it_needs_on_aws(config: dict[str, Any], aws: str) -> None:
    for name, group in config["available_node_types"].items():
        node = group["node_config"]
        assert node["SecurityGroupIds"] == [aws], name
        assert len(node["SubnetIds"]) == 3, "a subnet in each zone"
    # Ray makes a group that is open to SSH from anywhere where none is named.
    names = [
        g["GroupName"] for g in boto3.client("ec2").describe_security_groups()["SecurityGroups"]
    ]
    assert not [name for name in names if name.startswith("ray-autoscaler")]


def test_ray_knows_what_the_machines_have(config: dict[str, Any]) -> None:
    """Found by Ray in AWS's own list of instance types, as far as moto's copy holds it."""
    types = config["available_node_types"]
    assert types["head"]["resources"]["CPU"] == 0
    assert "GPU" not in types["head"]["resources"]
    assert types["head"]["max_workers"] == 0
    for name, gpus, kind in (
        ("l4_on_demand", 4, "L4"),
        ("l4_spot", 4, "L4"),
        ("h100_spot", 8, "H100"),
    ):
        assert types[name]["resources"]["GPU"] == gpus
        assert types[name]["resources"][f"accelerator_type:{kind}"] == 1
        assert types[name]["resources"]["CPU"] >= 2 * gpus


@pytest.mark.parametrize("name", ["l4_on_demand", "l4_spot", "h100_spot"])
def test_aws_takes_the_machines_as_ray_asks_for_them(config: dict[str, Any], name: str) -> None:
    provider = _get_node_provider(config["provider"], f"launched-{name.replace('_', '-')}")
    node = copy.deepcopy(config["available_node_types"][name]["node_config"])
    tags = {TAG_RAY_USER_NODE_TYPE: name, TAG_RAY_NODE_NAME: name}
    (instance,) = provider.create_node(node, tags, 1)
    spot = config["available_node_types"][name]["labels"][MARKET] == "spot"
    assert name.endswith("spot") == spot
    (seen,) = boto3.client("ec2").describe_instances(InstanceIds=[instance])["Reservations"][0][
        "Instances"
    ]
    assert (seen.get("InstanceLifecycle") == "spot") == spot
    assert seen["IamInstanceProfile"]["Arn"].endswith("/raytag-worker")


def machines(config: dict[str, Any], demands: list[Any]) -> dict[str, int]:
    """Which machines Ray's autoscaler would launch for these demands, group by group."""
    read = AutoscalingConfig(config, skip_content_hash=True)
    reply = ResourceDemandScheduler(AutoscalerEventLogger(logging.getLogger())).schedule(
        SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs=read.get_node_type_configs(),
            max_num_nodes=read.get_max_num_nodes() - 1,  # which counts the head
            resource_requests=ResourceRequestUtil.group_by_count(demands),
        )
    )
    counts: Counter[str] = Counter()
    for launch in reply.to_launch:
        counts[launch.instance_type] += launch.count
    return dict(counts)


def test_nothing_is_launched_that_nobody_asked_for(config: dict[str, Any]) -> None:
    assert machines(config, []) == {}
    assert machines(config, [ResourceRequestUtil.make({"CPU": 1, "GPU": 1})]) == {"l4_spot": 1}


def test_a_cluster_that_serves_can_do_without_spot(config: dict[str, Any]) -> None:
    calm = copy.deepcopy(config)
    calm["available_node_types"]["l4_spot"]["max_workers"] = 0
    asked = [ResourceRequestUtil.make({"CPU": 1, "GPU": 1})] * 8
    assert machines(calm, asked) == {"l4_on_demand": 2}


def test_spot_machines_are_asked_for_first(config: dict[str, Any]) -> None:
    workers = [ResourceRequestUtil.make({"CPU": 1, "GPU": 1})] * 8
    assert machines(config, workers) == {"l4_spot": 2}


def test_a_kind_of_gpu_is_had_by_its_name(config: dict[str, Any]) -> None:
    enabled = copy.deepcopy(config)
    enabled["available_node_types"]["h100_spot"]["max_workers"] = 1
    asked = {"CPU": 1, "GPU": 1, "accelerator_type:H100": 0.001}
    found = machines(enabled, [ResourceRequestUtil.make(asked)] * 8)
    assert found == {"h100_spot": 1}
    # Why the group is off: who names no kind gets the largest machine that can be filled.
    assert "h100_spot" in machines(enabled, [ResourceRequestUtil.make({"CPU": 1, "GPU": 1})] * 12)
    assert config["available_node_types"]["h100_spot"]["max_workers"] == 0
    asked = {"CPU": 1, "GPU": 1, "accelerator_type:L4": 0.001}
    found = machines(enabled, [ResourceRequestUtil.make(asked)] * 8)
    assert found == {"l4_spot": 2}


def test_work_that_must_not_be_on_spot_can_say_so(config: dict[str, Any]) -> None:
    spot = [[(MARKET, 1, ["on-demand"])]]
    asked = ResourceRequestUtil.make({"CPU": 1, "GPU": 1}, label_selectors=spot)
    assert machines(config, [asked] * 8) == {"l4_on_demand": 2}


def test_a_demand_without_bound_stays_within_what_was_allowed(config: dict[str, Any]) -> None:
    found = machines(config, [ResourceRequestUtil.make({"CPU": 1, "GPU": 1})] * 500)
    assert sum(found.values()) == config["max_workers"]
    for name, count in found.items():
        assert count <= config["available_node_types"][name]["max_workers"]


def test_every_node_is_closed() -> None:
    own = written()
    for commands in COMMANDS:
        words = started(own, commands)
        assert "RAY_AUTH_MODE=token" in words
    assert "--dashboard-host=127.0.0.1" in started(own, COMMANDS[0])
    # The token reaches the head from the user, and from there every worker, where Ray looks for it.
    assert own["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}
    assert not re.search(r"0\.0\.0\.0", (ROOT / "cluster.yaml").read_text(encoding="utf-8"))


def test_every_machine_has_its_role_and_a_place_of_its_own() -> None:
    own = written()
    for name, group in own["available_node_types"].items():
        node = group["node_config"]
        head = name == own["head_node_type"]
        assert node["IamInstanceProfile"] == {"Name": f"raytag-{'head' if head else 'worker'}"}
        assert node["SecurityGroupIds"], "Ray would make one, open to SSH from anywhere"
        assert node["MetadataOptions"] == {"HttpTokens": "required", "HttpPutResponseHopLimit": 1}
        assert all(disk["Ebs"]["Encrypted"] for disk in node["BlockDeviceMappings"])
    spot = {name for name, g in groups(own).items() if g["labels"][MARKET] == "spot"}
    assert spot == {
        name for name, g in groups(own).items() if "InstanceMarketOptions" in g["node_config"]
    }


def test_models_stay_on_the_machines_disk_and_in_a_folder_of_the_users() -> None:
    own = written()
    options = [shlex.split(option) for option in own["docker"]["run_options"]]
    mounted = dict(words[1].split(":")[::-1] for words in options if words[0] == "--volume")
    assert USUALLY.replace("~", "/home/ray").startswith("/home/ray/.cache/raytag/")
    assert mounted.keys() == {"/home/ray/.cache/huggingface", "/home/ray/.cache/raytag"}
    (made,) = [c for c in own["initialization_commands"] if c.startswith("mkdir -p ")]
    assert {*made.split()[2:]} == {*mounted.values()}
    # Above them Docker would make what is missing root's.
    (command,) = re.findall(r"install --directory .*", (ROOT / "Dockerfile").read_text())
    assert "/home/ray/.cache" in command.split()


def test_the_image_is_the_projects_and_never_moves() -> None:
    from raytag import __version__

    image = written()["docker"]["image"]
    assert image.endswith(f"/raytag:{__version__}-gpu")
