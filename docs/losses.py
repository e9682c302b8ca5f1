"""Draws how each kind of loss goes, from runs of the state machine, for docs/losses.rst.

What belongs here: the losses, a client and an upstream that react as real ones do, and the drawing.
What the bridge does is not written here: every arrow of the bridge is an effect of a ``Session``,
and each status and code is rendered by ``bridgecore.api_error``, as for a real client. The
conversation has had one turn, with ``store=false``. The loss strikes the second one, or comes
before it.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache

import attrs

from bridgecore.api_error import render_answer
from bridgecore.config import Config, UpstreamUrl
from bridgecore.recovery import effects as fx
from bridgecore.recovery import events as ev
from bridgecore.recovery.effects import RequestForm
from bridgecore.recovery.events import Event, Standing, Turn
from bridgecore.recovery.failure import Closed, ErrorFrame, Unreachable
from bridgecore.recovery.policy import DEFAULT, V1_12, Policy
from bridgecore.recovery.session import Session
from bridgecore.recovery.state import SessionState
from bridgecore.recovery.timers import NS_PER_SECOND
from bridgecore.tables import list_table

_TRIES = 5  # of a client for one turn, at most
_HEAD_TIMEOUT = Config(upstream=UpstreamUrl.parse("ws://upstream.invalid/")).head_timeout


class Strike(enum.Enum):
    """Where in the second turn the loss comes."""

    BEFORE = "before"  # between the two turns
    CONNECT = "connect"  # in place of the connection
    SENT = "sent"  # in place of response.created
    OUTPUT = "output"  # after the first output


@attrs.frozen
class Loss:
    """A kind of loss. ``happens``: makes the event on a connection; None if there is no event, or
    if it is a connect that fails. ``words``: the event, as it is drawn. ``remote``: another replica
    owns the conversation."""

    name: str
    title: str
    strike: Strike
    happens: Callable[[int], Event] | None
    words: str
    remote: bool = False


def _closed(code: int) -> Callable[[int], Event]:
    return lambda generation: ev.ConnectionLost(generation, Closed(code))


def _refused(code: str, param: str | None = None) -> Callable[[int], Event]:
    return lambda generation: ev.UpstreamRefused(
        generation, ErrorFrame(status=400, code=code, param=param)
    )


_NOT_FOUND, _LIMIT = "previous_response_not_found", "websocket_connection_limit_reached"
LOSSES = (
    Loss("idle", "closed between two turns", Strike.BEFORE, _closed(1001), "closed (1001)"),
    Loss("sent", "lost after sending", Strike.SENT, _closed(1006), "connection lost (1006)"),
    Loss("output", "lost in mid-answer", Strike.OUTPUT, _closed(1006), "connection lost (1006)"),
    Loss("silent", "no answer", Strike.SENT, None, "nothing for {} s"),
    Loss(
        "not-found",
        "not found",
        Strike.SENT,
        _refused(_NOT_FOUND, "previous_response_id"),
        f"400 {_NOT_FOUND}",
    ),
    Loss("limit", "the connection is too old", Strike.SENT, _refused(_LIMIT), f"400 {_LIMIT}"),
    Loss("owner-unreachable", "the owner cannot be reached", Strike.CONNECT, None, "", remote=True),
    Loss(
        "owner-lost",
        "the owner is lost with the turn",
        Strike.SENT,
        _closed(1006),
        "connection lost (1006)",
        remote=True,
    ),
)
SHOWN = (DEFAULT, V1_12)


# ---------------------------------------------------------------- the run


class Lane(enum.IntEnum):
    """The participants, from the left."""

    CLIENT, BRIDGE, UPSTREAM = range(3)


@attrs.frozen
class Arrow:
    """A message, or with ``source`` equal to ``target`` something that happens there. ``kind``: how
    it is drawn, ``plain``, ``bad``, ``good`` or ``cell``."""

    source: Lane
    target: Lane
    text: str
    kind: str = "plain"


@attrs.frozen
class Run:
    """What happened under a policy. ``told``: the errors of the client; ``cells``: those of the
    policy that decided; ``whole``: how often the client sent its whole history."""

    arrows: tuple[Arrow, ...]
    told: tuple[str, ...]
    cells: tuple[str, ...]
    whole: int


class _World:
    """A client, an upstream and a clock around one session."""

    def __init__(self, policy: Policy, loss: Loss) -> None:
        self.loss = loss
        self.session = Session(policy, SessionState(remote=loss.remote))
        self.arrows: list[Arrow] = []
        self.told: list[str] = []
        self.cells: list[str] = []
        self.whole = 0
        self.now = self.sent_at = 0
        self.due: list[Event] = []  # what the upstream does next
        self.struck = False
        self.turn = Turn(1)
        # What the bridge has for the turn. Without transcripts only the connection that made the
        # response can continue it.
        kept = policy.budgets.transcripts
        self.standing = Standing.HELD if kept else Standing.BOUND
        self.ended = 0  # the turn that has been answered

    def run(self) -> Run:
        if self.loss.remote:
            self.ended = 1  # by the owner, in its process
        else:
            self.submit(Turn(1))
        self.arrows.clear()
        self.cells.clear()
        if self.loss.strike is Strike.BEFORE and self.loss.happens is not None:
            self.struck = True
            self.draw(Lane.UPSTREAM, Lane.BRIDGE, self.loss.words, "bad")
            self.happens(self.loss.happens(self.session.state.generation))
        turn = Turn(2, self.standing, "resp_1")
        for _ in range(_TRIES):
            self.submit(turn)
            if self.ended == turn.id:
                return Run(tuple(self.arrows), tuple(self.told), tuple(self.cells), self.whole)
            self.now += NS_PER_SECOND  # Retry-After
            if _NOT_FOUND in self.told[-1]:
                turn = Turn(turn.id + 1)  # the client drops the id
            else:
                turn = attrs.evolve(turn, id=turn.id + 1)
        raise AssertionError(f"{self.loss.name}: never answered")

    def submit(self, turn: Turn) -> None:
        """The client sends ``turn``, and all that follows from it happens."""
        again = "again: " if turn.id > 2 else ""
        if turn.anchor is None and turn.id > 1:
            self.whole += 1
        what = "the whole history" if turn.anchor is None else f"{turn.anchor}, new items"
        self.draw(Lane.CLIENT, Lane.BRIDGE, again + what)
        self.turn, self.sent_at = turn, self.now
        self.happens(ev.TurnSubmitted(turn))
        while self.due or (self.ended != turn.id and self.session.state.running is not None):
            self.happens(self.due.pop(0)) if self.due else self.wait()

    def wait(self) -> None:
        """Nothing comes: let the time pass until the session's next deadline."""
        deadline = self.session.next_timeout()
        assert deadline is not None, "a running turn has a deadline"
        passed = deadline.at - self.now
        if passed > _HEAD_TIMEOUT:
            self.draw(Lane.BRIDGE, Lane.CLIENT, "200, keepalives")
        self.now = deadline.at
        self.draw(
            Lane.UPSTREAM, Lane.UPSTREAM, self.loss.words.format(passed // NS_PER_SECOND), "bad"
        )
        self.happens(ev.DeadlineReached(deadline.reason))

    def happens(self, event: Event) -> None:
        effects = self.session.handle(event, self.now)
        for cell in self.session.cells:
            self.cells.append(str(cell))
            self.draw(Lane.BRIDGE, Lane.BRIDGE, str(cell), "cell")
        for effect in effects:
            self.carry_out(effect)

    def carry_out(self, effect: fx.Effect) -> None:
        if isinstance(effect, fx.OpenConnection):
            self.connect(effect)
        elif isinstance(effect, fx.SendTurn):
            self.send(effect)
        elif isinstance(effect, fx.CloseConnection):
            self.draw(Lane.BRIDGE, Lane.UPSTREAM, "close")
            self.due.clear()
        elif isinstance(effect, fx.CompleteTurn):
            self.ended = effect.turn
            self.draw(Lane.UPSTREAM, Lane.BRIDGE, "the answer", "good")
            self.draw(Lane.BRIDGE, Lane.CLIENT, "the answer", "good")
        elif isinstance(effect, fx.FailTurn):
            self.fail(effect)
        elif isinstance(effect, fx.RebindSession):
            self.draw(Lane.BRIDGE, Lane.BRIDGE, "take it over")

    def connect(self, effect: fx.OpenConnection) -> None:
        where = "connect to the owner" if effect.remote else "connect"
        self.draw(Lane.BRIDGE, Lane.UPSTREAM, where)
        strikes = self.loss.strike is Strike.CONNECT and not self.struck
        if effect.remote and (strikes or self.struck):
            self.struck = True
            self.draw(Lane.UPSTREAM, Lane.BRIDGE, "cannot be reached", "bad")
            self.due.append(ev.ConnectionLost(effect.generation, Unreachable("refused")))
        else:
            self.due.append(ev.ConnectionOpened(effect.generation))

    def send(self, effect: fx.SendTurn) -> None:
        forms = {
            RequestForm.AS_IS: f"{self.turn.anchor}, new items",
            RequestForm.REHYDRATED: "the whole context",
        }
        if self.turn.anchor is None:
            forms[RequestForm.AS_IS] = "the whole history"
        self.draw(Lane.BRIDGE, Lane.UPSTREAM, forms[effect.form])
        generation, response = effect.generation, f"resp_{self.turn.id}"
        self.due.append(ev.FrameSent(generation))
        created = ev.ResponseCreated(generation, response)
        output = ev.OutputReceived(generation, response=response)
        strikes = self.ended > 0 and not self.struck
        if strikes and self.loss.strike is Strike.SENT:
            self.strike(generation)
            return
        self.due += [created, output]
        if strikes and self.loss.strike is Strike.OUTPUT:
            self.draw(Lane.UPSTREAM, Lane.BRIDGE, "half of the answer")
            self.draw(Lane.BRIDGE, Lane.CLIENT, "200, half of the answer")
            self.strike(generation)
            return
        self.due.append(ev.ResponseEnded(generation, ev.Outcome.COMPLETED, response))

    def strike(self, generation: int) -> None:
        self.struck = True
        if self.loss.happens is not None:
            self.draw(Lane.UPSTREAM, Lane.BRIDGE, self.loss.words, "bad")
            self.due.append(self.loss.happens(generation))

    def fail(self, effect: fx.FailTurn) -> None:
        error = render_answer(effect.answer, effect.failure, ErrorFrame(), self.turn.anchor)
        begun = self.loss.strike is Strike.OUTPUT and self.struck
        begun |= self.now - self.sent_at > _HEAD_TIMEOUT
        status = "response.failed" if begun else str(error.status)
        self.told.append(f"{status} {error.code}")
        self.draw(Lane.BRIDGE, Lane.CLIENT, self.told[-1], "bad")

    def draw(self, source: Lane, target: Lane, text: str, kind: str = "plain") -> None:
        self.arrows.append(Arrow(source, target, text, kind))


def run(policy: Policy, loss: Loss) -> Run:
    """How ``loss`` goes under ``policy``."""
    return _World(policy, loss).run()


@cache
def runs() -> dict[tuple[Loss, Policy], Run]:
    """How each loss goes under each policy that is shown."""
    return {(loss, policy): run(policy, loss) for loss in LOSSES for policy in SHOWN}


# ---------------------------------------------------------------- the page


def table() -> list[str]:
    """The lines of a table: what the client sees of each loss."""
    rows = [("loss", *(f"`{policy.name}`" for policy in SHOWN))]
    rows += [(loss.title, *(_seen(runs()[loss, policy]) for policy in SHOWN)) for loss in LOSSES]
    return list_table(rows, widths=(30, 35, 35))


def _seen(run: Run) -> str:
    told = [f"`{error}`" for error in run.told] or ["nothing"]
    if not run.told:
        return "no error"
    return f"{', '.join(told)}; then it sends {'its whole history' if run.whole else 'the same'}"


_WIDTH, _TOP, _LINE, _ROOM = 360, 44, 14, 12
_LANES = {Lane.CLIENT: 40, Lane.BRIDGE: 180, Lane.UPSTREAM: 320}
_STYLE = (
    "text{font:11.5px system-ui,sans-serif;fill:#1f2933;text-anchor:middle}"
    ".head{font-weight:bold;font-size:13px}.bad{fill:#b42318}.good{fill:#1f7a3d}"
    ".cell{font:11px ui-monospace,monospace}rect.cell{fill:#e6f6ff;stroke:#9aa5b1}"
    "line{stroke:#52606d}line.bad{stroke:#b42318}line.good{stroke:#1f7a3d}line.lane{stroke:#cbd2d9}"
)
_TIPS = {"plain": "#52606d", "bad": "#b42318", "good": "#1f7a3d"}


def svg(loss: Loss, policy: Policy) -> str:
    """The sequence diagram of a loss under a policy: an SVG document without references to other
    files, narrow enough for a telephone."""
    body: list[str] = []
    y = _TOP
    for arrow in runs()[loss, policy].arrows:
        lines = _wrapped(arrow.text, 30 if arrow.kind == "cell" else 23)
        bottom = y + _ROOM + _LINE * len(lines)
        body += _drawn(arrow, lines, bottom)
        y = bottom + (6 if arrow.kind == "cell" else 4)
    heads = ("client", "bridge", "owner, upstream" if loss.remote else "upstream")
    height = y + 16
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        f'width="{_WIDTH}" height="{height}" role="img">',
        f"<title>{loss.title}, {policy.name}</title><style>{_STYLE}</style><defs>",
    ]
    for kind, colour in _TIPS.items():
        out.append(
            f'<marker id="{kind}" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" '
            f'markerHeight="8" orient="auto"><path d="M0 0 8 4 0 8z" fill="{colour}"/></marker>'
        )
    out.append(f'</defs><rect width="{_WIDTH}" height="{height}" fill="#fff"/>')
    for lane, head in zip(Lane, heads, strict=True):
        x = _LANES[lane]
        at = min(x, _WIDTH - 4 * len(head))
        out.append(f'<text class="head" x="{at}" y="20">{head}</text>')
        out.append(f'<line class="lane" x1="{x}" y1="30" x2="{x}" y2="{height - 6}"/>')
    return "\n".join([*out, *body, "</svg>", ""])


