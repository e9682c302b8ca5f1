"""Checks what a session does about an event: the effects of one step, in their order.

What belongs here: ``check_step``, the entry point of the reference model, with the conditions under
which each effect is right, and what must hold when all of them are done. How turns may fail is
model_failures.py; what the event itself means is model_events.py.
"""

from __future__ import annotations

from typing import assert_never

from bridgecore.recovery import effects as fx
from bridgecore.recovery import events as ev
from bridgecore.recovery.effects import Effect, RequestForm
from bridgecore.recovery.events import Event, Standing
from bridgecore.recovery.failure import Malformed
from bridgecore.recovery.timers import Deadline, Timer
from bridgecore.verify.model import HELD, Model, ModelTurn, TurnStage
from bridgecore.verify.model_events import PROGRESS, ModelStep
from bridgecore.verify.model_failures import check_failure
from bridgecore.verify.properties import Property
from bridgecore.verify.shown import shown

_P = Property
_ANYWHERE = (Standing.HELD_STORED, Standing.STORED)  # every connection knows such an anchor


def check_step(
    model: Model,
    event: Event,
    effects: tuple[Effect, ...],
    now: int,
    deadline: Deadline | None,
    whole: bool = True,
) -> Model:
    """The model after ``event`` caused ``effects`` at ``now`` (ns); ``model`` itself if the event
    must be ignored. ``deadline`` is the session's next one. ``whole``: these are all its effects;
    otherwise more may follow.

    Raises:
        ViolationError: a property does not hold.
    """
    event = model.by_its_name(event)
    if not model.requires_reaction(event, now):
        for effect in effects:
            if type(effect) is not fx.Ignored:
                model.broken(_P.SPURIOUS_IS_NOTHING, f"{shown(event)} caused {shown(effect)}")
        model.check_deadline(deadline)
        return model
    after = model.copy()
    step = ModelStep(model, after, event, now)
    step.apply_event()
    for effect in effects:
        _apply_effect(step, effect)
    if whole:
        _check_after_effects(step)
        after.check_deadline(deadline)
    return after


def _apply_effect(step: ModelStep, effect: Effect) -> None:
    """Check one effect and apply it to the model."""
    model = step.model
    if isinstance(effect, fx.DeliverEvent):
        _delivered(step, effect)
    elif isinstance(effect, fx.SendTurn):
        _sent(step, effect)
    elif isinstance(effect, fx.OpenConnection):
        if model.socket != "none" or effect.generation != model.generation + 1:
            step.broken(
                _P.LIVE_GENERATION,
                f"{shown(effect)}, connection {model.generation} is {model.socket}",
            )
        if effect.remote is not model.remote:
            owner = "another replica" if model.remote else "this replica"
            step.broken(_P.OWNER_LOSS_REBINDS, f"{shown(effect)}, but {owner} owns the session")
        _check_transport(step, effect)
        model.socket, model.generation, model.to_owner = (
            "connecting",
            effect.generation,
            model.remote,
        )
        step.again = model.turns[0].id if model.turns else None
        model.connect_due = step.now + model.terms.timeouts.connect
    elif isinstance(effect, fx.CloseConnection):
        if effect.generation != model.generation or model.socket == "none":
            step.broken(_P.LIVE_GENERATION, f"{shown(effect)}, but there is no such connection")
        if not _may_close(step):
            step.broken(_P.SOUND_SOCKETS_STAY, f"{shown(effect)} after {shown(step.event)}")
        if model.past_lifetime and step.must_close is None:
            step.knew = model.cached
        step.forget_connection()
        step.must_close = None
    elif isinstance(effect, fx.CompleteTurn):
        turn = step.turn(effect.turn)
        if not isinstance(step.event, ev.ResponseEnded) or turn.id != step.before.carried:
            step.broken(_P.DELIVERED_TO_ITS_TURN, f"{shown(step.event)} ended {turn.id}")
        elif isinstance(step.event.cause, Malformed):
            step.broken(_P.ANSWER_TELLS_WHAT_HAPPENED, f"{shown(step.event)} completed the turn")
        else:
            _check_names(step, effect, step.event)
        step.end(turn.id)
    elif isinstance(effect, fx.FailTurn):
        check_failure(step, effect)
    elif isinstance(effect, fx.RetireSession):
        if step.retired:
            step.broken(_P.IDLE_IS_RETIRED, "retired twice")
        step.retired = True
        if model.turns or model.socket != "none":
            step.broken(_P.IDLE_IS_RETIRED, f"retired with {shown(model.turns or model.socket)}")
    elif isinstance(effect, fx.RebindSession):
        sent = step.lost is not None
        unsent = step.before.socket == "connecting" or step.declined
        if not model.remote or sent or not unsent:
            step.broken(_P.OWNER_LOSS_REBINDS, f"rebound after {shown(step.event)}")
        model.remote = False
        if model.turns:
            step.put(model.turns[0]._replace(orphan=True))
    elif isinstance(effect, fx.StopInjecting | fx.StopRebuilding):
        if effect.turn != step.before.carried:
            step.broken(_P.REFUSED_PLAN_ENDS, f"{shown(effect)}, but {step.before.carried} ran")
        what = "injecting" if isinstance(effect, fx.StopInjecting) else "rebuilding"
        if what in step.stopped:
            step.broken(_P.REFUSED_PLAN_ENDS, f"{shown(effect)} twice")
        step.stopped.add(what)
    elif isinstance(effect, fx.WarmSession):
        step.warmed = effect.anchor
    elif isinstance(effect, fx.Ignored):
        pass
    else:
        assert_never(effect)


