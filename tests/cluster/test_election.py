"""The rules of an election, each by its number in the design: what one node decides from what it knows."""

from __future__ import annotations

from dataclasses import replace

import pytest

from proxy.cluster.election import (
    ALONE_SECONDS,
    LEASE_SECONDS,
    UNREACHABLE_SECONDS,
    Claim,
    Election,
    Follow,
    Lead,
    Link,
    Release,
    Role,
    Wait,
    Yield,
)
from proxy.cluster.lease import Lease, account_hash

NOW = 1000.0
MINE = Lease("me", "ws://me", False, 5)
OTHER = Lease("other", "ws://other", False, 7)
OTHER_LIVE = Lease("other", "ws://other", True, 7)
THIRD_LIVE = Lease("third", "ws://third", True, 9)


def election(**values: object) -> Election:
    """A node that wants the feed."""
    made = Election("me", wanted=True, asks=True, sessions=True)
    for name, value in values.items():
        setattr(made, name, value)
    return made


def knowing(made: Election, lease: Lease | None, last: Lease | None = None, since: float = NOW - 60) -> Election:
    """The same node, to which Redis has answered since that time."""
    made.registered.answered(lease, last, since, settled=False)
    return made


def cut_off(made: Election, last: Lease | None = None, seconds: float = 0.1) -> Election:
    """The same node, without Redis for so long, which had named this last leader."""
    made.registered.answered(None, last, NOW - 60)
    made.registered.failed(NOW - seconds)
    return made


def test_a_lease_that_is_not_utf_8_is_no_lease() -> None:
    for text in ("\udcff", "\udcff x", "x \udcff"):
        assert Lease.decode(b"secret", "slot", text) is None


def test_a_free_lease_is_claimed() -> None:
    assert knowing(election(), None).decide(NOW) == Claim(None)


def test_a_feed_that_is_not_wanted_needs_no_leader() -> None:
    assert knowing(election(wanted=False), None).decide(NOW) == Wait()
    assert isinstance(knowing(election(wanted=False, role=Role.LEADING), MINE).decide(NOW), Yield)


def test_another_leader_is_followed() -> None:
    assert knowing(election(), OTHER).decide(NOW) == Follow(OTHER)


def test_a_leader_that_others_cannot_reach_is_not_void_for_ever() -> None:
    made = knowing(election(), OTHER_LIVE)
    made.gone(OTHER_LIVE, NOW, denied=True)
    assert made.decide(NOW) == Claim(OTHER_LIVE)
    again = replace(OTHER_LIVE, token=8)
    knowing(made, again).gone(again, NOW, denied=True)
    assert made.decide(NOW) == Follow(again)
    made.leader, made.link = again, Link.WORKING
    made.decide(NOW)
    made.leader, made.link = None, Link.NONE
    made.gone(again, NOW, denied=True)
    assert made.decide(NOW) == Claim(again)


def test_a_live_leader_does_not_follow_a_lease_that_is_void() -> None:
    made = knowing(election(role=Role.LEADING, live=True, token=5), OTHER_LIVE)
    assert made.decide(NOW) == Follow(OTHER_LIVE)
    made.gone(OTHER_LIVE, NOW, denied=True)
    assert made.decide(NOW) == Claim(OTHER_LIVE)


def test_a_leader_that_has_yielded_without_redis_does_not_lead_again() -> None:
    made = cut_off(election(role=Role.LEADING, live=True, sessions=False), seconds=ALONE_SECONDS)
    assert isinstance(made.decide(NOW), Yield)
    made.role, made.live = Role.NONE, False
    assert made.decide(NOW) == Wait()
    made.sessions = True
    assert made.decide(NOW) == Lead()


def test_a_leader_renews_its_lease() -> None:
    assert knowing(election(role=Role.LEADING, token=5), MINE).decide(NOW) == Claim(MINE)


@pytest.mark.parametrize("live", [True, False])
def test_1_a_leader_goes_on_without_redis(live: bool) -> None:
    assert cut_off(election(role=Role.LEADING, live=live), seconds=3600).decide(NOW) == Wait()


@pytest.mark.parametrize("lease", [None, OTHER, OTHER_LIVE])
def test_2_a_node_whose_link_works_does_not_stand(lease: Lease | None) -> None:
    followed = election(role=Role.FOLLOWING, link=Link.WORKING, leader=OTHER)
    assert knowing(followed, lease).decide(NOW) == Wait()
    assert cut_off(followed, seconds=3600).decide(NOW) == Wait()


@pytest.mark.parametrize("link", [Link.WORKING, Link.MUTE])
def test_3_a_node_moves_to_another_leader_only_when_that_is_live(link: Link) -> None:
    third = Lease("third", "ws://third", False, 9)
    assert knowing(election(role=Role.FOLLOWING, link=link, leader=OTHER), third).decide(NOW) == Wait()
    assert knowing(election(role=Role.FOLLOWING, link=link, leader=OTHER), THIRD_LIVE).decide(NOW) == Follow(THIRD_LIVE)


def test_4_live_beats_not_live() -> None:
    assert knowing(election(role=Role.LEADING, live=True, token=5), OTHER).decide(NOW) == Claim(OTHER)
    assert knowing(election(role=Role.LEADING, token=5), OTHER).decide(NOW) == Follow(OTHER)


def test_4_after_an_empty_redis_returns_the_others_wait_one_ttl() -> None:
    made = cut_off(election())
    made.registered.answered(None, None, NOW)
    assert made.decide(NOW + 0.9 * LEASE_SECONDS) == Wait()
    assert made.decide(NOW + LEASE_SECONDS) == Claim(None)
    leader = cut_off(election(role=Role.LEADING, live=True))
    leader.registered.answered(None, None, NOW)
    assert leader.decide(NOW) == Claim(None)


