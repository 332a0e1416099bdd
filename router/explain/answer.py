"""A trail told to who asks: tables, sums, and the story in words."""

from __future__ import annotations

from collections.abc import Iterator

from router.explain import waterfall
from router.explain.compared import compared
from router.explain.trail import (
    Began,
    Bound,
    Event,
    Failed,
    Fetched,
    Moved,
    Nobody,
    Offered,
    Opened,
    Placed,
    Prefilled,
    Stayed,
    Timed,
    Trail,
    Unbound,
)
from router.explain.trails import Trails
from router.placement.binding import Overlap
from router.placement.decision import Decision, Way
from workers.core.errors import RequestNotFound
from workers.wire import admin_pb2 as admin

RECENT = 20


def explain(trails: Trails, name: str) -> admin.ExplainRequestResponse:
    """All of that id, newest first. Raises RequestNotFound."""
    now = trails.now()
    found = [explanation(trail, now) for trail in trails.find(name)]
    if not found:
        raise RequestNotFound(name)
    return admin.ExplainRequestResponse(requests=found)


def recent(trails: Trails, limit: int) -> admin.RecentRequestsResponse:
    """`limit` 0 = RECENT."""
    now, newest = trails.now(), trails.newest()[: limit or RECENT]
    return admin.RecentRequestsResponse(requests=[summary(trail, now) for trail in newest])


def summary(trail: Trail, now: float) -> admin.RequestSummary:
    placed = waterfall.last(trail.events, Placed)
    bound = waterfall.last(trail.events, Bound)
    over = now if trail.ended_at is None else trail.ended_at
    told = admin.RequestSummary(
        id=trail.request_id,
        also=[name for name in trail.also if name != trail.request_id],
        worker_id=trail.worker_id,
        age_s=now - trail.started,
        slo_class=trail.slo_class,
        tenant=trail.tenant,
        prompt_tokens=trail.prompt_tokens,
        output_tokens=trail.output_tokens,
        outcome=trail.outcome,
        error=trail.error,
        total_s=over - trail.started,
    )
    if placed is not None:
        told.prefill = placed.decision.replica.id
        if placed.decision.alone:
            told.decode = told.prefill
    if bound is not None:
        told.decode = bound.decision.replica.id
    if trail.first_at is not None:
        told.ttft_s = trail.first_at - trail.started
        if trail.second_at is not None:
            told.first_gap_s = trail.second_at - trail.first_at
    return told


def explanation(trail: Trail, now: float) -> admin.Explanation:
    return admin.Explanation(
        summary=summary(trail, now),
        choices=_choices(trail),
        ttft=_poured(waterfall.ttft(trail)),
        first_gap=_poured(waterfall.first_gap(trail)),
        compared=compared(trail),
        story=_story(trail),
        left_out=trail.left_out,
    )


def _poured(found: waterfall.Waterfall | None) -> admin.Waterfall | None:
    if found is None:
        return None
    parts = [admin.Part(name=name, seconds=seconds) for name, seconds in found.parts]
    return admin.Waterfall(total_s=found.total_s, parts=parts)


def _choices(trail: Trail) -> Iterator[admin.Choice]:
    """An early binding is the choice that weighed it, told once."""
    told: Decision | None = None
    for event in trail.events:
        at_s = event.at - trail.started
        match event:
            case Placed(_, decision):
                yield _choice(at_s, "prefill", decision)
            case Timed(_, decision, overlap):
                told = decision
                yield _choice(at_s, "decode", decision, overlap)
            case Bound(_, decision, _, moving) if decision is not told:
                yield _choice(at_s, "decode", decision, moving=moving)
            case Nobody(_, phase, refused):
                names = [
                    admin.RefusedReplica(replica=name, why=why) for name, why in refused.items()
                ]
                yield admin.Choice(at_s=at_s, phase=phase, refused=names)


def _choice(
    at_s: float,
    phase: str,
    decision: Decision,
    overlap: Overlap | None = None,
    *,
    moving: bool = False,
) -> admin.Choice:
    return admin.Choice(
        at_s=at_s,
        phase=phase,
        replica=decision.replica.id,
        taken=decision.place,
        otherwise=decision.counterfactual,
        candidates=_candidates(decision),
        refused=[
            admin.RefusedReplica(replica=name, why=why) for name, why in decision.refused.items()
        ],
        timing=None if overlap is None else _timing(overlap),
        moving=moving,
    )


