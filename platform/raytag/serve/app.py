"""One serving application: which deployments it has, and how it is started.

Knows Ray Serve; the work is done in ``engine.py``, ``ingress.py`` and ``switchboard.py``.
"""

import math
import signal
import threading
from collections.abc import Mapping
from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.config import ProxyLocation

from raytag.arguments import settings_from
from raytag.cluster import check_closed, connect, nodes
from raytag.model.base import find_base
from raytag.placement import Seat, find_seat
from raytag.serve.engine import Engine
from raytag.serve.http import check_port
from raytag.serve.ingress import Ingress
from raytag.serve.settings import ServeSettings
from raytag.serve.switchboard import Switchboard

NAME = "raytag"
ONGOING_PER_REPLICA = 16.0
"""Requests under way at each model that autoscaling aims at."""
MANY = 1_000_000
"""More than there can be: ingresses and engines turn requests away themselves, and say why."""
START_SECONDS = 600.0
ON_THE_HEAD = {"node:__internal_head__": 0.001}
"""The resource by which Ray knows the head of a cluster."""


def application(settings: ServeSettings, seat: Seat, hosts: int) -> Application:
    """The deployments of one application, bound to each other, for a cluster of so many hosts;
    each model takes a seat."""
    low, high = settings.replica_range
    quiet = {"enable_access_log": False}  # an ingress writes its own line for each request
    engine = serve.deployment(
        max_ongoing_requests=MANY,
        autoscaling_config={
            "min_replicas": low,
            "max_replicas": high,
            "target_ongoing_requests": ONGOING_PER_REPLICA,
        },
        ray_actor_options=seat.options,
        health_check_period_s=2,
        graceful_shutdown_timeout_s=2 * settings.timeout,
        logging_config=quiet,
    )(Engine).bind(settings)
    switchboard = serve.deployment(
        num_replicas=1,
        max_ongoing_requests=MANY,
        # Where Serve's controller is: were it on another host, that one's silence would last
        # longer than a lease, and no ingress could answer meanwhile.
        ray_actor_options={"num_cpus": 0, "resources": ON_THE_HEAD},
        health_check_period_s=0.5,  # nobody stands in for it: its end is to be noticed soon
        # A redeployment ends it before its successor begins, whatever it is doing: while two of
        # them grant leases, neither knows what the other's ingresses use.
        graceful_shutdown_timeout_s=0,
        logging_config=quiet,
    )(Switchboard).bind(settings, engine)
    return serve.deployment(
        num_replicas=settings.ingresses,
        # They ask for no CPU, so Serve may put all of them on one host, which may die.
        max_replicas_per_node=math.ceil(settings.ingresses / hosts),
        max_ongoing_requests=MANY,
        ray_actor_options={"num_cpus": 0},
        health_check_period_s=2,
        graceful_shutdown_timeout_s=2 * settings.timeout,
        logging_config=quiet,
    )(Ingress).bind(settings, engine, switchboard)


def build(arguments: Mapping[str, Any]) -> Application:
    """For ``serve deploy`` and ``serve run``: the settings are the application's ``args``."""
    settings = settings_from(ServeSettings, arguments)
    check_closed()
    return _placed(settings)


def run(settings: ServeSettings) -> None:
    """Start the application on the Ray cluster at hand; with ``wait``, serve until stopped.

    Raises RaytagError for whatever the user can mend.
    """
    check_port(settings.host, settings.port)
    connect("serve.py")
    placed = _placed(settings)
    serve.start(proxy_location=ProxyLocation.Disabled)
    serve.run(placed, name=NAME, route_prefix="/")
    print(f"serving on http://{settings.host}:{settings.port} (docs at /docs)", flush=True)
    if not settings.wait:
        return
    stopped = threading.Event()
    for sign in (signal.SIGTERM, signal.SIGINT):
        signal.signal(sign, lambda *_: stopped.set())
    stopped.wait()
    print("stopping: what is under way is answered first", flush=True)
    serve.shutdown()


def _placed(settings: ServeSettings) -> Application:
    """The application for the cluster at hand. Raises RaytagError where there is no such base, or
    no room for the fewest models."""
    find_base(settings.base, weights=False)
    seat = find_seat(settings, settings.replica_range[0], "model")
    return application(settings, seat, len(nodes()))
