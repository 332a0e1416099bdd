"""Followers as their leader sees them: threads of this process that play the processes."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator

import pytest

from workers.core.errors import CheckpointError, KvasirError, Unavailable
from workers.parallel.control import Gone, Line, Wire, connect
from workers.parallel.launcher import Invitation
from workers.parallel.team import Team

WAIT_S = 20.0
BEAT_S = 0.3

Play = Callable[["Actor"], None]


class Actor:
    """The process of one follower. Its play ends it; so does kill()."""

    def __init__(self, invitation: Invitation, play: Play) -> None:
        self.rank = invitation.rank
        self.invitation = invitation
        self.killed = threading.Event()
        self.over = threading.Event()
        self.wire: Wire | None = None
        self._play = play
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        try:
            self._play(self)
        except Gone:
            pass
        finally:
            if self.wire is not None:
                self.wire.close()
            self.over.set()

    def ended(self) -> str | None:
        return "ended with code 3" if self.over.is_set() else None

    def kill(self) -> None:
        self.killed.set()
        assert self.over.wait(WAIT_S), "it waits for something that nobody ends"

    # What a play is made of.

    def come(self, token: str | None = None) -> Line:
        """Say hello, and hear the plan."""
        self.wire = connect(self.invitation.address, WAIT_S)
        token = token or self.invitation.token
        self.wire.send({"say": "hello", "rank": self.rank, "token": token})
        while (plan := self.wire.receive(BEAT_S)) is None:
            if self.killed.is_set():
                raise Gone("killed")
        return plan

    def say(self, what: str, **more: str) -> None:
        assert self.wire is not None
        self.wire.send({"say": what} | more)

    def live(self) -> None:
        """Beat until killed."""
        assert self.wire is not None
        while not self.killed.is_set():
            self.wire.receive(BEAT_S)
            self.say("beat")

    def hang(self) -> None:
        self.killed.wait(WAIT_S)


def well(actor: Actor) -> None:
    actor.come()
    actor.say("ready", rank=str(actor.rank))
    actor.live()


class Stage:
    """A RankLauncher: rank r plays plays[r - 1]."""

    def __init__(self, *plays: Play, host: str | None = None) -> None:
        self.host = host
        self.plays = plays
        self.actors: list[Actor] = []
        self.closed = False

    def reserve(self, ranks: int, on_gpu: bool) -> None:
        assert ranks == len(self.plays) + 1

    def close(self) -> None:
        assert all(actor.over.is_set() for actor in self.actors), "what it reserved is still used"
        self.closed = True

    def start(self, invitation: Invitation) -> Actor:
        self.actors.append(Actor(invitation, self.plays[invitation.rank - 1]))
        return self.actors[-1]


def plan(rank: int) -> tuple[Line, tuple[int, ...]]:
    return {"say": "plan", "rank": rank}, ()


@pytest.fixture
def stage() -> Iterator[Callable[..., tuple[Team, Stage]]]:
    """stage(play of rank 1, play of rank 2, ...); afterwards nobody is left."""
    opened: list[tuple[Team, Stage]] = []

    def open_(*plays: Play) -> tuple[Team, Stage]:
        there = Stage(*plays)
        opened.append((Team(len(plays), there, plan), there))
        return opened[-1]

    yield open_
    for team, there in opened:
        team.close()
        assert there.closed and all(actor.over.is_set() for actor in there.actors)


def loss(team: Team) -> KvasirError:
    return team.loss.result(WAIT_S)


def test_what_followers_say_is_collected_in_rank_order(stage) -> None:  # type: ignore[no-untyped-def]
    team, there = stage(well, well, well)
    ready = team.collect("ready", WAIT_S)
    assert [line["rank"] for line in ready] == ["1", "2", "3"]
    team.close()
    assert not any(actor.killed.is_set() and not actor.over.is_set() for actor in there.actors)
    assert not team.loss.done(), "leaving is no loss"


def test_descriptors_come_with_the_plan() -> None:
    read, write = os.pipe()
    got: list[bytes] = []

    def play(actor: Actor) -> None:
        assert actor.come()["gift"] == "a pipe"
        assert actor.wire is not None
        (fd,) = actor.wire.fds
        os.write(fd, b"thanks")
        os.close(fd)
        actor.say("ready")
        actor.live()

    team = Team(1, Stage(play), lambda rank: ({"say": "plan", "gift": "a pipe"}, (write,)))
    team.collect("ready", WAIT_S)
    got.append(os.read(read, 10))
    team.close()
    assert got == [b"thanks"]
    for fd in (read, write):
        os.close(fd)


def test_followers_of_other_hosts_come_over_tcp() -> None:
    there = Stage(well, host="127.0.0.1")
    team = Team(1, there, plan)
    team.collect("ready", WAIT_S)
    assert there.actors[0].invitation.address.startswith("127.0.0.1:")
    team.close()


def with_another_line(token: str | None = None) -> Play:
    def play(actor: Actor) -> None:
        actor.come()
        wire = connect(actor.invitation.address, WAIT_S)
        invited = token or actor.invitation.token
        wire.send({"say": "beside", "rank": actor.rank, "token": invited})
        line = wire.detach()
        line.settimeout(WAIT_S)
        if said := line.recv(100):  # else it was hung up on
            line.sendall(said + b" you too")
        actor.live()
        line.close()

    return play


def test_a_second_line_of_each_follower_is_handed_over() -> None:
    team = Team(2, Stage(with_another_line(), with_another_line()), plan)
    for rank, line in enumerate(team.lines_beside(WAIT_S), 1):
        line.settimeout(WAIT_S)
        line.sendall(b"rank %d" % rank)
        assert line.recv(100) == b"rank %d you too" % rank
        line.close()
    team.close()
    assert not team.loss.done()


def test_a_second_line_of_a_stranger_is_hung_up_on() -> None:
    team = Team(2, Stage(with_another_line("guessed"), well), plan)
    with pytest.raises(Unavailable, match="rank 1 has not said 'beside'"):
        team.lines_beside(1.0)
    assert not team.loss.done(), "it was not a rank that hung up"
    team.close()


def ends(actor: Actor) -> None:
    actor.come()


def ends_before_it_comes(actor: Actor) -> None:
    pass


def falls_silent(actor: Actor) -> None:
    actor.come()
    actor.say("ready")  # until then it has longer
    actor.hang()


def hangs_up_but_stays(actor: Actor) -> None:
    actor.come()
    assert actor.wire is not None
    actor.wire.close()
    actor.hang()


@pytest.mark.parametrize(
    ("play", "reason"),
    [
        (ends, "ended with code 3"),
        (ends_before_it_comes, "ended with code 3"),
        (falls_silent, "is silent"),
        (hangs_up_but_stays, "its line ended"),
    ],
)
def test_a_lost_rank_is_named_and_takes_the_others_down(stage, play: Play, reason: str) -> None:  # type: ignore[no-untyped-def]
    team, there = stage(well, play, well)
    error = loss(team)
    assert isinstance(error, Unavailable)
    assert error.message.startswith("rank 2 of 4 is lost: ") and reason in error.message
    for actor in there.actors:
        assert actor.over.wait(WAIT_S)
    with pytest.raises(Unavailable, match="rank 2"):
        team.collect("ready", WAIT_S)


def test_what_a_follower_fails_with_reaches_the_leader_as_it_was(stage) -> None:  # type: ignore[no-untyped-def]
    def fails(actor: Actor) -> None:
        actor.come()
        actor.say("failed", kind="CheckpointError", message="model.safetensors is corrupt")

    team, _ = stage(well, fails)
    with pytest.raises(CheckpointError, match=r"^model\.safetensors is corrupt$"):
        team.collect("ready", WAIT_S)


def test_an_error_that_is_nobody_elses_names_the_rank(stage) -> None:  # type: ignore[no-untyped-def]
    def breaks(actor: Actor) -> None:
        actor.come()
        actor.say("failed", kind="ZeroDivisionError", message="ZeroDivisionError('by zero')")

    team, _ = stage(breaks)
    assert loss(team).message == "rank 1 failed: ZeroDivisionError('by zero')"


def test_who_was_not_invited_is_hung_up_on(stage) -> None:  # type: ignore[no-untyped-def]
    team, there = stage(well)
    team.collect("ready", WAIT_S)
    invitation = there.actors[0].invitation
    stranger = connect(invitation.address, WAIT_S)
    stranger.send({"say": "hello", "rank": 1, "token": "guessed"})
    with pytest.raises(Gone):
        while True:
            assert stranger.receive(WAIT_S) is None
    stranger.close()
    assert not team.loss.done()


def test_guarded_work_is_given_up_when_a_rank_is_lost(stage) -> None:  # type: ignore[no-untyped-def]
    go = threading.Event()

    def leaves(actor: Actor) -> None:
        actor.come()
        assert go.wait(WAIT_S)

    team, _ = stage(leaves)
    team.collect("hello", WAIT_S)
    never = threading.Event()

    def work() -> None:
        go.set()
        never.wait(WAIT_S)

    with pytest.raises(Unavailable, match="rank 1 of 2 is lost"):
        team.guard(work)
    never.set()


def test_guarded_work_gives_its_result_and_its_own_errors(stage) -> None:  # type: ignore[no-untyped-def]
    team, _ = stage(well)
    assert team.guard(lambda: 42) == 42
    with pytest.raises(ZeroDivisionError):
        team.guard(lambda: 1 // 0)
    assert not team.loss.done()


def test_a_broken_group_is_blamed_on_the_rank_that_is_gone(stage) -> None:  # type: ignore[no-untyped-def]
    def work() -> None:
        raise Unavailable("connection closed by peer")

    team, _ = stage(ends)
    with pytest.raises(Unavailable, match="rank 1 of 2 is lost"):
        team.guard(work)


def test_a_broken_group_with_everybody_there_ends_all(stage) -> None:  # type: ignore[no-untyped-def]
    team, there = stage(well, well)
    team.collect("ready", WAIT_S)
    assert team.blame(Unavailable("a stuck rank")).message == "a stuck rank"
    assert loss(team).message == "a stuck rank"
    for actor in there.actors:
        assert actor.over.wait(WAIT_S)


def test_who_cannot_be_started_is_a_loss() -> None:
    class Broken(Stage):
        def start(self, invitation: Invitation) -> Actor:
            raise OSError("no more processes")

    team = Team(1, Broken(), plan)
    assert loss(team).message == "a rank cannot be started: no more processes"
    team.close()