def _check_transport(step: ModelStep, effect: fx.OpenConnection) -> None:
    """Check that HTTP is asked for if, and only if, the upstream did not take the turn over
    WebSocket; note that it did not."""
    head = step.model.turns[0] if step.model.turns else None
    if head is None:
        return
    before = "socket" in head.refusals
    if step.of_the_socket and before:
        step.broken(_P.FALLBACK_IS_PROVEN, f"{shown(effect)} after a second refusal of a WebSocket")
    due = (before or step.of_the_socket) and not effect.remote
    if effect.http is not due:
        step.broken(_P.FALLBACK_IS_PROVEN, f"{shown(effect)} after {shown(step.event)}")
    if step.of_the_socket:
        step.put(head._replace(refusals=tuple(sorted({*head.refusals, "socket"}))))


def _check_names(step: ModelStep, effect: fx.CompleteTurn, event: ev.ResponseEnded) -> None:
    """Check that the answer is completed with all ids of its response, in their order, the
    terminal event's own last."""
    names = step.before.names_at_end(event)
    if effect.responses != names:
        text = f"the response's ids are {names}, the effect has {effect.responses}"
        step.broken(_P.DELIVERED_TO_ITS_TURN, text)


def _may_close(step: ModelStep) -> bool:
    model, event = step.model, step.event
    if step.must_close is not None or model.past_lifetime or step.of_the_socket:
        return True
    if isinstance(event, ev.DeadlineReached):
        return event.timer in (Timer.TURN, Timer.EXPIRY)
    idle = not model.turns
    return idle and (model.socket == "connecting" or isinstance(event, ev.EvictionRequested))


def _delivered(step: ModelStep, effect: fx.DeliverEvent) -> None:
    turn = step.turn(effect.turn)
    step.delivered += 1
    answers = isinstance(step.event, PROGRESS)
    if step.model.carried != turn.id or not answers:
        step.broken(
            _P.DELIVERED_TO_ITS_TURN, f"{shown(step.event)} was delivered to turn {turn.id}"
        )
    if step.doubtful:
        if not effect.held:
            text = f"{shown(step.event)} was shown before it is known to be of turn {turn.id}"
            step.broken(_P.DELIVERED_TO_ITS_TURN, text)
        return
    if effect.held:
        terms, bearing = step.model.terms, getattr(step.event, "bearing", False)
        again = terms.holds and turn.ambiguous < terms.replays and not step.model.to_owner
        if not again or bearing or turn.stage is TurnStage.ANSWERED:
            step.broken(_P.ANSWER_IS_WHOLE, f"{shown(step.event)} is held back without need")
    stage = TurnStage.ACCEPTED if effect.held else TurnStage.ANSWERED
    if turn.stage is not stage:
        step.put(turn._replace(stage=stage))


