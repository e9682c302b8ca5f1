"""Scenarios: the events of a session and their effects as plain text, to be read and replayed.

What belongs here: the command vocabulary, its reader and its printer. A scenario consists of
comments, settings and commands; each command is followed by the effects of the session, or by
nothing if there were none:

    # The client leaves before the connection is open.
    policy default

    submit 1
    ----
      open connection 1

    abandon 1
    ----
      close connection 1

Rules and deadlines are not printed by default, so that renaming a rule or changing a deadline
changes only the files whose subject it is. ``show rules`` adds to each command the phase before and
after it and the rule that was applied; ``show next`` adds the next deadline and the waiting turns:

    submit 1
    ----
    closed -> reconnecting by submit
      open connection 1
    next: connect in 10s

``replay`` runs such a text and returns it with the current effects, so that a file that is up to
date replays to itself. ``rules_of`` returns the rules that a text applies, printed or not.
``command_of`` writes an event as a command.

Settings (no output; before the first command):
  ``policy NAME [KEY=VALUE ...]``  the policy; keys are those of ``Budgets`` and ``Timeouts``, and
                                   ``ambiguous`` and ``fallback`` as the command line has them
  ``remote``                       another replica owns the session
  ``show rules|next ...``          what is printed besides the effects, see above
Commands, one for each event. Those of a connection take ``generation=N``; default: the latest:
  ``submit TURN [STANDING ANCHOR]``     ``abandon TURN``     ``pause TURN``     ``resume TURN``
  ``submit`` takes ``deadline=DURATION``: the end of the turn's budget, since the start of the run
  ``opened [early=DURATION] [http=1]`` (it speaks HTTP)     ``sent``
  ``created [RESPONSE]``     ``output [RESPONSE]``
  ``progress [RESPONSE]`` (an event of an answer without output)
  ``output`` and ``progress`` take ``room=0``: the hold-back buffer is full
  ``ended completed|incomplete [RESPONSE]``
  ``ended failed [RESPONSE] [status=N] [code=X] ...`` (the error, as in ``refused``)
  ``ended failed [RESPONSE] malformed=WORD`` (the terminal event cannot be read)
  ``lost close CODE | malformed WORD | unreachable WORD | upgrade STATUS [retry_after=N]``
  ``lost timeout TIMER | undispatched WORD`` (the owner has not sent the turn)
  ``refused [status=N] [code=X] [type=X] [message="..."] [param=X] [retry_after=N]``
  ``sent`` takes ``whole=0``: only part of a large frame was sent
  ``lost`` and ``refused`` take ``unsent=1``: nothing of the frame was sent
  ``evict``     ``deadline TIMER`` (reported to the session whether it is due or not)
Commands that are not events:
  ``advance DURATION``  time passes (``250ms``, ``10s``); each deadline is reported when due
  ``touch``             more output came; calls ``Session.touch``
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, assert_never

import attrs

from bridgecore.config import Fallback, OnAmbiguousLoss
from bridgecore.errors import BridgecoreError, LocalProtocolError
from bridgecore.recovery import effects as fx
from bridgecore.recovery import events as ev
from bridgecore.recovery.failure import (
    Closed,
    ErrorFrame,
    Evidence,
    Failure,
    Malformed,
    NotDispatched,
    TimedOut,
    Unreachable,
    UpgradeRefused,
)
from bridgecore.recovery.policy import POLICIES, Budgets, Policy, falling_back, replaying
from bridgecore.recovery.session import Session
from bridgecore.recovery.state import SessionState
from bridgecore.recovery.timers import NS_PER_SECOND, Timer

SEPARATOR = "----"
_SHOWN = {"rules", "next"}
_UNITS = {"ms": NS_PER_SECOND // 1000, "s": NS_PER_SECOND}


class ScenarioError(BridgecoreError):
    """A scenario cannot be read. The text begins with ``file:line``."""


@attrs.frozen
class _Line:
    """One command or setting: its words in order, and its ``key=value`` pairs."""

    number: int
    text: str
    words: tuple[str, ...]
    options: Mapping[str, str]


# ---------------------------------------------------------------- running


def replay(text: str, name: str = "<scenario>", policies: Mapping[str, Policy] = POLICIES) -> str:
    """Run the scenario ``text`` and return it with the output of this run.

    Args:
        text: the scenario, with or without output.
        name: the file's name, for errors.
        policies: the policies that ``policy NAME`` can name.

    Raises:
        ScenarioError: a line is not a command, or its values are impossible.
    """
    out: list[str] = []
    printed: Sequence[str] = ()
    for source, output in _run(text, name, _Runner(policies)):
        if printed and source.strip():
            out.append("")  # an empty line ends the output above
        printed = output
        out.append(source)
        if printed:
            out += [SEPARATOR, *printed]
    return "\n".join(out).rstrip("\n") + "\n"


def rules_of(
    text: str, name: str = "<scenario>", policies: Mapping[str, Policy] = POLICIES
) -> tuple[str, ...]:
    """The ids of the rules that the scenario ``text`` applies, in order; see ``replay``."""
    runner = _Runner(policies)
    for _ in _run(text, name, runner):
        pass
    return tuple(runner.rules)


def _run(text: str, name: str, runner: _Runner) -> Iterator[tuple[str, Sequence[str]]]:
    """Each line of the source, and its output in this run."""
    for number, source in _without_output(text):
        if not source.strip() or source.startswith("#"):
            yield source, ()
            continue
        try:
            yield source, runner.run(_read(number, source))
        except _UnreadableError as problem:
            raise ScenarioError(f"{name}:{number}: {problem}: {source.strip()!r}") from None


def _without_output(text: str) -> Iterator[tuple[int, str]]:
    """The numbered source lines, without output. Output ends at an empty line or a comment."""
    in_output = False
    for number, line in enumerate(text.splitlines(), 1):
        if line == SEPARATOR:
            in_output = True
        elif not line.strip() or line.startswith("#"):
            in_output = False
        if not in_output:
            yield number, line.rstrip()


class _UnreadableError(Exception):
    """A line is wrong; the message says how. ``replay`` adds the line's number."""


