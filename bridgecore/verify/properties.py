"""What must be true whatever happens, by name.

What belongs here: the named properties of a session, and the table that says by what each invariant
is checked. What checks them is model.py, and for what only the whole graph shows, explore.py.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

from bridgecore.errors import BridgecoreError


class Property(enum.Enum):
    """The properties: the value says what is demanded, with the invariants' numbers."""

    NOT_FOUND_IS_EARNED = (
        "not-found reaches a client only as the upstream's word about an id that the bridge never "
        "saw, or after the bounded refusals are used up (1)"
    )
    INJECTED_IS_INVISIBLE = (
        "an injected anchor never reaches the client as an error: whatever the upstream says "
        "against it, the client's own input goes (section 2)"
    )
    CONTINUED_AT_ONCE = (
        "a turn that an open socket can carry in some form is sent; it is not refused (1, 2)"
    )
    ANCHOR_IS_KNOWN = (
        "an anchor is sent only to the socket that made it, or where any socket can know it (2)"
    )
    FORM_IS_POSSIBLE = (
        "a full form is sent only where the full input is at hand, and only when it is needed (7)"
    )
    RECOVERED_AT_ONCE = (
        "a limit error, and not-found for what the bridge can send in full, cost the client "
        "nothing the first time (5, 32)"
    )
    RECOVERED_ONCE = "an upstream refusal costs at most one extra send of its kind (5, 32)"
    REFUSED_IS_NOT_REPEATED = (
        "what the upstream refused is not sent again in that form, and a stored id that met "
        "silence is not tried again where the chain is held (5)"
    )
    REFUSED_PLAN_ENDS = (
        "an injected anchor and a rebuilt input that were refused are given up for good, and only "
        "those (4, 5)"
    )
    REFUSALS_ARE_BOUNDED = (
        "the same dead end is offered a bounded number of times, then an honest answer (5, 35)"
    )
    ANSWER_TELLS_WHAT_HAPPENED = (
        "a failure's answer and evidence are those of what happened, on every path (10, 31)"
    )
    NO_AMBIGUOUS_RESEND = (
        "what the upstream may have accepted is not sent again, unless it refused it itself (11)"
    )
    REPLAYS_ARE_BOUNDED = "a turn is replayed a bounded number of times over all paths (12)"
    RECONNECT_COSTS_NO_REPLAY = (
        "turns lost alike after equally many replays are treated alike: a reconnect without a "
        "send uses up no replay (12)"
    )
    NO_REPLAY_AFTER_ANSWER = "nothing is sent again once the client saw the answer begin (13, 14)"
    ANSWER_IS_WHOLE = (
        "each event of a running answer reaches its client once, and at once unless the turn may "
        "yet be sent again; response.created is the first, and the terminal event ends the turn "
        "(14, 24, 26)"
    )
    DELIVERED_TO_ITS_TURN = (
        "an upstream event reaches only the turn that caused it, told by the response it names "
        "(24, 27)"
    )
    ONE_AT_A_TIME = (
        "a socket carries one turn at a time, and is dropped after a turn that did not end (24)"
    )
    OPEN_IS_OPEN = "nothing is sent unless the socket is open (17)"
    ONE_END = "each turn has exactly one end, and nothing is done for it afterwards (25, 41)"
    QUEUE_IS_BOUNDED = (
        "turns wait in a bounded queue, in order; a full one, no other, rejects at once (21, 23)"
    )
    NOTHING_IS_STRANDED = (
        "no turn waits for nobody, and no connect is under way for no turn (18, 20)"
    )
    LIVE_GENERATION = "no effect is for a dead generation; generations grow by one (42)"
    IDLE_IS_RETIRED = (
        "a session is retired when it expires or is evicted, and only if no turn runs or waits (19)"
    )
    SILENCE_DROPS_THE_SOCKET = "a socket that missed a deadline is dropped (5, 31)"
    SOUND_SOCKETS_STAY = (
        "a socket is not closed without a reason: what it remembers would be lost (1)"
    )
    SOCKETS_ARE_ROTATED = (
        "a socket past its lifetime carries no further turn and is closed; what it knew is brought "
        "to the next one if that is wanted, and only then (32)"
    )
    DEADLINES_ARE_KEPT = (
        "the next deadline is the earliest that is owed, counted from what started it: keepalives "
        "and progress of others extend none, and nothing stays due (29, 30)"
    )
    SPURIOUS_IS_NOTHING = "a stale, unmatched or spurious event does nothing (27, 42, 44)"
    REBIND_CODE_IS_PROVEN = (
        "the code by which another replica may take over is told, of a session of our own, only "
        "for a turn that provably was not accepted (38)"
    )
    REBIND_CODE_IS_NOT_WITHHELD = (
        "a policy that lets other replicas take over lets them take over what provably was not "
        "sent (38)"
    )
    OWNER_LOSS_REBINDS = (
        "a session is rebound locally if its owner cannot be reached, and never once the turn may "
        "have been accepted (38)"
    )
    RECOVERY_DESCENDS = (
        "whatever is tried again for a turn leaves fewer tries: of replays, of kinds of refusal, "
        "of owners (12, 35)"
    )
    TURNS_END = "with a healthy upstream every turn ends in a bounded number of steps (35)"
    RETRIES_END = (
        "with a healthy upstream a client that retries as told succeeds, or gets an honest answer, "
        "within the bounded refusals and one more try (35)"
    )
    NO_INTERNAL_ERROR = "the rules raise no error for an event that can happen (law 6)"


