"""Checks the failures of turns: which answer a client may get, and when a turn may be given up.

What belongs here: the conditions of the effect ``FailTurn``. They are apart from those of the other
effects (model_effects.py) because they are about the client: what is true for it, and what would
help it more.
"""

from __future__ import annotations

from bridgecore.recovery import effects as fx
from bridgecore.recovery import events as ev
from bridgecore.recovery.effects import FailureReply, RequestForm
from bridgecore.recovery.events import Standing
from bridgecore.recovery.failure import FailureKind
from bridgecore.recovery.timers import Timer
from bridgecore.verify.evidence import PASSED_ON, evidence_of, is_rejection, is_silence, refusal_of
from bridgecore.verify.model import BEGUN, HELD, Model, ModelTurn, TurnStage
from bridgecore.verify.model_events import ModelStep
from bridgecore.verify.properties import Property
from bridgecore.verify.shown import shown

_P = Property
_TERMINAL = (FailureReply.NOT_FOUND, FailureReply.UPSTREAM_ERROR)  # no retry follows them


def check_failure(step: ModelStep, effect: fx.FailTurn) -> None:
    """Check the failure of a turn, and end the turn in the model."""
    turn = step.turn(effect.turn)
    step.end(turn.id)
    answer, event = effect.answer, step.event
    if answer is FailureReply.OVERLOADED:
        submitted = isinstance(event, ev.TurnSubmitted) and event.turn.id == turn.id
        if not submitted or len(step.model.turns) <= step.model.terms.waiting:
            step.broken(_P.QUEUE_IS_BOUNDED, f"overloaded with {len(step.model.turns)} other turns")
        return
    if answer is FailureReply.NOT_FOUND or (
        answer is FailureReply.UPSTREAM_ERROR and step.refused == "not_found"
    ):
        _check_not_found(step, turn, answer)
    elif answer is FailureReply.OWNER_UNREACHABLE and not step.before.to_owner:
        if turn.stage is not TurnStage.WAITING:
            step.broken(_P.REBIND_CODE_IS_PROVEN, f"turn {turn.id}: {shown(event)}")
        if not (turn.orphan or step.model.terms.hands_over):
            text = f"turn {turn.id} got {answer.value}, its session is local"
            step.broken(_P.ANSWER_TELLS_WHAT_HAPPENED, text)
    else:
        allowed = _answers(step, turn)
        if answer not in allowed:
            names = " or ".join(sorted(one.value for one in allowed))
            text = f"turn {turn.id} got {answer.value}, not {names}"
            prop = _P.ANSWER_TELLS_WHAT_HAPPENED
            handed = FailureReply.OWNER_UNREACHABLE in allowed and not turn.orphan
            if handed and answer is FailureReply.UPSTREAM_UNAVAILABLE:
                prop = _P.REBIND_CODE_IS_NOT_WITHHELD
            step.broken(prop, text)
    _check_evidence(step, effect, turn)
    _check_effort(step, turn)
    if answer not in _TERMINAL:
        _count(step, turn)


def _answers(step: ModelStep, turn: ModelTurn) -> set[FailureReply]:
    """The answers that are true for the client, other than not-found."""
    event, model = step.event, step.model
    if isinstance(event, ev.DeadlineReached) and event.timer is Timer.TURN:
        return {FailureReply.REQUEST_TIMEOUT}
    if isinstance(event, ev.ResponseEnded) and step.before.carried == turn.id:
        return {FailureReply.UPSTREAM_ERROR}
    if turn.stage in BEGUN:
        other = isinstance(event, ev.UpstreamRefused) and refusal_of(event) in PASSED_ON
        return {FailureReply.UPSTREAM_ERROR if other else FailureReply.STREAM_INCOMPLETE}
    if step.lost is not None and step.lost.id == turn.id:
        if step.before.to_owner:
            return {FailureReply.OWNER_UNREACHABLE}
        return {
            FailureReply.REQUEST_TIMEOUT if is_silence(event) else FailureReply.STREAM_INCOMPLETE
        }
    rejected = isinstance(event, ev.ConnectionLost) and is_rejection(event)
    if turn.stage is TurnStage.SENT and not rejected:
        # A resend found no connection: the answer is about the loss before it.
        return {FailureReply.REQUEST_TIMEOUT, FailureReply.STREAM_INCOMPLETE}
    if step.refused is not None and step.head is not None and step.head.id == turn.id:
        if step.refused in PASSED_ON:
            return {FailureReply.UPSTREAM_ERROR}
        return {FailureReply.UPSTREAM_UNAVAILABLE}
    if rejected:
        return {FailureReply.UPSTREAM_ERROR}
    handed = model.terms.hands_over or turn.orphan
    if handed and step.before.socket == "connecting" and model.socket == "none":
        return {FailureReply.OWNER_UNREACHABLE}
    return {FailureReply.UPSTREAM_UNAVAILABLE}