class _Runner:
    def __init__(self, policies: Mapping[str, Policy]) -> None:
        self.policies = policies
        self.session = Session()
        self.now = 0
        self.begun = False
        self.shown: frozenset[str] = frozenset()
        self.rules: list[str] = []

    def run(self, line: _Line) -> list[str]:
        """Carry out one line and return its output. A setting has none."""
        command = line.words[0]
        if command in ("policy", "remote", "show"):
            if self.begun:
                raise _UnreadableError("a setting stands before the first command")
            self._set(line)
            return []
        self.begun = True
        if command == "advance":
            output = [*self._advance(_duration(_only(line, 1)[0]))]
        elif command == "touch":
            _only(line, 0)
            self.session.touch(self.now)
            output = []
        else:
            output = [*self._handle(_event(line, self.session.state.generation))]
        return [*output, self._next()] if "next" in self.shown else output

    def _set(self, line: _Line) -> None:
        if line.words[0] == "remote":
            _only(line, 0)
            self.session = Session(self.session.policy, SessionState(remote=True))
            return
        if line.words[0] == "show":
            self.shown = frozenset(_only(line, max(1, len(line.words) - 1)))
            if unknown := self.shown - _SHOWN:
                raise _UnreadableError(f"what can be shown is rules and next, not {min(unknown)}")
            return
        (name,) = _only(line, 1, *_SETTINGS)
        if name not in self.policies:
            raise _UnreadableError(f"no policy is named {name}")
        policy = self.policies[name]
        for key, value in line.options.items():
            policy = _SETTINGS[key](policy, key, value)
        self.session = Session(policy, self.session.state)

    def _advance(self, duration: int) -> Iterator[str]:
        begin = self.now
        end = begin + duration
        while (deadline := self.session.next_timeout()) is not None and deadline.at <= end:
            self.now = max(self.now, deadline.at)
            after = f"after {_seconds(self.now - begin)}, {deadline.reason.value}:"
            yield from self._handle(ev.DeadlineReached(deadline.reason), after)
        self.now = end

    def _handle(self, event: ev.Event, heading: str = "") -> Iterator[str]:
        before = self.session.state.phase.value
        try:
            effects = self.session.handle(event, self.now)
        except LocalProtocolError as error:
            yield f"misuse: {error}"
            return
        self.rules.append(self.session.rule)
        if "rules" in self.shown:
            after = self.session.state.phase.value
            heading = f"{heading} {before} -> {after} by {self.session.rule}".lstrip()
        if heading:
            yield heading
        for effect in effects:
            yield f"  {describe(effect)}"

    def _next(self) -> str:
        deadline = self.session.next_timeout()
        if deadline is None:
            text = "next: nothing"
        else:
            text = f"next: {deadline.reason.value} in {_seconds(deadline.at - self.now)}"
        waiting = [str(waiting.turn.id) for waiting in self.session.state.waiting]
        return f"{text}; waiting: {', '.join(waiting)}" if waiting else text


# ---------------------------------------------------------------- reading