def _sent(step: ModelStep, effect: fx.SendTurn) -> None:
    model = step.model
    turn = step.turn(effect.turn)
    if model.socket != "open" or effect.generation != model.generation:
        step.broken(_P.OPEN_IS_OPEN, f"{shown(effect)}, the connection is {model.socket}")
    if model.carried is not None or (step.must_close is _P.ONE_AT_A_TIME):
        step.broken(_P.ONE_AT_A_TIME, f"{shown(effect)} beside turn {step.before.carried}")
    if turn.stage is TurnStage.ANSWERED:
        step.broken(_P.NO_REPLAY_AFTER_ANSWER, f"{shown(effect)}")
    if model.past_lifetime and turn.id != step.before.carried:
        step.broken(_P.SOCKETS_ARE_ROTATED, f"{shown(effect)} on a connection past its lifetime")
    if turn.id != model.turns[0].id:
        step.broken(_P.QUEUE_IS_BOUNDED, f"{shown(effect)} before turn {model.turns[0].id}")
    if step.refused is not None and turn.id == step.before.carried:
        refusals = step.before.carried_turn().refusals
        if step.refused in refusals:
            step.broken(_P.RECOVERED_ONCE, f"{shown(effect)} after a second {step.refused}")
    ambiguous = turn.ambiguous
    if turn.stage in (TurnStage.SENT, TurnStage.ACCEPTED):
        ambiguous = min(ambiguous, model.terms.replays) + 1
        if ambiguous > model.terms.replays:
            step.broken(_P.REPLAYS_ARE_BOUNDED, f"replay {ambiguous} of {turn.id}")
        if model.terms.strict:
            step.broken(_P.NO_AMBIGUOUS_RESEND, f"{shown(effect)}")
    _check_form(step, turn, effect.form)
    if effect.form.value in turn.refused:
        step.broken(_P.REFUSED_IS_NOT_REPEATED, f"{shown(effect)}: that form was refused before")
    step.again = turn.id
    form = effect.form.value
    step.put(turn._replace(stage=TurnStage.SENT, ambiguous=ambiguous, orphan=False, form=form))
    model.carried, model.framed, model.paused = turn.id, False, False
    model.names, model.doubt = (), None
    model.created_due, model.idle_due = step.now + model.terms.timeouts.created, None


def _check_form(step: ModelStep, turn: ModelTurn, form: RequestForm) -> None:
    model = step.model
    local = turn.anchor is None or turn.anchor == model.cached or model.to_owner
    if form is RequestForm.AS_IS:
        if not local and turn.standing not in (*_ANYWHERE, Standing.UNKNOWN):
            step.broken(
                _P.ANCHOR_IS_KNOWN, f"{turn.anchor} sent, the connection knows {model.cached}"
            )
        if "not_found" in turn.refusals:
            step.broken(_P.RECOVERED_ONCE, f"{turn.anchor} was not found before")
        if turn.full:
            step.broken(_P.REFUSED_PLAN_ENDS, f"{turn.anchor} is injected again")
        if not local and turn.standing is Standing.HELD_STORED and step.is_known_to_fail(turn):
            text = f"{turn.anchor} failed before, and the full context is held"
            step.broken(_P.REFUSED_IS_NOT_REPEATED, text)
        model.known = local or turn.standing in _ANYWHERE
        return
    able = HELD if form is RequestForm.REHYDRATED else (Standing.INJECTED,)
    if turn.standing not in able:
        step.broken(_P.FORM_IS_POSSIBLE, f"{form.value} of {shown(turn)}")
    stored = turn.standing is Standing.HELD_STORED and not step.is_known_to_fail(turn)
    tried = turn.refusals or turn.refused or turn.ambiguous or turn.form == form.value
    if (local or stored) and not tried:
        step.broken(_P.FORM_IS_POSSIBLE, f"{form.value}, but the anchor is known")
    model.known = True


