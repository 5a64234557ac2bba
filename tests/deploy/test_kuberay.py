"""The manifests for KubeRay: only fields that the operator knows, the same cluster, image and serve
config everywhere, closed and not root, and commands that the jobs' own parsers take.

The operator's whole schema is a megabyte of Kubernetes' pod template; what is used of it stands
here, field by field, as KubeRay's ``ray.io/v1`` types and Kubernetes' have it.
"""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from ray.serve.schema import ServeDeploySchema

from image import environment, stages
from raytag import __version__
from raytag.arguments import read_settings, settings_from
from raytag.bulk.settings import TagSettings
from raytag.model.files import USUALLY
from raytag.serve.settings import ServeSettings
from raytag.train.settings import FinetuneSettings

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy" / "kuberay"
FILES = ("finetune", "tag", "serve")

STRINGS = {"*": str}
RESOURCES = {"limits": STRINGS, "requests": STRINGS}
CONTAINER_SECURITY = {"allowPrivilegeEscalation": bool, "capabilities": {"drop": [str]}}
CONTAINER = {
    "name": str,
    "image": str,
    "securityContext": CONTAINER_SECURITY,
    "envFrom": [{"secretRef": {"name": str}}],
    "resources": RESOURCES,
    "volumeMounts": [{"name": str, "mountPath": str}],
}
TEMPLATE = {
    "spec": {
        "automountServiceAccountToken": bool,
        "securityContext": {
            "runAsNonRoot": bool,
            "runAsUser": int,
            "runAsGroup": int,
            "fsGroup": int,
            "seccompProfile": {"type": str},
        },
        "tolerations": [{"key": str, "operator": str, "effect": str}],
        "nodeSelector": STRINGS,
        "terminationGracePeriodSeconds": int,
        "containers": [CONTAINER],
        "volumes": [{"name": str, "emptyDir": {"medium": str, "sizeLimit": str}}],
    }
}
CLUSTER = {
    "rayVersion": str,
    "authOptions": {"mode": str, "secretName": str},
    "enableInTreeAutoscaling": bool,
    "autoscalerOptions": {
        "version": str,
        "idleTimeoutSeconds": int,
        "securityContext": CONTAINER_SECURITY,
    },
    "headGroupSpec": {"rayStartParams": STRINGS, "template": TEMPLATE},
    "workerGroupSpecs": [
        {
            "groupName": str,
            "replicas": int,
            "minReplicas": int,
            "maxReplicas": int,
            "labels": STRINGS,
            "rayStartParams": STRINGS,
            "template": TEMPLATE,
        }
    ],
}
SPECS = {
    "RayJob": {
        "entrypoint": str,
        "backoffLimit": int,
        "submissionMode": str,
        "shutdownAfterJobFinishes": bool,
        "ttlSecondsAfterFinished": int,
        "rayClusterSpec": CLUSTER,
    },
    "RayService": {
        "upgradeStrategy": {"type": str},
        "serveConfigV2": str,
        "rayClusterConfig": CLUSTER,
    },
}


def manifest(name: str) -> dict[str, Any]:
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))


def cluster(name: str) -> dict[str, Any]:
    spec = manifest(name)["spec"]
    return spec.get("rayClusterSpec") or spec["rayClusterConfig"]


def pods(name: str) -> Iterator[dict[str, Any]]:
    own = cluster(name)
    for group in (own["headGroupSpec"], *own["workerGroupSpecs"]):
        yield group["template"]["spec"]


def strangers(value: Any, shape: Any, path: str) -> Iterator[str]:
    """Where a value is not of its shape: fields that are not known, and wrong types."""
    if isinstance(shape, dict) and isinstance(value, dict):
        for key, below in value.items():
            if key in shape or "*" in shape:
                yield from strangers(below, shape.get(key, shape.get("*")), f"{path}.{key}")
            else:
                yield f"{path}.{key} is not known"
    elif isinstance(shape, list) and isinstance(value, list):
        for i, below in enumerate(value):
            yield from strangers(below, shape[0], f"{path}[{i}]")
    elif not (isinstance(shape, type) and type(value) is shape):
        yield f"{path} is {value!r}"


