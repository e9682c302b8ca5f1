"""The named properties of a session, and what checks each requirement on a bridge.

What belongs here: what must hold, in words, and what a violation costs a user; ``bridgecore
verify`` prints both. The checks are in model_events.py, model_effects.py and model_failures.py,
those that need the whole graph of states (liveness, replays) in explore.py.
"""

from __future__ import annotations

from collections.abc import Mapping

from bridgecore.errors import BridgecoreError
from bridgecore.verify.cost import CostedProperty, Rank


class Property(CostedProperty):
    """The properties of a session. The value says what must hold, ``cost`` what a violation costs a
    user."""

    NOT_FOUND_IS_EARNED = (
        "a client is answered previous_response_not_found only if the upstream said so of an "
        "id that the bridge never saw, or after the budget of retriable refusals is spent",
        Rank.HARM,
        "context growth: the client drops its anchor and sends its whole history again, each "
        "time that a connection is lost",
    )
    INJECTED_IS_INVISIBLE = (
        "an error about an injected anchor never reaches the client: if the upstream refuses "
        "it, the client's own full input is sent instead",
        Rank.LOSS,
        "a turn that fails for an id that its client never sent and cannot correct",
    )
    CONTINUED_AT_ONCE = (
        "a turn that the open connection can carry in some form is sent, not refused",
        Rank.LOSS,
        "a turn that could have been answered is refused",
    )
    ANCHOR_IS_KNOWN = (
        "an anchor is sent only on the connection that made the response, or if the upstream "
        "stores it (store=true)",
        Rank.LOSS,
        "the upstream refuses the turn, because the response that it continues is unknown there",
    )
    FORM_IS_POSSIBLE = (
        "full input is sent only if the bridge has all of it, and only if the anchor cannot "
        "be sent",
        Rank.HARM,
        "the model answers without a part of the context, or all of the context is sent where "
        "an id was enough",
    )
    RECOVERED_AT_ONCE = (
        "the first connection-limit error of a turn, and the first not-found for a context "
        "that the bridge holds, are recovered without an error to the client",
        Rank.LOSS,
        "an error for a turn that a second send would have answered",
    )
    RECOVERED_ONCE = (
        "each kind of upstream refusal causes at most one additional send of a turn",
        Rank.STUCK,
        "the bridge sends the turn again and again, and its client waits",
    )
    REFUSED_IS_NOT_REPEATED = (
        "a form of the input that the upstream refused is not sent again; a stored anchor "
        "that met silence is not tried again if the bridge holds the context",
        Rank.WASTE,
        "a send that fails for the same reason as the last one: its bytes, and the time until "
        "it fails",
    )
    REFUSED_PLAN_ENDS = (
        "after the upstream refused an injected anchor or a rebuilt input, that anchor is not "
        "injected or that input not rebuilt again; a plan that was not refused is kept",
        Rank.STUCK,
        "the same refused input is sent with each retry: the client gets no further",
    )
    REFUSALS_ARE_BOUNDED = (
        "a client that retries into the same dead end gets a bounded number of retriable "
        "refusals, then previous_response_not_found",
        Rank.STUCK,
        "the same 502, however often the client retries",
    )
    ANSWER_TELLS_WHAT_HAPPENED = (
        "the error code and the evidence of a failure match the event that caused it, on "
        "every path",
        Rank.MISLED,
        "the client retries what cannot succeed, or gives up what would have succeeded",
    )
    NO_AMBIGUOUS_RESEND = (
        "a turn that the upstream may have accepted is not sent again, unless the upstream "
        "itself refused it before generating",
        Rank.HARM,
        "a turn that runs twice: its tool calls, side effects and tokens",
    )
    REPLAYS_ARE_BOUNDED = (
        "the resends of a turn never exceed the replay budget, over all paths together",
        Rank.HARM,
        "a turn that runs more often than the operator allows: its tool calls, side effects "
        "and tokens",
    )
    RECONNECT_COSTS_NO_REPLAY = (
        "a reconnect without a send uses up no replay: turns that were lost in the same way "
        "after equally many replays get the same remedy",
        Rank.LOSS,
        "a turn fails that could have been sent again, because a mere reconnect used up its replay",
    )
    NO_REPLAY_AFTER_ANSWER = (
        "a turn is not sent again after the client received the beginning of its answer",
        Rank.HARM,
        "the client sees two beginnings of an answer, and may act on both",
    )
    ANSWER_IS_WHOLE = (
        "each event of an answer is delivered to its client exactly once, without delay "
        "unless the turn may still be resent; response.created is the first, and the terminal "
        "event ends the turn",
        Rank.LOSS,
        "an answer with events that are missing, repeated or late",
    )
    DELIVERED_TO_ITS_TURN = (
        "an upstream event is delivered only to the turn that caused it, matched by the "
        "response id in the event",
        Rank.HARM,
        "a client reads the answer to another turn",
    )
    ONE_AT_A_TIME = (
        "a connection carries one turn at a time, and is closed if its turn is given up "
        "before its terminal event",
        Rank.HARM,
        "the rest of an answer is delivered to the next turn, maybe that of another user",
    )
    OPEN_IS_OPEN = (
        "nothing is sent unless the connection is open",
        Rank.LOSS,
        "a turn is sent where it cannot arrive, and its answer never comes",
    )
    ONE_END = (
        "each turn ends exactly once, and causes no effect after its end",
        Rank.LOSS,
        "a client that gets two ends of its turn, or events after the end",
    )
    QUEUE_IS_BOUNDED = (
        "turns wait in a bounded queue, first in, first out; a turn is rejected at once if "
        "the queue is full, and only then",
        Rank.LOSS,
        "turns are rejected although there is room, overtake each other, or fill the memory",
    )
    NOTHING_IS_STRANDED = (
        "a turn waits only while another one runs, and a connect is under way only for a turn",
        Rank.STUCK,
        "a turn waits until its deadline, although the upstream is healthy",
    )
    LIVE_GENERATION = (
        "no effect targets a connection other than the current one; generations grow by one",
        Rank.LOSS,
        "a new connection is closed or used in place of an old one, and its turn fails",
    )
    IDLE_IS_RETIRED = (
        "a session ends if it expires or is evicted, and only if no turn runs or waits in it",
        Rank.LOSS,
        "a running turn is cut off, or a session is kept for ever",
    )
    SILENCE_DROPS_THE_SOCKET = (
        "a connection on which a deadline passed is closed: what it still delivers could not "
        "be attributed",
        Rank.HARM,
        "a late answer is delivered to the next turn",
    )
    SOUND_SOCKETS_STAY = (
        "a connection is not closed without a reason: the upstream forgets the responses that "
        "it cached on it",
        Rank.WASTE,
        "the upstream's cache of the conversation is lost: the next turn sends its whole context",
    )
    SOCKETS_ARE_ROTATED = (
        "a connection past its lifetime carries no further turn and is closed; its context is "
        "preloaded on the next connection if the policy says so, and only then",
        Rank.LOSS,
        "the provider closes the connection in mid-answer",
    )
    DEADLINES_ARE_KEPT = (
        "the next deadline is the earliest one set, counted from the event that started it; "
        "keepalives and other turns extend none, and a deadline that was handled is not due "
        "again",
        Rank.STUCK,
        "a client that waits for ever, or is cut off too early",
    )
    SPURIOUS_IS_NOTHING = (
        "an event of an old connection, one that matches no turn, and a timer that is not due "
        "have no effect",
        Rank.LOSS,
        "a late event of an old connection ends a turn that was well",
    )
    REBIND_CODE_IS_PROVEN = (
        "for a session of this replica, bridge_owner_unreachable (it lets another replica "
        "take over) is answered only if the turn was provably not accepted",
        Rank.HARM,
        "another replica takes over and runs the turn a second time",
    )
    REBIND_CODE_IS_NOT_WITHHELD = (
        "if the policy answers bridge_owner_unreachable at all, it does so for each turn that "
        "was provably not sent",
        Rank.MISLED,
        "no client learns that another replica may take over: the client retries where it failed",
    )
    OWNER_LOSS_REBINDS = (
        "a session whose owner replica cannot be reached is rebound here, but never after the "
        "owner may have sent the turn",
        Rank.HARM,
        "a turn that runs twice, or a conversation that stays with a dead owner",
    )
    FALLBACK_IS_PROVEN = (
        "a turn goes over HTTP in place of WebSocket if the policy says so and the upstream "
        "has refused a WebSocket, or a message of its size on one; only then, at once, and to "
        "its end",
        Rank.LOSS,
        "a turn fails that HTTP would have taken, or loses the upstream's cache without need",
    )
    RECOVERY_DESCENDS = (
        "each further try of a turn uses up one of a bounded number: replays, kinds of "
        "refusal, owners",
        Rank.STUCK,
        "the bridge tries again for ever, and the client waits",
    )
    TURNS_END = (
        "with a healthy upstream each turn ends within a bounded number of steps",
        Rank.STUCK,
        "a client that waits until its deadline, although the upstream is healthy",
    )
    RETRIES_END = (
        "with a healthy upstream, a client that retries as its errors say succeeds or gets an "
        "answer that is not retriable, within the budget of refusals and one more try",
        Rank.STUCK,
        "a client that retries for ever, as its errors tell it to",
    )
    NO_INTERNAL_ERROR = (
        "the rules raise no exception for an event that can happen",
        Rank.LOSS,
        "the turn ends with an internal error, and its session with it",
    )