def _check_after_effects(step: ModelStep) -> None:
    """Check what must hold after all effects."""
    model, event, now = step.model, step.event, step.now
    if step.must_close is not None and model.generation == step.before.generation:
        step.broken(step.must_close, f"after {shown(event)} the connection is still {model.socket}")
    carried = model.carried
    if carried is not None and carried not in [turn.id for turn in model.turns]:
        step.broken(_P.ONE_AT_A_TIME, f"turn {model.carried} ended, its connection is still open")
    if isinstance(event, ev.TurnSubmitted) and len(model.turns) > model.terms.waiting + 1:
        step.broken(_P.QUEUE_IS_BOUNDED, f"{len(model.turns) - 1} turns wait")
    answers = isinstance(event, PROGRESS) and step.lost is None
    if answers and step.delivered != 1:
        text = f"{shown(event)} was delivered {step.delivered} times"
        step.broken(_P.ANSWER_IS_WHOLE, text)
    if isinstance(event, ev.ResponseEnded):
        ended = step.before.carried
        if ended in [turn.id for turn in model.turns]:
            step.broken(_P.ANSWER_IS_WHOLE, f"turn {ended} goes on after its end")
    if model.turns and model.carried is None and model.socket != "connecting":
        numbers = ", ".join(str(turn.id) for turn in model.turns)
        text = f"turn {numbers} waits, but no turn runs and no connect is under way"
        step.broken(_P.NOTHING_IS_STRANDED, text)
    if not model.turns and model.socket == "connecting":
        step.broken(_P.NOTHING_IS_STRANDED, "a connect is under way for no turn")
    if model.past_lifetime and model.carried is None and model.socket == "open":
        step.broken(_P.SOCKETS_ARE_ROTATED, "a connection past its lifetime is kept")
    if step.stopped != step.to_stop:
        text = f"{shown(event)} stopped {sorted(step.stopped)}, not {sorted(step.to_stop)}"
        step.broken(_P.REFUSED_PLAN_ENDS, text)
    due = step.knew if model.terms.warm and not model.turns else None
    if step.warmed != due:
        text = f"preloaded {step.warmed}, the old connection knew {due}"
        step.broken(_P.SOCKETS_ARE_ROTATED, text)
    expired = isinstance(event, ev.DeadlineReached) and event.timer is Timer.EXPIRY
    ends = expired or isinstance(event, ev.EvictionRequested)
    if ends is not step.retired:
        step.broken(
            _P.IDLE_IS_RETIRED, f"{shown(event)}: retired is {step.retired}, should be {ends}"
        )
    # A loss before the frame was sent costs no try: the send itself has cost one.
    free = isinstance(event, ev.ConnectionOpened) or getattr(event, "unsent", False)
    if step.again is not None and not free:
        left, before = _tries(model, step.again), _tries(step.before, step.again)
        if before is not None and (left is None or left >= before):
            text = f"after {shown(event)} turn {step.again} is tried again with {left} tries left"
            step.broken(_P.RECOVERY_DESCENDS, text)
    submitted = isinstance(event, ev.TurnSubmitted)
    if not model.turns and (submitted or step.before.turns):
        model.expiry_due = now + model.terms.timeouts.expiry
    elif step.retired:
        model.expiry_due = None


def _tries(model: Model, number: int) -> int | None:
    """How many further tries turn ``number`` has: one if its owner may be lost, one for each kind
    of refusal, and its replays. None: it has not been tried."""
    for turn in model.turns[:1]:
        if turn.id != number:
            continue
        dark = turn.stage is TurnStage.SENT and model.carried is None  # lost, and to be resent
        injected = turn.source is Standing.INJECTED and not turn.refused
        kinds = 2 + model.terms.falls_back - len(turn.refusals) + injected
        return model.remote + model.terms.replays - turn.ambiguous - dark + kinds
    return None