def _candidates(decision: Decision) -> Iterator[admin.Candidate]:
    among = decision.among
    for place, replica in enumerate(among.replicas):
        transfer_s = among.transfer_s[place] if among.transfer_s else 0.0
        yield admin.Candidate(
            replica=replica.id,
            wait_s=among.wait_s[place] - transfer_s,
            transfer_s=transfer_s,
            work_s=among.work_s[place],
            cached_tokens=among.cached[place],
            cost_s=among.cost_s[place] if among.cost_s else None,
            way=_way(among.ways[place]) if among.ways else None,
        )


def _way(way: Way) -> admin.Way:
    return admin.Way(
        alone=way.alone,
        decode=way.decode.id if way.decode is not None else "",
        gap_s=way.gap_s,
        itl_s=way.itl_s,
        after_s=way.after_s,
    )


def _timing(overlap: Overlap) -> admin.Timing:
    return admin.Timing(
        timing=overlap.choose(),
        transfer_s=overlap.transfer_s,
        prefill_left_s=overlap.prefill_left_s,
        gain_s=overlap.gain_s,
        wanted_tokens=overlap.wanted_tokens,
        free_tokens=overlap.free_tokens,
        capacity_tokens=overlap.capacity_tokens,
    )


def _story(trail: Trail) -> list[admin.StoryLine]:
    length = f" with {trail.prompt_tokens} prompt tokens" if trail.worker_id else ""
    lines = [(trail.started, f"came{length}")]
    if trail.let_in_at is not None:
        waited = f"let in as {trail.slo_class} after {_ms(trail.waited_s)} in line"
        lines.append((trail.let_in_at, waited))
    lines += [(event.at, words) for event in trail.events if (words := _words(event))]
    if trail.first_at is not None:
        lines.append((trail.first_at, "the first token is out"))
    if trail.second_at is not None:
        lines.append((trail.second_at, "the second token is out"))
    if trail.ended_at is not None:
        error = f": {trail.error}" if trail.error else ""
        lines.append((trail.ended_at, f"{trail.outcome}, {trail.output_tokens} tokens{error}"))
    lines.sort(key=lambda line: line[0])
    return [admin.StoryLine(at_s=at - trail.started, what=what) for at, what in lines]


def _words(event: Event) -> str:
    match event:
        case Placed(_, decision):
            return f"placed on {_chosen(decision)}{_otherwise(decision)}"
        case Nobody(_, phase):
            return f"no replica can {phase} it"
        case Opened(_, cached):
            return f"its worker has it, {cached} tokens were cached"
        case Prefilled(_, queue_s, prefill_s):
            return f"its first token came: {_ms(queue_s)} in the queue, {_ms(prefill_s)} of prefill"
        case Timed(_, decision, overlap):
            return f"binding to {decision.replica.id} now: {overlap.explain()}"
        case Bound(_, decision, epoch, moving):
            what = "moving" if moving else "bound"
            return f"{what} to {_chosen(decision)}, epoch {epoch}"
        case Unbound(_, why):
            return f"binding failed: {why}"
        case Fetched(_, said):
            return (
                f"its KV is there: {_ms(said.admit_wait_s)} for pages, {said.fetched_bytes} bytes "
                f"in {_ms(said.transfer_s)} by {said.transport}, {_ms(said.exposed_s)} exposed, "
                f"{said.cached_tokens} tokens were cached"
            )
        case Failed(_, why):
            return f"the attempt failed: {why}"
        case Offered(_, replica):
            return f"{replica} offers it to others"
        case Moved(_, replica):
            return f"moved to {replica}"
        case Stayed(_, why):
            return f"nobody took it: {why}"
        case Began():
            return ""


def _chosen(decision: Decision) -> str:
    score, among = decision.score, decision.among
    name, count = among.name(decision.place), len(among)
    return (
        f"{name}, one of {count}: {_ms(score.wait_s)} of waiting and "
        f"{_ms(score.work_s)} of work predicted, {decision.cached_tokens} tokens cached"
    )


def _otherwise(decision: Decision) -> str:
    """The counterfactual: what the other way would have been, by the same prediction."""
    among, other = decision.among, decision.counterfactual
    if other is None:
        return ""
    more_s = among.cost_s[other] - among.cost_s[decision.place]
    first_s = among.wait_s[other] + among.work_s[other]
    way = "split" if decision.alone else "alone"
    return (
        f"; {way} on {among.replicas[other].id} instead: first token after {_ms(first_s)}, "
        f"second {_ms(among.ways[other].gap_s)} later, cost {_ms(more_s)} more"
    )


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms"