_P = Property
_BRIDGE = "of the bridge, not of a session: in its exploration (bridgecore.verify.explore_bridge) "
_SIM = "; in the simulator "
_FRONT = "of the endpoint's fronts, not of a session: "
_LATER = "there is nothing to check yet: "

INVARIANTS: Mapping[int, str | tuple[Property, ...]] = {
    1: (
        _P.NOT_FOUND_IS_EARNED,
        _P.INJECTED_IS_INVISIBLE,
        _P.CONTINUED_AT_ONCE,
        _P.SOUND_SOCKETS_STAY,
    ),
    2: (_P.ANCHOR_IS_KNOWN, _P.CONTINUED_AT_ONCE),
    3: _BRIDGE + "CREDENTIALS_ARE_KEPT_APART" + _SIM + "'credential'",
    4: _BRIDGE + "REJECTED_INJECTION_ENDS; tests/endpoint/test_reduction.py",
    5: (
        _P.RECOVERED_ONCE,
        _P.REFUSED_IS_NOT_REPEATED,
        _P.REFUSED_PLAN_ENDS,
        _P.REFUSALS_ARE_BOUNDED,
        _P.SILENCE_DROPS_THE_SOCKET,
    ),
    6: _BRIDGE + "CONTEXT_IS_MEANT" + _SIM + "'context'",
    7: (_P.FORM_IS_POSSIBLE,),
    8: _BRIDGE + "OUTPUTS_HAVE_CALLS" + _SIM + "'self-contained'",
    9: (_P.ANCHOR_IS_KNOWN,),
    10: (_P.ANSWER_TELLS_WHAT_HAPPENED,),
    11: (_P.NO_AMBIGUOUS_RESEND,),
    12: (_P.REPLAYS_ARE_BOUNDED, _P.RECONNECT_COSTS_NO_REPLAY),
    13: (_P.NO_REPLAY_AFTER_ANSWER,),
    14: (_P.NO_REPLAY_AFTER_ANSWER, _P.ANSWER_IS_WHOLE),
    15: _BRIDGE + "CALLS_ARE_TOLD_ONCE" + _SIM + "'tool'; nothing is replayed after output (13)",
    16: (_P.ANSWER_TELLS_WHAT_HAPPENED, _P.ONE_AT_A_TIME),
    17: (_P.OPEN_IS_OPEN,),
    18: (_P.NOTHING_IS_STRANDED,),
    19: (_P.IDLE_IS_RETIRED,),
    20: (_P.NOTHING_IS_STRANDED,),
    21: (_P.QUEUE_IS_BOUNDED,),
    22: _LATER + "admission has no tickets",
    23: (_P.QUEUE_IS_BOUNDED, _P.DEADLINES_ARE_KEPT),
    24: (_P.DELIVERED_TO_ITS_TURN, _P.ONE_AT_A_TIME, _P.ANSWER_IS_WHOLE),
    25: (_P.ONE_END,),
    26: (_P.ANSWER_IS_WHOLE,),
    27: (_P.DELIVERED_TO_ITS_TURN, _P.SPURIOUS_IS_NOTHING),
    28: _FRONT + "backpressure is checked with slow readers (tests/endpoint/test_streams.py)",
    29: (_P.DEADLINES_ARE_KEPT,),
    30: (_P.DEADLINES_ARE_KEPT,),
    31: (_P.ANSWER_TELLS_WHAT_HAPPENED, _P.SILENCE_DROPS_THE_SOCKET),
    32: (_P.SOCKETS_ARE_ROTATED, _P.RECOVERED_AT_ONCE, _P.RECOVERED_ONCE),
    33: _LATER + "there is no circuit",
    34: _LATER + "there is no circuit; an upstream's Retry-After is tests/test_api_error.py's",
    35: (_P.RECOVERY_DESCENDS, _P.TURNS_END, _P.RETRIES_END, _P.REFUSALS_ARE_BOUNDED),
    36: _LATER + "there are no leases",
    37: _LATER + "there are no leases",
    38: (_P.OWNER_LOSS_REBINDS, _P.REBIND_CODE_IS_PROVEN, _P.REBIND_CODE_IS_NOT_WITHHELD),
    39: _BRIDGE + "FOREIGN_IS_UNKNOWN and CREDENTIALS_ARE_KEPT_APART" + _SIM + "'foreign'",
    40: _BRIDGE + "CONTEXT_IS_MEANT" + _SIM + "'sibling'; tests/continuity/test_transcript.py",
    41: (_P.ONE_END,),
    42: (_P.LIVE_GENERATION, _P.SPURIOUS_IS_NOTHING),
    43: "the same log under several hash seeds is compared (tests/verify/test_determinism.py)",
    44: (_P.SPURIOUS_IS_NOTHING,),
    45: _FRONT + "byte for byte, in tests/endpoint/test_streams.py",
}


class ViolationError(BridgecoreError):
    """A property does not hold. ``prop`` is which, ``text`` why."""

    def __init__(self, prop: Property, text: str) -> None:
        super().__init__(f"{prop.name}: {text}")
        self.prop = prop
        self.text = text