_WORD = re.compile(r'(?:(?P<key>[a-z_]+)=)?(?:"(?P<quoted>[^"]*)"|(?P<bare>[^\s"]+))(?:\s+|$)')


def _read(number: int, text: str) -> _Line:
    words: list[str] = []
    options: dict[str, str] = {}
    position = len(text) - len(text.lstrip())
    while position < len(text):
        match = _WORD.match(text, position)
        if match is None:
            raise _UnreadableError(f"cannot read from column {position + 1} on")
        value = match["bare"] if match["quoted"] is None else match["quoted"]
        if match["key"] is None:
            words.append(value)
        elif match["key"] in options:
            raise _UnreadableError(f"{match['key']} is given twice")
        else:
            options[match["key"]] = value
        position = match.end()
    if not words:
        raise _UnreadableError("no command")
    return _Line(number, text, tuple(words), options)


def _only(line: _Line, count: int, *options: str) -> tuple[str, ...]:
    """The arguments of a line, if there are ``count`` of them and no options but these."""
    unknown = sorted(set(line.options) - set(options))
    if unknown:
        raise _UnreadableError(f"unknown option {', '.join(unknown)}")
    if len(line.words) - 1 != count:
        raise _UnreadableError(f"{line.words[0]} takes {count} argument(s)")
    return line.words[1:]


