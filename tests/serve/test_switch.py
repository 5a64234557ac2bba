"""The switch and the leases: every state by itself, and their promise where all goes wrong."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from switch_world import ALIASES, CHAOS, DRAIN, LEASE, RENEW, World

from raytag.errors import SettingsError
from raytag.registry.names import Ref
from raytag.serve.canary import Canary, Observed, Rule
from raytag.serve.leases import (
    NOWHERE,
    Entry,
    Grant,
    LeaseEnded,
    Leases,
    PointsNowhere,
    Renewal,
    Route,
)
from raytag.serve.switch import Status, Switch

ALIAS = Ref("acme", "news", "production")
OTHER = Ref("acme", "law", "production")
LONG_AGO = -1000.0


def version(number: int) -> Ref:
    return Ref("acme", "news", number)


class Service:
    """A switch, and ingresses that renew when told to."""

    def __init__(self, *ingresses: str, started: float = LONG_AGO) -> None:
        self.switch = Switch(10.0, started)
        self.leases = {name: Leases(drain=3.0, keep=60.0) for name in ingresses}

    def renew(self, now: float, *names: str) -> None:
        for name in names or self.leases:
            grant = self.switch.renew(name, self.leases[name].renewal(now), now)
            self.leases[name].granted(grant, now)

    def use(self, number: int, now: float, *older: int) -> None:
        """Have a version in use, live everywhere."""
        self.switch.wants(ALIAS, now)
        self.switch.observe(ALIAS, [number, *older], now)
        self.switch.loaded(version(number), now)
        self.renew(now)
        self.renew(now)
        assert self.state(now) == "live"
        assert all(self.route(name, now).version == number for name in self.leases)

    def status(self, now: float) -> Status:
        return self.switch.status(ALIAS, now)

    def state(self, now: float) -> str:
        return self.status(now).state

    def route(self, name: str, now: float) -> Route:
        route = self.leases[name].resolve(ALIAS, now)
        assert route
        return route


def test_an_alias_is_asked_for_looked_up_loaded_granted_and_live() -> None:
    service = Service("a")
    leases, switch = service.leases["a"], service.switch
    assert leases.resolve(ALIAS, 0.0) is None
    assert leases.urgent(0.0)
    service.renew(0.0)
    assert not leases.urgent(0.0)
    assert switch.tracked(0.0) == [ALIAS]
    assert service.status(0.0) == Status(version=None, wanted=None, state="loading")
    switch.observe(ALIAS, [3, 2], 0.0)
    assert switch.to_load() == [version(3)]
    assert service.status(0.0) == Status(version=None, wanted=3, state="loading")
    switch.loaded(version(3), 0.0)
    assert switch.to_load() == []
    assert service.status(0.0) == Status(version=3, wanted=3, state="switching")
    service.renew(1.0)
    assert service.route("a", 1.0).version == 3
    assert service.state(1.0) == "switching"
    assert leases.urgent(1.0)
    service.renew(1.1)
    assert service.status(1.1) == Status(version=3, wanted=3, state="live")
    assert not leases.urgent(1.1)


def test_a_move_is_live_once_every_ingress_has_confirmed_it() -> None:
    service = Service("a", "b")
    service.use(1, 0.0)
    service.switch.observe(ALIAS, [2, 1], 1.0)
    assert service.status(1.0) == Status(version=1, wanted=2, state="loading")
    service.renew(1.0)
    assert service.route("a", 1.0).version == 1
    service.switch.loaded(version(2), 2.0)
    service.renew(2.0, "a")
    service.renew(2.1, "a")
    assert service.route("a", 2.1).version == 2
    assert service.route("b", 2.1).version == 1
    assert service.state(2.1) == "switching"
    service.renew(2.2, "b")
    assert service.state(2.2) == "switching"
    service.renew(2.3, "b")
    assert service.state(2.3) == "live"


def test_an_ingress_that_joins_later_does_not_take_an_acknowledgement_back() -> None:
    service = Service("a")
    service.use(1, 0.0)
    service.leases["late"] = Leases(drain=3.0, keep=60.0)
    service.renew(1.0, "late")
    assert service.state(1.0) == "live"
    assert service.route("late", 1.0).version == 1


def test_an_ingress_that_cannot_confirm_stops_at_the_end_of_its_lease() -> None:
    service = Service("a", "b")
    service.use(1, 0.0)
    service.renew(4.0, "b")
    service.switch.observe(ALIAS, [2, 1], 5.0)
    service.switch.loaded(version(2), 5.0)
    service.renew(5.0, "a")
    service.renew(5.1, "a")
    assert service.route("b", 13.9).version == 1
    service.renew(13.9, "a")
    assert service.state(13.9) == "switching"
    with pytest.raises(LeaseEnded, match="by its number"):
        service.leases["b"].resolve(ALIAS, 14.0)
    assert service.state(14.1) == "live"


def test_an_ingress_that_is_heard_but_hears_nothing_does_not_hold_up_a_move() -> None:
    service = Service("a")
    service.use(1, 0.0)
    service.switch.observe(ALIAS, [2, 1], 1.0)
    service.switch.loaded(version(2), 1.0)
    for now in range(2, 12):
        assert service.state(now) == "switching"
        service.switch.renew("a", service.leases["a"].renewal(now), now)
    assert service.state(11.1) == "live"
    with pytest.raises(LeaseEnded):
        service.leases["a"].resolve(ALIAS, 10.0)


def test_an_ingress_that_has_left_is_not_waited_for() -> None:
    service = Service("a", "b")
    service.use(1, 0.0)
    service.switch.observe(ALIAS, [2, 1], 1.0)
    service.switch.loaded(version(2), 1.0)
    service.renew(1.0, "a")
    service.renew(1.1, "a")
    assert service.state(1.1) == "switching"
    service.switch.leave("b")
    assert service.state(1.1) == "live"


def test_what_is_in_flight_is_let_finish_before_a_move_is_confirmed() -> None:
    service = Service("a")
    service.use(1, 0.0)
    leases = service.leases["a"]
    route = service.route("a", 0.0)
    with leases.use(route):
        service.switch.observe(ALIAS, [2, 1], 1.0)
        service.switch.loaded(version(2), 1.0)
        service.renew(1.0)
        service.renew(1.1)
        assert service.route("a", 1.1).version == 2
        assert leases.may_answer(route, 1.1)
        assert not leases.urgent(1.1)
        assert service.state(1.1) == "switching"
    assert leases.urgent(1.2)
    service.renew(1.2)
    assert service.state(1.2) == "live"
    assert not leases.may_answer(route, 1.2)


def test_what_lingers_loses_its_answer_and_the_move_is_confirmed() -> None:
    service = Service("a")
    service.use(1, 0.0)
    leases = service.leases["a"]
    route = service.route("a", 0.0)
    with leases.use(route):
        service.switch.observe(ALIAS, [2, 1], 1.0)
        service.switch.loaded(version(2), 1.0)
        service.renew(1.0)
        service.renew(3.9)
        assert service.state(3.9) == "switching"
        assert leases.may_answer(route, 3.9)
        assert not leases.may_answer(route, 4.0)
        service.renew(4.0)
        assert service.state(4.0) == "live"


def test_what_lost_its_answer_does_not_get_it_back_by_the_next_move() -> None:
    service = Service("a")
    service.use(1, 0.0)
    leases = service.leases["a"]
    old = service.route("a", 0.0)
    with leases.use(old):
        for number, now in ((2, 1.0), (3, 5.0)):
            service.switch.observe(ALIAS, list(range(number, 0, -1)), now)
            service.switch.loaded(version(number), now)
            service.renew(now)
            service.renew(now + 3.5)
            assert service.state(now + 3.5) == "live"
        service.switch.observe(ALIAS, [4, 3, 2, 1], 9.0)
        service.switch.loaded(version(4), 9.0)
        newer = service.route("a", 9.0)
        service.renew(9.0)
        assert leases.may_answer(newer, 9.0)
        assert not leases.may_answer(old, 9.0)


def test_a_lost_lease_voids_what_was_in_flight_under_it() -> None:
    service = Service("a")
    service.use(1, 0.0)
    leases = service.leases["a"]
    route = service.route("a", 0.0)
    with leases.use(route):
        assert leases.may_answer(route, 9.9)
        assert not leases.may_answer(route, 10.0)
        service.switch.observe(ALIAS, [2, 1], 10.5)
        service.switch.loaded(version(2), 10.5)
        assert service.state(10.5) == "live"
        service.renew(11.0)
        assert service.route("a", 11.0).version == 2
        assert not leases.may_answer(route, 11.0)


def test_a_lease_runs_from_when_the_renewal_was_sent() -> None:
    service = Service("a")
    service.use(1, 0.0)
    leases = service.leases["a"]
    renewal = leases.renewal(5.0)
    leases.granted(service.switch.renew("a", renewal, 8.0), 9.0)
    assert service.route("a", 14.9).version == 1
    assert leases.alive(14.9)
    assert not leases.alive(15.0)
    with pytest.raises(LeaseEnded):
        leases.resolve(ALIAS, 15.0)


def test_the_answer_to_an_earlier_renewal_is_left_and_the_last_counts_once() -> None:
    service = Service("a")
    service.use(1, 0.0)
    leases = service.leases["a"]
    late = service.switch.renew("a", leases.renewal(1.0), 1.0)
    service.switch.observe(ALIAS, [2, 1], 1.0)
    service.switch.loaded(version(2), 1.0)
    last = service.switch.renew("a", leases.renewal(2.0), 2.0)
    leases.granted(last, 2.1)
    leases.granted(late, 2.2)
    leases.granted(replace(last, table=late.table), 2.3)
    assert service.route("a", 2.3).version == 2


def test_a_confirmation_of_an_earlier_move_to_the_same_version_does_not_count() -> None:
    service = Service("a")
    service.use(1, 0.0)
    early = service.leases["a"].renewal(1.0)
    for log in ([2, 1], [1, 2, 1]):
        service.switch.observe(ALIAS, log, 2.0)
        service.switch.loaded(version(log[0]), 2.0)
        service.renew(2.0)
        service.switch.renew("a", early, 2.0)
        assert service.state(2.0) == "switching"
    service.switch.renew("a", replace(early, number=99), 2.0)
    assert service.state(2.0) == "switching"


def test_an_ingress_the_switch_forgot_comes_back_as_a_new_one() -> None:
    service = Service("a", "b")
    service.use(1, 0.0)
    service.renew(50.0)
    assert service.route("b", 50.0).version == 1
    grant = service.switch.renew("a", service.leases["a"].renewal(50.0), 50.0)
    assert grant.ingresses == 2
    grant = service.switch.renew("a", service.leases["a"].renewal(60.1), 60.1)
    assert grant.ingresses == 1


def test_a_version_that_does_not_load_leaves_the_alias_at_the_old_one() -> None:
    service = Service("a")
    service.use(1, 0.0)
    service.switch.observe(ALIAS, [2, 1], 1.0)
    service.switch.refused(version(2), "a tensor is missing", 1.0)
    refused = Status(version=1, wanted=2, state="refused", reason="a tensor is missing")
    assert service.status(1.0) == refused
    assert service.switch.to_load() == []
    service.switch.observe(ALIAS, [2, 1], 2.0)
    service.renew(2.0)
    assert service.switch.to_load() == []
    assert service.route("a", 2.0).version == 1


def test_a_refused_version_is_tried_again_by_a_new_move_or_when_told_to() -> None:
    service = Service("a")
    service.use(1, 0.0)
    service.switch.observe(ALIAS, [2, 1], 1.0)
    service.switch.refused(version(2), "broken", 1.0)
    service.switch.retry(ALIAS, 2.0)
    assert service.switch.to_load() == [version(2)]
    assert service.state(2.0) == "loading"
    service.switch.refused(version(2), "still broken", 3.0)
    assert service.status(3.0).reason == "still broken"
    service.switch.observe(ALIAS, [1, 2, 1], 4.0)
    assert service.status(4.0) == Status(version=1, wanted=1, state="live")
    service.switch.observe(ALIAS, [2, 1, 2, 1], 5.0)
    assert service.switch.to_load() == [version(2)]


def test_a_move_away_and_back_between_two_looks_is_a_move() -> None:
    service = Service("a")
    service.use(1, 0.0)
    service.switch.observe(ALIAS, [2, 1], 1.0)
    service.switch.refused(version(2), "broken", 1.0)
    service.switch.observe(ALIAS, [2, 1, 2, 1], 2.0)
    assert service.switch.to_load() == [version(2)]


def test_the_deletion_of_an_old_version_is_no_move() -> None:
    service = Service("a")
    service.use(2, 0.0, 1)
    service.switch.observe(ALIAS, [3, 2, 1], 1.0)
    service.switch.refused(version(3), "broken", 1.0)
    service.switch.observe(ALIAS, [3, 2], 2.0)
    assert service.switch.to_load() == []
    assert service.state(2.0) == "refused"


def test_a_switch_made_anew_falls_back_to_the_newest_that_loads() -> None:
    service = Service("a")
    service.switch.wants(ALIAS, 0.0)
    service.switch.observe(ALIAS, [4, 3, 2, 1], 0.0)
    service.switch.refused(version(4), "broken", 0.0)
    assert service.switch.to_load() == [version(3)]
    service.switch.refused(version(3), "broken too", 0.0)
    service.switch.loaded(version(2), 0.0)
    assert service.status(0.0) == Status(version=2, wanted=4, state="refused", reason="broken")
    service.renew(0.0)
    assert service.route("a", 0.0).version == 2


def test_where_nothing_loads_the_reason_is_told_to_who_asks() -> None:
    service = Service("a")
    service.switch.wants(ALIAS, 0.0)
    service.switch.observe(ALIAS, [1], 0.0)
    service.switch.refused(version(1), "a tensor is missing", 0.0)
    service.renew(0.0)
    with pytest.raises(PointsNowhere, match="a tensor is missing"):
        service.leases["a"].resolve(ALIAS, 0.0)


def test_a_version_in_use_is_never_refused() -> None:
    service = Service("a")
    service.use(2, 0.0, 1)
    service.switch.refused(version(2), "the disk was full", 1.0)
    assert service.status(1.0) == Status(version=2, wanted=2, state="live")
    assert service.switch.to_load() == []


def test_news_of_a_version_that_is_not_wanted_any_more_changes_nothing() -> None:
    service = Service("a")
    service.use(1, 0.0)
    service.switch.observe(ALIAS, [2, 1], 1.0)
    service.switch.observe(ALIAS, [3, 2, 1], 1.0)
    service.switch.loaded(version(2), 2.0)
    service.switch.refused(version(2), "broken", 2.0)
    service.switch.loaded(Ref("acme", "law", 3), 2.0)
    assert service.status(2.0) == Status(version=1, wanted=3, state="loading")


def test_an_alias_that_points_nowhere_answers_nothing() -> None:
    service = Service("a")
    service.use(1, 0.0)
    service.switch.observe(ALIAS, [], 1.0)
    assert service.state(1.0) == "switching"
    route = service.route("a", 1.0)
    service.renew(1.0)
    assert service.leases["a"].may_answer(route, 1.0)
    with pytest.raises(PointsNowhere, match="promote a version"):
        service.leases["a"].resolve(ALIAS, 1.0)
    service.renew(1.1)
    assert service.state(1.1) == "live"
    assert not service.leases["a"].may_answer(route, 1.1)
    service.switch.observe(ALIAS, [2], 2.0)
    assert service.status(2.0) == Status(version=None, wanted=2, state="loading")
    service.switch.loaded(version(2), 2.0)
    service.renew(2.0)
    assert service.route("a", 2.0).version == 2


def test_a_switch_made_anew_acknowledges_nothing_while_its_predecessors_leases_run() -> None:
    service = Service("a", "cut off")
    service.use(1, 0.0)
    service.switch = Switch(10.0, 1.0)
    service.switch.wants(ALIAS, 1.0)
    service.switch.observe(ALIAS, [2, 1], 1.0)
    service.switch.loaded(version(2), 1.0)
    for now in (2.0, 3.0, 8.0):
        service.renew(now, "a")
        assert service.state(now) == "switching"
    assert service.route("cut off", 9.9).version == 1
    with pytest.raises(LeaseEnded):
        service.leases["cut off"].resolve(ALIAS, 10.0)
    assert service.state(11.1) == "live"


def test_ingresses_go_on_while_a_new_switch_gets_its_bearings() -> None:
    service = Service("a")
    service.use(1, 0.0)
    service.switch = Switch(10.0, 5.0)
    service.renew(6.0)
    assert service.switch.tracked(6.0) == [ALIAS]
    assert service.route("a", 9.0).version == 1
    service.switch.observe(ALIAS, [1], 9.0)
    service.switch.loaded(version(1), 9.0)
    service.renew(9.0)
    assert service.route("a", 18.0).version == 1


def test_a_lease_of_the_predecessor_is_not_extended_by_what_the_new_switch_does_not_name() -> None:
    service = Service("a")
    service.use(1, 0.0)
    service.switch = Switch(10.0, 5.0)
    service.renew(9.0)
    assert service.leases["a"].resolve(ALIAS, 10.0) is None


def test_a_move_of_the_predecessor_is_no_confirmation_to_the_new_switch() -> None:
    service = Service("a")
    service.use(1, 0.0)
    service.switch = Switch(10.0, LONG_AGO)
    service.switch.wants(ALIAS, 1.0)
    service.renew(1.0)
    service.switch.observe(ALIAS, [2, 1], 1.0)
    service.switch.loaded(version(2), 1.0)
    renewal = service.leases["a"].renewal(2.0)
    service.switch.renew("a", renewal, 2.0)
    assert renewal.uses == {}
    assert service.state(2.0) == "switching"


def test_aliases_are_forgotten_that_nobody_wants() -> None:
    service = Service("a")
    service.use(1, 0.0)
    service.route("a", 0.0)
    service.renew(59.0)
    assert service.switch.tracked(59.0) == [ALIAS]
    for now in (70.0, 80.0, 89.0):
        service.renew(now)
    assert service.switch.tracked(89.1) == []
    assert service.leases["a"].resolve(ALIAS, 98.9)
    service.renew(99.0)
    assert service.leases["a"].resolve(ALIAS, 99.1) is None
    assert service.switch.status(ALIAS, 99.1).state == "loading"


def test_names_that_stand_for_nothing_are_not_wanted_for_long() -> None:
    leases = Leases(drain=3.0, keep=60.0)
    for number in range(100):
        leases.resolve(Ref(f"tenant-{number}", "news", "made-up"), 0.0)
    assert len(leases.renewal(1.0).keeps) == 100
    assert len(leases.renewal(6.0).keeps) == 0


def test_of_names_that_are_made_up_only_the_last_few_of_a_tenant_are_followed() -> None:
    service = Service("a", "b")
    service.use(1, 0.0)
    made_up = [Ref("acme", "news", f"x{number}") for number in range(500)]
    other = Ref("globex", "news", "x")
    for name, leases in service.leases.items():
        assert leases.resolve(other, 1.0) is None
        for number, alias in enumerate(made_up):
            leases.resolve(alias, 1.0 + number / 1000)
        kept = leases.renewal(2.0).keeps
        assert kept == {ALIAS, other, *made_up[-NOWHERE:]}, name
    service.renew(2.0)
    assert set(service.switch.tracked(2.0)) == {ALIAS, other, *made_up[-NOWHERE:]}
    assert service.route("a", 2.0).version == 1


def test_of_names_that_point_nowhere_the_switch_itself_follows_the_last_few_of_a_tenant() -> None:
    service = Service("a")
    service.use(1, 0.0)
    for number in range(500):
        alias = Ref("acme", "news", f"x{number}")
        service.switch.wants(alias, 1.0 + number / 1000)
        service.switch.observe(alias, [], 1.0 + number / 1000)
    assert len(service.switch.tracked(2.0)) == 1 + NOWHERE
    grant = service.switch.renew("a", service.leases["a"].renewal(2.0), 2.0)
    assert len(grant.table) == 1 + NOWHERE
    real = [Ref("acme", "news", f"real{number}") for number in range(20)]
    for alias in real:
        service.switch.wants(alias, 2.0)
        service.switch.observe(alias, [1], 2.0)
    assert set(real) <= set(service.switch.tracked(2.0))


def test_one_alias_does_not_wait_for_another() -> None:
    service = Service("a")
    service.use(1, 0.0)
    service.switch.wants(OTHER, 0.0)
    service.switch.observe(OTHER, [7], 0.0)
    service.switch.observe(ALIAS, [2, 1], 1.0)
    assert service.switch.to_load() == [Ref("acme", "law", 7), version(2)]
    service.switch.loaded(version(2), 1.0)
    service.renew(1.0)
    service.renew(1.1)
    assert service.state(1.1) == "live"


# Canaries


def canary(number: int = 2, *, shadow: bool = False, share: float = 0.5, id_: str = "c") -> Canary:
    rule = Rule(min_requests=10, max_error_rate=0.1)
    return Canary(id=id_, version=number, share=share, shadow=shadow, rule=rule)


def trying(shadow: bool = False) -> Service:
    """Version 1 in use at two ingresses, version 2 tried beside it."""
    service = Service("a", "b")
    service.use(1, 0.0)
    service.switch.start_canary(ALIAS, canary(shadow=shadow), 0.0)
    assert service.switch.to_load() == [version(2)]
    service.switch.loaded(version(2), 0.0)
    service.renew(0.0)
    service.renew(0.0)
    return service


def trial(service: Service, now: float) -> tuple[str, str]:
    status = service.status(now).canary
    assert status
    return status.state, status.reason


def test_a_canary_is_granted_once_it_has_loaded() -> None:
    service = Service("a")
    service.use(1, 0.0)
    service.switch.start_canary(ALIAS, canary(), 0.0)
    service.renew(0.0)
    assert service.route("a", 0.0).canary is None
    assert trial(service, 0.0)[0] == "loading"
    assert service.state(0.0) == "live"
    service.switch.loaded(version(2), 0.0)
    service.renew(0.0)
    assert service.route("a", 0.0) == Route(
        alias=ALIAS, version=1, canary=canary(), versions=frozenset({1, 2})
    )
    assert trial(service, 0.0) == ("running", "0 of 10 requests compared")
    service.renew(0.0)
    assert service.state(0.0) == "live"


def test_a_canary_that_does_not_load_ends_and_the_alias_stays_as_it_is() -> None:
    service = Service("a")
    service.use(1, 0.0)
    service.switch.start_canary(ALIAS, canary(), 0.0)
    service.switch.refused(version(2), "a tensor is missing", 0.0)
    assert trial(service, 0.0) == ("back", "did not load: a tensor is missing")
    assert service.state(0.0) == "live"
    assert service.switch.to_load() == []


def test_candidate_and_incumbent_may_answer_but_a_shadow_may_not() -> None:
    for shadow in (False, True):
        service = trying(shadow)
        route = service.route("a", 0.0)
        assert service.leases["a"].may_answer(route, 0.0)
        assert service.leases["a"].may_answer(route, 0.0, version=2) == (not shadow)


def test_a_candidate_that_was_stopped_answers_nothing_once_that_is_live() -> None:
    service = trying()
    leases = service.leases["a"]
    route = service.route("a", 0.0)
    with leases.use(route):
        service.switch.stop_canary(ALIAS, 1.0, "enough was seen")
        service.renew(1.0)
        service.renew(1.1)
        assert leases.may_answer(route, 1.1, version=2)
        assert service.state(1.1) == "switching"
    service.renew(1.2)
    assert service.state(1.2) == "live"
    assert leases.may_answer(route, 1.2)
    assert not leases.may_answer(route, 1.2, version=2)
    assert trial(service, 1.2) == ("back", "enough was seen")


def test_what_was_seen_is_added_up_once_however_often_it_is_sent() -> None:
    service = trying()
    service.leases["a"].saw("c", Observed(requests=2, compared=2))
    service.leases["a"].saw("c", Observed(requests=1, compared=1))
    service.leases["b"].saw("c", Observed(requests=4, compared=4))
    service.leases["b"].saw("another", Observed(requests=50, compared=50))
    early = service.leases["a"].renewal(1.0)
    service.leases["a"].saw("c", Observed(requests=1, compared=1))
    service.renew(1.0)
    service.renew(2.0)
    service.switch.renew("a", early, 2.0)
    status = service.status(2.0).canary
    assert status
    assert status.observed == Observed(requests=8, compared=8)
    assert status.reason == "8 of 10 requests compared"


def test_a_canary_goes_forward_by_a_move_of_the_alias() -> None:
    service = trying()
    assert service.switch.decisions() == []
    service.leases["a"].saw("c", Observed(requests=10, compared=10))
    service.renew(1.0)
    ((alias, found, decision),) = service.switch.decisions()
    assert (alias, found, decision.verdict) == (ALIAS, canary(), "forward")
    service.switch.observe(ALIAS, [2, 1], 2.0)
    assert service.switch.decisions() == []
    assert trial(service, 2.0)[0] == "forward"
    assert "10 requests compared" in trial(service, 2.0)[1]
    service.switch.loaded(version(2), 2.0)
    service.renew(2.0)
    service.renew(2.1)
    assert service.state(2.1) == "live"
    assert service.route("a", 2.1).versions == {2}


def test_a_canary_goes_back_at_once_by_its_errors() -> None:
    service = trying()
    service.leases["b"].saw("c", Observed(requests=2, candidate_errors=2))
    service.renew(1.0)
    ((_, _, decision),) = service.switch.decisions()
    assert decision.verdict == "back"
    service.switch.stop_canary(ALIAS, 1.0, decision.reason)
    assert trial(service, 1.0) == ("back", decision.reason)
    assert service.switch.decisions() == []


def test_a_shadow_only_reports() -> None:
    service = trying(shadow=True)
    service.leases["a"].saw("c", Observed(requests=10, compared=10))
    service.renew(1.0)
    assert service.switch.decisions() == []
    state, reason = trial(service, 1.0)
    assert state == "running"
    assert "10 requests compared" in reason


def test_a_canary_ends_where_what_it_is_compared_with_is_no_longer_in_use() -> None:
    service = Service("a")
    service.use(1, 0.0)
    service.switch.observe(ALIAS, [3, 1], 0.0)
    service.switch.start_canary(ALIAS, canary(), 0.0)
    service.switch.loaded(version(2), 0.0)
    assert service.switch.tries(ALIAS, canary())
    service.switch.loaded(version(3), 1.0)
    assert trial(service, 1.0) == ("back", "the alias was moved to version 3 meanwhile")
    assert not service.switch.tries(ALIAS, canary())
    service.renew(1.0)
    assert service.route("a", 1.0).versions == {3}


def test_a_move_by_others_ends_a_canary() -> None:
    service = trying()
    service.switch.observe(ALIAS, [3, 1], 1.0)
    assert trial(service, 1.0) == ("back", "the alias was moved to version 3 meanwhile")
    service.renew(1.0)
    assert service.route("a", 1.0).versions == {1}


@pytest.mark.parametrize(
    ("log", "number", "message"),
    [([], 2, "uses no version"), ([1], 1, "name another"), ([1], 2, "stop it first")],
)
def test_a_canary_needs_a_version_to_be_compared_with(
    log: Sequence[int], number: int, message: str
) -> None:
    service = Service("a")
    service.use(1, 0.0)
    service.switch.start_canary(ALIAS, canary(5, id_="first"), 0.0)
    if "stop" not in message:
        service.switch.stop_canary(ALIAS, 0.0)
    service.switch.observe(ALIAS, log, 0.0)
    with pytest.raises(SettingsError, match=message):
        service.switch.start_canary(ALIAS, canary(number), 0.0)


def test_a_canary_of_an_alias_that_is_not_known_is_refused() -> None:
    with pytest.raises(SettingsError, match="uses no version"):
        Switch(10.0, 0.0).start_canary(ALIAS, canary(), 0.0)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("inf"), float("nan")])
def test_a_lease_must_end(seconds: float) -> None:
    with pytest.raises(SettingsError, match="lease"):
        Switch(seconds, 0.0)


@pytest.mark.parametrize("name", ["drain", "keep"])
def test_times_that_cannot_be_are_refused(name: str) -> None:
    with pytest.raises(SettingsError, match=name):
        Leases(**{"drain": 1.0, "keep": 1.0, name: float("nan")})


# Where all goes wrong


@pytest.mark.parametrize("seed", range(40))
def test_the_promise_holds_whatever_is_lost_late_cut_off_paused_or_restarted(seed: int) -> None:
    world = World(seed)
    world.run(CHAOS)
    assert world.violations == []
    assert world.answers > 300
    assert sum(len({move for _, move in a.acknowledged}) for a in world.aliases.values()) > 2
    world.heal()
    if world.switch is None:
        world.run(world.now + 60, lambda: world.switch is not None)
    for alias in world.aliases.values():
        alias.log.append(10_001)
    begun = world.now
    world.run(
        begun + 60,
        lambda: all(
            world.switch is not None
            and world.switch.status(ref, world.now + world.skew).state == "live"
            and world.switch.status(ref, world.now + world.skew).version == 10_001
            for ref in ALIASES
        ),
    )
    looked_and_loaded = 8.0
    assert world.now - begun < looked_and_loaded + LEASE + DRAIN + 4 * RENEW
    world.run(world.now + 30)
    assert world.violations == []


class EndlessLeases(Leases):
    """Does not look at the end of a lease."""

    def granted(self, grant: Grant, now: float) -> None:
        super().granted(replace(grant, lease=1e9), now)


class CarelessLeases(Leases):
    """Does not look again before an answer goes out."""

    def may_answer(self, route: Route, now: float, version: int | None = None) -> bool:
        return True


class CredulousLeases(Leases):
    """Takes the answer to any renewal for that to the last."""

    def granted(self, grant: Grant, now: float) -> None:
        if self._pending:
            super().granted(replace(grant, number=self._pending.number), now)


class HastySwitch(Switch):
    """Does not wait for the leases of its predecessor."""

    def __init__(self, lease: float, now: float) -> None:
        super().__init__(lease, now - 2 * lease)


class TrustingSwitch(Switch):
    """Takes any renewal for a confirmation of all there is."""

    def renew(self, ingress: str, renewal: Renewal, now: float) -> Grant:
        entries: dict[Ref, Entry | None] = {r: a.entry for r, a in self._aliases.items()}
        uses = {ref: entry.move for ref, entry in entries.items() if entry}
        return super().renew(ingress, replace(renewal, switch=self._name, uses=uses), now)


class ImpatientSwitch(Switch):
    """Does not wait for ingresses that are not heard of."""

    def __init__(self, lease: float, now: float) -> None:
        super().__init__(lease, now)
        self._hold = lease / 2


@pytest.mark.parametrize(
    ("leases", "switch"),
    [
        (EndlessLeases, Switch),
        (CarelessLeases, Switch),
        (CredulousLeases, Switch),
        (Leases, HastySwitch),
        (Leases, TrustingSwitch),
        (Leases, ImpatientSwitch),
    ],
)
def test_with_one_rule_left_out_the_promise_is_seen_to_break(
    leases: type[Leases], switch: type[Switch]
) -> None:
    def breaks(seed: int) -> bool:
        world = World(seed, leases, switch)
        world.run(CHAOS)
        return bool(world.violations)

    assert any(breaks(seed) for seed in range(40))