@pytest.fixture(params=FILES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_all_files_are_looked_at() -> None:
    assert {file.stem for file in FOLDER.iterdir()} == set(FILES)


def test_the_operator_knows_every_field(name: str) -> None:
    own = manifest(name)
    assert own["apiVersion"] == "ray.io/v1"
    whole = {
        "apiVersion": str,
        "kind": str,
        "metadata": {"name": str},
        "spec": SPECS[own["kind"]],
    }
    assert list(strangers(own, whole, name)) == []
    own["spec"]["suspended"] = True
    assert list(strangers(own, whole, name)) == [f"{name}.spec.suspended is not known"]


def test_the_cluster_is_closed(name: str) -> None:
    own = cluster(name)
    assert own["authOptions"]["mode"] == "token"
    user = (ROOT / "Dockerfile").read_text(encoding="utf-8").split("USER ")[1].split(":")[0]
    for pod in pods(name):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == int(user)
        assert "hostNetwork" not in pod
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_every_secret_is_one_that_a_user_was_told_to_make(name: str) -> None:
    told = dict(
        re.findall(
            r"kubectl create secret generic (\S+) --from-literal=(\w+)=",
            (FOLDER / "finetune.yaml").read_text(encoding="utf-8"),
        )
    )
    used = {cluster(name)["authOptions"]["secretName"]}
    for pod in pods(name):
        for container in pod["containers"]:
            used |= {source["secretRef"]["name"] for source in container["envFrom"]}
    assert used == told.keys()
    assert told["raytag-token"] == "auth_token", "the name the operator looks for"
    assert told["raytag-s3"] == "AWS_ACCESS_KEY_ID"


def test_one_image_and_one_ray_everywhere(name: str) -> None:
    images = {container["image"] for pod in pods(name) for container in pod["containers"]}
    launcher = yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))
    assert images == {f"REGISTRY/raytag:{__version__}-gpu"}
    assert launcher["docker"]["image"].endswith(f"/raytag:{__version__}-gpu")
    assert cluster(name)["rayVersion"] == ray.__version__


def test_ray_starts_with_what_the_image_says(name: str) -> None:
    """The operator runs ``ray start`` in the container's own environment; nothing stands in the
    place of the image's, from which the head has how soon it misses a host."""
    said = environment(stages()["gpu"])
    assert {one for one in said if one.startswith("RAY_health_check_")}
    for pod in pods(name):
        for container in pod["containers"]:
            assert not {"command", "args"} & container.keys()
            assert not {one["name"] for one in container.get("env", [])} & said.keys()


def test_pods_get_what_they_are_allowed(name: str) -> None:
    """What is shared between neighbours is taken away when it is needed most; a GPU cannot be."""
    for pod in pods(name):
        mounted = {m["name"] for c in pod["containers"] for m in c.get("volumeMounts", [])}
        assert mounted == {volume["name"] for volume in pod.get("volumes", [])}
        for container in pod["containers"]:
            assert container["resources"]["limits"] == container["resources"]["requests"]
    workers = list(pods(name))[1:]
    assert workers
    for pod in workers:
        assert pod["automountServiceAccountToken"] is False, "only the head's autoscaler has a use"
        assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
        assert pod["nodeSelector"]["nvidia.com/gpu.product"], "kinds of GPU are told apart"
        assert "nvidia.com/gpu" in {one["key"] for one in pod["tolerations"]}
        mounts = {m["mountPath"]: m["name"] for m in pod["containers"][0]["volumeMounts"]}
        assert USUALLY.replace("~", "/home/ray").startswith("/home/ray/.cache/")
        (disk,) = [v for v in pod["volumes"] if v["name"] == mounts["/home/ray/.cache"]]
        assert disk["emptyDir"] == {}, "a limit would evict the pod before anything is thrown away"


def test_spot_is_said_where_spot_is(name: str) -> None:
    for group in cluster(name)["workerGroupSpecs"]:
        spot = group["labels"]["ray.io/market-type"] == "spot"
        pod = group["template"]["spec"]
        assert (pod["nodeSelector"].get("eks.amazonaws.com/capacityType") == "SPOT") == spot
        assert ("spot" in {one["key"] for one in pod["tolerations"]}) == spot
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    markets = {g["labels"]["ray.io/market-type"] for g in cluster(name)["workerGroupSpecs"]}
    assert markets == ({"on-demand"} if name == "serve" else {"on-demand", "spot"})


def test_both_jobs_run_on_the_same_cluster() -> None:
    assert cluster("finetune") == cluster("tag")


@pytest.mark.parametrize(("name", "kind"), [("finetune", FinetuneSettings), ("tag", TagSettings)])
def test_the_jobs_take_their_settings(name: str, kind: type) -> None:
    python, script, *arguments = shlex.split(manifest(name)["spec"]["entrypoint"])
    work = re.search(r"^WORKDIR (\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert work is not None
    assert python == "python"
    assert script == f"{work[1]}/jobs/{name}.py"
    assert (ROOT / "jobs" / f"{name}.py").exists()
    settings: Any = read_settings(kind, arguments, f"{name}.py")
    # With no GPU up yet, auto would take CPUs.
    assert settings.device == "gpu"


def test_serving_is_configured_as_everywhere() -> None:
    embedded = yaml.safe_load(manifest("serve")["spec"]["serveConfigV2"])
    deployed = yaml.safe_load((ROOT / "deploy" / "serve.yaml").read_text(encoding="utf-8"))
    assert embedded == deployed
    read = ServeDeploySchema.model_validate(embedded)
    settings_from(ServeSettings, read.applications[0].args)