_P = Property
_BRIDGE = "a property of the bridge (bridgecore.verify.explore_bridge): "
_SIMULATOR = "; in the simulator "
_FRONT = "a property of the fronts: "
_LATER = "nothing to check yet: "

# Every requirement on a bridge that we know of, so that none goes unchecked unnoticed: tests hold
# this table to be complete. Behind each one is a bug that users of a real bridge met.
INVARIANTS: Mapping[str, str | tuple[Property, ...]] = {
    # Continuity
    "a lost connection never turns into an undeserved not-found": (
        _P.NOT_FOUND_IS_EARNED,
        _P.INJECTED_IS_INVISIBLE,
        _P.CONTINUED_AT_ONCE,
        _P.SOUND_SOCKETS_STAY,
    ),
    "an anchor is sent only where the upstream knows it": (
        _P.ANCHOR_IS_KNOWN,
        _P.CONTINUED_AT_ONCE,
    ),
    "an anchor never crosses credentials": _BRIDGE
    + "CREDENTIALS_ARE_KEPT_APART"
    + _SIMULATOR
    + "'credential'",
    "an injected anchor that was rejected is not injected again": _BRIDGE
    + "REJECTED_INJECTION_ENDS; tests/endpoint/test_reduction.py",
    "two identical failures in a row change the plan": (
        _P.RECOVERED_ONCE,
        _P.REFUSED_IS_NOT_REPEATED,
        _P.REFUSED_PLAN_ENDS,
        _P.FALLBACK_IS_PROVEN,
        _P.REFUSALS_ARE_BOUNDED,
        _P.SILENCE_DROPS_THE_SOCKET,
    ),
    "injecting an anchor leaves the context unchanged": _BRIDGE
    + "CONTEXT_IS_MEANT"
    + _SIMULATOR
    + "'context'",
    "an anchor is removed only from a self-contained turn": (_P.FORM_IS_POSSIBLE,),
    "each tool output that is sent has its call, each call its output": _BRIDGE
    + "OUTPUTS_HAVE_CALLS"
    + _SIMULATOR
    + "'self-contained'",
    "only a completed or incomplete response can be continued": (_P.ANCHOR_IS_KNOWN,),
    "a failure is classified by one function on every path": (_P.ANSWER_TELLS_WHAT_HAPPENED,),
    # Replay
    "no resend of what may have been accepted": (_P.NO_AMBIGUOUS_RESEND,),
    "the replay budget holds over all paths": (
        _P.REPLAYS_ARE_BOUNDED,
        _P.RECONNECT_COSTS_NO_REPLAY,
    ),
    "no replay after output": (_P.NO_REPLAY_AFTER_ANSWER,),
    "a replay is invisible in the client's stream": (
        _P.NO_REPLAY_AFTER_ANSWER,
        _P.ANSWER_IS_WHOLE,
    ),
    "a tool call is delivered at most once": _BRIDGE
    + "CALLS_ARE_TOLD_ONCE"
    + _SIMULATOR
    + "'tool'; of a session, NO_REPLAY_AFTER_ANSWER",
    "each attempt starts without the errors of the last": (
        _P.ANSWER_TELLS_WHAT_HAPPENED,
        _P.ONE_AT_A_TIME,
    ),
    # Accounting
    "a connection that is not open is not used": (_P.OPEN_IS_OPEN,),
    "after a close nothing is pending": (_P.NOTHING_IS_STRANDED,),
    "only an idle session is evicted or expires": (_P.IDLE_IS_RETIRED,),
    "the creation of a session resolves once": (_P.NOTHING_IS_STRANDED,),
    "queue and sessions stay within their limits": (_P.QUEUE_IS_BOUNDED,),
    "admission tickets balance": _LATER + "admission has no tickets",
    "a full queue rejects at once": (_P.QUEUE_IS_BOUNDED, _P.DEADLINES_ARE_KEPT),
    # Streams
    "an upstream event reaches only the turn that caused it": (
        _P.DELIVERED_TO_ITS_TURN,
        _P.ONE_AT_A_TIME,
        _P.ANSWER_IS_WHOLE,
    ),
    "a stream ends with exactly one terminal event": (_P.ONE_END,),
    "response.created is first, the terminal event last": (_P.ANSWER_IS_WHOLE,),
    "an unmatched event fails no other turn": (_P.DELIVERED_TO_ITS_TURN, _P.SPURIOUS_IS_NOTHING),
    "a slow reader neither fills memory nor delays other turns": _FRONT
    + "backpressure is checked with slow readers (tests/endpoint/test_streams.py)",
    # Time
    "a deadline that was handled is not due again": (_P.DEADLINES_ARE_KEPT,),
    "keepalives extend no deadline": (_P.DEADLINES_ARE_KEPT,),
    "the deadline that fired determines the error": (
        _P.ANSWER_TELLS_WHAT_HAPPENED,
        _P.SILENCE_DROPS_THE_SOCKET,
    ),
    "connections are rotated before their lifetime ends": (
        _P.SOCKETS_ARE_ROTATED,
        _P.RECOVERED_AT_ONCE,
        _P.RECOVERED_ONCE,
    ),
    # Circuit breaking
    "only a turn without any event counts against an upstream": _LATER + "there is no circuit",
    "Retry-After is at least the remaining time": _LATER
    + "there is no circuit; an upstream's Retry-After: tests/test_api_error.py",
    "recovery ends": (
        _P.RECOVERY_DESCENDS,
        _P.TURNS_END,
        _P.RETRIES_END,
        _P.REFUSALS_ARE_BOUNDED,
    ),
    # Replicas
    "a session has at most one live owner": _LATER + "there are no leases",
    "a stale epoch changes nothing": _LATER + "there are no leases",
    "local recovery only if the forward was provably not dispatched": (
        _P.OWNER_LOSS_REBINDS,
        _P.REBIND_CODE_IS_PROVEN,
        _P.REBIND_CODE_IS_NOT_WITHHELD,
    ),
    "an id of another credential looks like an unknown one": _BRIDGE
    + "FOREIGN_IS_UNKNOWN and CREDENTIALS_ARE_KEPT_APART"
    + _SIMULATOR
    + "'foreign'",
    "a shared cache key alone never merges conversations": _BRIDGE
    + "CONTEXT_IS_MEANT"
    + _SIMULATOR
    + "'sibling'; tests/continuity/test_transcript.py",
    # General
    "a turn has exactly one end": (_P.ONE_END,),
    "no effect targets an old connection": (_P.LIVE_GENERATION, _P.SPURIOUS_IS_NOTHING),
    "equal event logs give equal effects, byte for byte": (
        "one log is replayed under several hash seeds (tests/verify/test_determinism.py)"
    ),
    "a timer that is not due does nothing": (_P.SPURIOUS_IS_NOTHING,),
    "unknown fields and events pass through unchanged": _FRONT
    + "compared byte for byte in tests/endpoint/test_streams.py",
}


class ViolationError(BridgecoreError):
    """The property ``prop`` does not hold; ``text`` says what was observed."""

    def __init__(self, prop: Property, text: str) -> None:
        super().__init__(f"{prop.name}: {text}")
        self.prop = prop
        self.text = text