def _check_not_found(step: ModelStep, turn: ModelTurn, answer: FailureReply) -> None:
    if turn.source is Standing.INJECTED:
        step.broken(_P.INJECTED_IS_INVISIBLE, f"turn {turn.id} got not-found")
    if answer is FailureReply.UPSTREAM_ERROR and turn.source in (
        Standing.UNKNOWN,
        Standing.UNANCHORED,
    ):
        return
    count = step.dead_ends(turn)
    if count < step.model.terms.bounded or not _dead_end(step, turn):
        text = f"a {turn.source.value} anchor, {count} refusals, {shown(step.event)}"
        step.broken(_P.NOT_FOUND_IS_EARNED, text)


def _check_evidence(step: ModelStep, effect: fx.FailTurn, turn: ModelTurn) -> None:
    """Check that the failure reported with the answer is that of the event; none if nothing
    failed."""
    reported, happened = effect.failure, evidence_of(step.event)
    own = step.refused is not None and step.before.carried == turn.id
    unsent = step.model.socket == "open" and not own and turn.stage is TurnStage.WAITING
    if isinstance(step.event, ev.OutputReceived):  # buffer full before response.created
        matches = reported is None or reported.kind is FailureKind.LOST
    else:
        matches = reported == happened or (reported is None and unsent)
    if not matches:
        text = f"{shown(effect)} reports {shown(reported)} for {shown(step.event)}"
        step.broken(_P.ANSWER_TELLS_WHAT_HAPPENED, text)


def _check_effort(step: ModelStep, turn: ModelTurn) -> None:
    """Check that the turn was not given up while it could still be recovered."""
    model, event = step.model, step.event
    if isinstance(event, ev.DeadlineReached) and event.timer is Timer.TURN:
        return
    if step.refused is not None and step.before.carried == turn.id:
        before = step.before.carried_turn()
        first = step.refused not in before.refusals
        again = before.source is Standing.INJECTED or (
            before.standing in HELD and before.form != RequestForm.REHYDRATED.value
        )
        if first and (step.refused == "limit" or (step.refused == "not_found" and again)):
            step.broken(_P.RECOVERED_AT_ONCE, f"{step.refused} ended turn {turn.id}")
        if step.of_the_socket and "socket" not in turn.refusals:
            step.broken(_P.FALLBACK_IS_PROVEN, f"turn {turn.id} was not tried over HTTP")
        if step.refused == "other" and before.source is Standing.INJECTED:
            step.broken(_P.INJECTED_IS_INVISIBLE, f"a refusal ended turn {turn.id}")
    elif model.socket == "open" and turn.stage is TurnStage.WAITING:
        known = turn.anchor is None or turn.anchor == model.cached or model.to_owner
        if known or turn.source is not Standing.BOUND:
            step.broken(_P.CONTINUED_AT_ONCE, f"{shown(turn)} was refused without a send")
    elif step.of_the_socket and turn.id == _first(step.before):
        if "socket" not in turn.refusals:
            step.broken(_P.FALLBACK_IS_PROVEN, f"turn {turn.id} was not tried over HTTP")
    elif (
        model.remote
        and turn.stage is TurnStage.WAITING
        and (step.before.socket == "connecting" or step.declined)
    ):
        step.broken(_P.OWNER_LOSS_REBINDS, f"turn {turn.id} failed, its session was not rebound")


def _dead_end(step: ModelStep, turn: ModelTurn) -> bool:
    """Whether the same try again would fail in the same way."""
    if turn.anchor is None:
        return False
    if step.lost is not None and step.lost.id == turn.id:
        again = turn.standing in (Standing.STORED, Standing.BOUND, Standing.UNKNOWN)
        # The context can still be sent in full, but the id alone cannot.
        stored = turn.standing is Standing.HELD_STORED and turn.form == RequestForm.AS_IS.value
        again = again or stored
        local = not step.before.to_owner
        return is_silence(step.event) and again and local and turn.stage is TurnStage.SENT
    if step.refused is not None and step.before.carried == turn.id:
        kept = turn.standing in (Standing.STORED, Standing.BOUND)
        return step.refused == "not_found" and kept
    return step.model.socket == "open" and turn.stage is TurnStage.WAITING


def _count(step: ModelStep, turn: ModelTurn) -> None:
    deadline = isinstance(step.event, ev.DeadlineReached) and step.event.timer is Timer.TURN
    if deadline or not _dead_end(step, turn):
        return
    count = step.dead_ends(turn) + 1
    if count > step.model.terms.bounded and turn.standing is not Standing.HELD_STORED:
        step.broken(_P.REFUSALS_ARE_BOUNDED, f"refusal {count} of {turn.anchor}")
    step.add_dead_end(turn)


def _first(model: Model) -> int | None:
    """The number of the turn that runs."""
    return model.turns[0].id if model.turns else None