def test_5_a_leader_that_nothing_listens_for_loses_its_lease_at_once() -> None:
    made = knowing(election(), OTHER_LIVE, last=OTHER_LIVE)
    made.gone(OTHER_LIVE, NOW, denied=True)
    assert made.decide(NOW) == Claim(OTHER_LIVE)
    made.registered.answered(THIRD_LIVE, THIRD_LIVE, NOW)  # a new lease is not void
    assert made.decide(NOW) == Follow(THIRD_LIVE)


def test_5_a_leader_that_does_not_answer_keeps_it_while_it_lasts() -> None:
    made = knowing(election(), OTHER_LIVE, last=OTHER_LIVE)
    made.gone(OTHER_LIVE, NOW, denied=False)
    assert made.decide(NOW) == Follow(OTHER_LIVE)
    made.registered.answered(None, OTHER_LIVE, NOW)
    assert made.decide(NOW) == Claim(None)


def test_6_a_draining_node_stands_no_more() -> None:
    assert knowing(election(draining=True), None).decide(NOW) == Wait()
    assert knowing(election(draining=True, role=Role.LEADING), MINE).decide(NOW) == Wait()


def test_7_while_the_slot_is_taken_the_last_leader_is_followed_if_it_can_be_reached() -> None:
    made = knowing(election(role=Role.LEADING, slot_taken=True, token=5, asks=False), MINE, last=OTHER_LIVE)
    assert made.decide(NOW) == Claim(MINE)  # no source could link to it
    made.asks = True
    assert made.decide(NOW) == Follow(OTHER_LIVE)
    made.gone(OTHER_LIVE, NOW, denied=False)
    assert made.decide(NOW) == Claim(MINE)
    assert made.decide(NOW + UNREACHABLE_SECONDS) == Follow(OTHER_LIVE)


def test_8_an_isolated_leader_without_sessions_yields() -> None:
    made = cut_off(election(role=Role.LEADING, live=True, sessions=False), seconds=ALONE_SECONDS)
    assert isinstance(made.decide(NOW), Yield)
    made.heard_at = NOW - 1
    assert made.decide(NOW) == Wait()
    made.heard_at, made.sessions = 0.0, True
    assert made.decide(NOW) == Wait()


def test_9_without_redis_the_last_leader_is_tried_then_alpaca() -> None:
    made = cut_off(election(), last=OTHER_LIVE)
    assert made.decide(NOW) == Follow(OTHER_LIVE)
    made.gone(OTHER_LIVE, NOW, denied=True)
    assert made.decide(NOW) == Wait()
    assert made.decide(NOW + ALONE_SECONDS) == Lead()


def test_9_a_first_start_without_redis_waits_as_long() -> None:
    made = election()
    made.registered.failed(NOW)
    made.registered.failed(NOW + 1)
    assert made.decide(NOW + 1) == Wait()
    assert made.decide(NOW + ALONE_SECONDS) == Lead()


def test_10_a_live_leader_gives_way_to_a_live_lease_with_a_higher_token() -> None:
    assert knowing(election(role=Role.LEADING, live=True, token=5), OTHER_LIVE).decide(NOW) == Follow(OTHER_LIVE)
    assert knowing(election(role=Role.LEADING, live=True, token=8), OTHER_LIVE).decide(NOW) == Claim(OTHER_LIVE)


def test_11_a_mute_link_is_kept_while_the_node_stands() -> None:
    mute = election(role=Role.FOLLOWING, link=Link.MUTE, leader=OTHER_LIVE)
    assert knowing(mute, OTHER_LIVE).decide(NOW) == Wait()  # its lease still lasts
    assert knowing(mute, None).decide(NOW) == Claim(None)
    mute.role = Role.LEADING
    assert knowing(mute, MINE).decide(NOW) == Claim(MINE)
    assert knowing(mute, OTHER).decide(NOW) == Release()  # another node was given the lease
    mute.link = Link.WORKING
    assert knowing(mute, MINE).decide(NOW) == Release()  # the leader is back


def test_a_last_leader_without_a_lease_that_is_not_live_is_not_waited_for() -> None:
    made = knowing(election(role=Role.FOLLOWING, link=Link.WAITING, leader=OTHER_LIVE), None, last=OTHER_LIVE)
    made.link_since = NOW
    assert made.decide(NOW) == Follow(OTHER_LIVE)
    assert made.decide(NOW + ALONE_SECONDS) == Claim(None)


class TestLease:
    """Signatures of leases."""

    SECRET = b"a secret of the cluster"

    def test_a_lease_survives_its_text(self) -> None:
        text = OTHER_LIVE.encode(self.SECRET, "slot")
        assert Lease.decode(self.SECRET, "slot", text) == OTHER_LIVE

    @pytest.mark.parametrize(
        "text",
        [
            OTHER_LIVE.encode(b"another secret", "slot"),
            OTHER_LIVE.encode(SECRET, "another slot"),
            OTHER_LIVE.encode(SECRET, "slot").replace("ws://other", "ws://mitm!"),
            "",
            " ",
            "{}",
            "é" * 5000,
        ],
    )
    def test_a_text_that_no_node_has_signed_is_none(self, text: str) -> None:
        assert Lease.decode(self.SECRET, "slot", text) is None

    def test_an_accounts_name_is_the_same_on_every_node_and_hides_its_key(self) -> None:
        name = account_hash(self.SECRET, "AKEY", "ASECRET")
        assert name == account_hash(self.SECRET, "AKEY", "ASECRET")
        assert len({name, account_hash(b"x" * 16, "AKEY", "ASECRET"), account_hash(self.SECRET, "AKEY", "B")}) == 3