def _drawn(arrow: Arrow, lines: Sequence[str], bottom: int) -> Iterator[str]:
    start, end = _LANES[arrow.source], _LANES[arrow.target]
    middle = (start + end) // 2
    if arrow.kind == "cell":
        width = 7 * max(map(len, lines)) + 12
        top = bottom - _LINE * len(lines) - 2
        yield (
            f'<rect class="cell" x="{middle - width // 2}" y="{top}" width="{width}" '
            f'height="{_LINE * len(lines) + 6}" rx="4"/>'
        )
    elif start == end:
        middle = (_LANES[Lane.BRIDGE] + _LANES[Lane.UPSTREAM]) // 2
        if arrow.source is Lane.BRIDGE:
            middle = start
    else:
        yield (
            f'<line class="{arrow.kind}" x1="{start}" y1="{bottom}" x2="{end}" y2="{bottom}" '
            f'marker-end="url(#{arrow.kind})"/>'
        )
    for index, line in enumerate(lines):
        y = bottom - 5 + 2 * (arrow.kind == "cell") - _LINE * (len(lines) - 1 - index)
        yield f'<text class="{arrow.kind}" x="{middle}" y="{y}">{line}</text>'


def _wrapped(text: str, width: int) -> list[str]:
    """``text`` in lines of at most ``width`` characters, broken where a reader would."""
    lines = [""]
    for part in re.split(r"(?<=[ _/=])", text):
        if lines[-1] and len(lines[-1] + part.rstrip()) > width:
            lines.append("")
        lines[-1] += part
    return [line.strip() for line in lines]