def _number(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise _UnreadableError(f"{text} is no number")
    return int(text)


def _duration(text: str) -> int:
    match = re.fullmatch(r"([0-9]{1,9})(ms|s)", text)
    if match is None:
        raise _UnreadableError(f"{text} is no duration such as 250ms or 10s")
    return int(match[1]) * _UNITS[match[2]]


def _timer(text: str) -> Timer:
    try:
        return Timer(text)
    except ValueError:
        raise _UnreadableError(f"no timer is named {text}") from None


def _budget(policy: Policy, key: str, value: str) -> Policy:
    number = _number(value)
    flag = isinstance(getattr(policy.budgets, key), bool)
    change: Mapping[str, Any] = {key: number > 0 if flag else number}
    return attrs.evolve(policy, budgets=attrs.evolve(policy.budgets, **change))


def _timeout(policy: Policy, key: str, value: str) -> Policy:
    duration = _duration(value)
    if duration == 0:
        raise _UnreadableError(f"{key} must be more than 0")
    return attrs.evolve(policy, timeouts=attrs.evolve(policy.timeouts, **{key: duration}))


def _ambiguous(policy: Policy, key: str, value: str) -> Policy:
    if value not in {choice.value for choice in OnAmbiguousLoss}:
        raise _UnreadableError(f"{key} is not {value}")
    return replaying(policy) if value == OnAmbiguousLoss.REPLAY.value else policy


def _fallback(policy: Policy, key: str, value: str) -> Policy:
    if value not in {choice.value for choice in Fallback}:
        raise _UnreadableError(f"{key} is not {value}")
    return falling_back(policy) if value == Fallback.HTTP.value else policy


_SETTINGS: Mapping[str, Callable[[Policy, str, str], Policy]] = {
    "ambiguous": _ambiguous,
    "fallback": _fallback,
    **{field.name: _budget for field in attrs.fields(Budgets)},
    **{
        timer.value: _timeout
        for timer in (
            Timer.CONNECT,
            Timer.CREATED,
            Timer.IDLE,
            Timer.TURN,
            Timer.LIFETIME,
            Timer.EXPIRY,
        )
    },
}


def _event(line: _Line, latest: int) -> ev.Event:
    """The event that ``line`` names; ``latest`` is the default generation."""
    command, arguments = line.words[0], line.words[1:]
    if command == "submit":
        deadline = line.options.get("deadline")
        return ev.TurnSubmitted(_turn(line), None if deadline is None else _duration(deadline))
    if command == "evict":
        _only(line, 0)
        return ev.EvictionRequested()
    if command == "deadline":
        return ev.DeadlineReached(_timer(_only(line, 1)[0]))
    if command in ("abandon", "pause", "resume"):
        turn = _number(_only(line, 1)[0])
        if command == "abandon":
            return ev.TurnAbandoned(turn)
        return ev.RelayPaused(turn, command == "pause")
    generation = _number(line.options.get("generation", str(latest)))
    if command == "lost":
        return ev.ConnectionLost(generation, _cause(line), _flag(line, "unsent"))
    if command == "refused":
        _only(line, 0, "generation", "unsent", *_FRAME_FIELDS)
        return ev.UpstreamRefused(generation, _error_frame(line), _flag(line, "unsent"))
    if command == "ended":
        count = 2 if len(arguments) == 2 else 1
        failed = "failed" in arguments[:1]
        fields = ("malformed", *_FRAME_FIELDS) if failed else ()
        outcome, *response = _only(line, count, "generation", *fields)
        if outcome not in {known.value for known in ev.Outcome}:
            raise _UnreadableError(f"no response ends as {outcome}")
        cause: Evidence | None = _error_frame(line) if failed else None
        if "malformed" in line.options:
            cause = Malformed(line.options["malformed"])
        name = response[0] if response else None
        return ev.ResponseEnded(generation, ev.Outcome(outcome), name, cause)
    if command == "opened":
        _only(line, 0, "generation", "early", "http")
        remembers = ev.Remembers.STORED if _flag(line, "http") else ev.Remembers.LATEST
        early = _duration(line.options.get("early", "0s"))
        return ev.ConnectionOpened(generation, early, remembers)
    if command == "sent":
        _only(line, 0, "generation", "whole")
        return ev.FrameSent(generation, _flag(line, "whole", default=True))
    if command == "created":
        _only(line, len(arguments[:1]), "generation")
        return ev.ResponseCreated(generation, arguments[0] if arguments else None)
    if command in ("output", "progress"):
        _only(line, len(arguments[:1]), "generation", "room")
        room = _flag(line, "room", default=True)
        name = arguments[0] if arguments else None
        return ev.OutputReceived(generation, command == "output", room, name)
    raise _UnreadableError("unknown command")


def _flag(line: _Line, name: str, *, default: bool = False) -> bool:
    return _number(line.options.get(name, str(int(default)))) > 0


def _turn(line: _Line) -> ev.Turn:
    if len(line.words) == 2:
        return ev.Turn(_number(_only(line, 1, "deadline")[0]))
    turn, standing, anchor = _only(line, 3, "deadline")
    if standing not in {known.value for known in ev.Standing} - {ev.Standing.UNANCHORED.value}:
        raise _UnreadableError(f"no anchored turn is {standing}")
    return ev.Turn(_number(turn), ev.Standing(standing), anchor)


def _cause(line: _Line) -> Evidence:
    kind, word = _only(line, 2, "generation", "retry_after", "unsent")
    wait = line.options.get("retry_after")
    if wait is not None and kind != "upgrade":
        raise _UnreadableError("retry_after is for an upgrade")
    if kind == "close":
        return Closed(_number(word))
    if kind == "malformed":
        return Malformed(word)
    if kind == "unreachable":
        return Unreachable(word)
    if kind == "upgrade":
        return UpgradeRefused(_number(word), None if wait is None else _number(wait))
    if kind == "timeout":
        return TimedOut(_timer(word))
    if kind == "undispatched":
        return NotDispatched(word)
    raise _UnreadableError(f"no connection is lost by {kind}")


_FRAME_FIELDS = tuple(field.name for field in attrs.fields(ErrorFrame))
_NUMERIC = ("status", "retry_after")


def _error_frame(line: _Line) -> ErrorFrame:
    given = line.options
    return ErrorFrame(
        status=_number(given["status"]) if "status" in given else None,
        code=given.get("code"),
        type=given.get("type"),
        message=given.get("message"),
        param=given.get("param"),
        retry_after=_number(given["retry_after"]) if "retry_after" in given else None,
    )


# ---------------------------------------------------------------- printing


def command_of(event: ev.Event) -> str:
    """``event`` as a command, always with its generation. Texts must not contain ``"``."""
    text = _command_of(event)
    generation = getattr(event, "generation", None)
    return text if generation is None else f"{text} generation={generation}"


def _command_of(event: ev.Event) -> str:
    if isinstance(event, ev.TurnSubmitted):
        turn, deadline = event.turn, ""
        if event.deadline is not None:
            deadline = f" deadline={event.deadline // _UNITS['ms']}ms"
        if turn.anchor is None:
            return f"submit {turn.id}{deadline}"
        return f"submit {turn.id} {turn.standing.value} {_quoted(turn.anchor)}{deadline}"
    if isinstance(event, ev.TurnAbandoned):
        return f"abandon {event.turn}"
    if isinstance(event, ev.ConnectionOpened):
        early = f" early={event.early // _UNITS['ms']}ms" if event.early else ""
        return f"opened{early}{' http=1' if event.remembers is ev.Remembers.STORED else ''}"
    if isinstance(event, ev.ConnectionLost):
        return f"lost {_cause_of(event.cause)}{' unsent=1' if event.unsent else ''}"
    if isinstance(event, ev.FrameSent):
        return "sent" if event.whole else "sent whole=0"
    if isinstance(event, ev.ResponseCreated):
        return f"created{_name_of(event.response)}"
    if isinstance(event, ev.OutputReceived):
        command = "output" if event.bearing else "progress"
        return f"{command}{_name_of(event.response)}{'' if event.room else ' room=0'}"
    if isinstance(event, ev.ResponseEnded):
        cause: Iterable[str] = ()
        if isinstance(event.cause, Malformed):
            cause = (f"malformed={_quoted(event.cause.reason)}",)
        elif event.cause is not None:
            cause = _options_of(event.cause)
        return " ".join([f"ended {event.outcome.value}{_name_of(event.response)}", *cause])
    if isinstance(event, ev.UpstreamRefused):
        unsent = ("unsent=1",) if event.unsent else ()
        return " ".join(["refused", *_options_of(event.cause), *unsent])
    if isinstance(event, ev.RelayPaused):
        return f"{'pause' if event.paused else 'resume'} {event.turn}"
    if isinstance(event, ev.EvictionRequested):
        return "evict"
    if isinstance(event, ev.DeadlineReached):
        return f"deadline {event.timer.value}"
    assert_never(event)


def _name_of(response: str | None) -> str:
    return "" if response is None else f" {_quoted(response)}"


def _cause_of(cause: Evidence) -> str:
    if isinstance(cause, Closed):
        return f"close {cause.code}"
    if isinstance(cause, Malformed):
        return f"malformed {_quoted(cause.reason)}"
    if isinstance(cause, Unreachable):
        return f"unreachable {_quoted(cause.reason)}"
    if isinstance(cause, UpgradeRefused):
        wait = "" if cause.retry_after is None else f" retry_after={cause.retry_after}"
        return f"upgrade {cause.status}{wait}"
    if isinstance(cause, TimedOut):
        return f"timeout {cause.timer.value}"
    if isinstance(cause, NotDispatched):
        return f"undispatched {_quoted(cause.reason)}"
    if isinstance(cause, ErrorFrame):
        raise ValueError("an error frame refuses a turn, it does not lose the connection")
    assert_never(cause)


def _options_of(cause: Evidence) -> Iterator[str]:
    if not isinstance(cause, ErrorFrame):
        raise ValueError(f"a turn is refused by an error frame, not by {cause}")
    for name in _FRAME_FIELDS:
        value: str | int | None = getattr(cause, name)
        if value is not None:
            yield f"{name}={value if name in _NUMERIC else _quoted(str(value))}"


def _quoted(text: str) -> str:
    if '"' in text or "\n" in text:
        raise ValueError(f"a scenario cannot say {text!r}")
    return text if re.fullmatch(r"[^\s\"=#]+", text) else f'"{text}"'


def describe(effect: fx.Effect) -> str:
    """``effect`` in a few words, as output of a command."""
    if isinstance(effect, fx.OpenConnection):
        over = " to the owner" if effect.remote else " over HTTP" if effect.http else ""
        return f"open connection {effect.generation}{over}"
    if isinstance(effect, fx.CloseConnection):
        return f"close connection {effect.generation}"
    if isinstance(effect, fx.SendTurn):
        return f"send turn {effect.turn} {effect.form.value} on connection {effect.generation}"
    if isinstance(effect, fx.DeliverEvent):
        return f"{'hold for' if effect.held else 'deliver to'} turn {effect.turn}"
    if isinstance(effect, fx.CompleteTurn):
        names = f", called {', '.join(effect.responses)}" if len(effect.responses) > 1 else ""
        return f"complete turn {effect.turn}{names}"
    if isinstance(effect, fx.FailTurn):
        return f"fail turn {effect.turn}: {effect.answer.value}{_why(effect.failure)}"
    if isinstance(effect, fx.StopInjecting):
        return f"stop injecting the anchor of turn {effect.turn}"
    if isinstance(effect, fx.StopRebuilding):
        return f"stop rebuilding the input of turn {effect.turn}"
    if isinstance(effect, fx.RebindSession):
        return f"rebind session{_why(effect.failure)}"
    if isinstance(effect, fx.WarmSession):
        return f"warm session with {effect.anchor}"
    if isinstance(effect, fx.RetireSession):
        return "retire session"
    if isinstance(effect, fx.Ignored):
        return f"ignore: {effect.reason}"
    assert_never(effect)


def _why(failure: Failure | None) -> str:
    return "" if failure is None else f" ({failure.kind.value}: {failure.detail})"


def _seconds(duration: int) -> str:
    whole, rest = divmod(duration, NS_PER_SECOND)
    return f"{whole}s" if not rest else f"{duration / NS_PER_SECOND:.3f}s"
