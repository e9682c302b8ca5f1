"""Compares what clients asked, what the upstream received, and what the bridge reports.

What belongs here: the checks that need all sends of a turn: how often it was executed, what a
connection was preloaded with, and whether the bridge's accounts are right. Checks of a single frame
are in ``witness.py``.

* *execution*: a turn is never sent more often, refused sends not counted, than its client tried it;
* *accounts*: the savings and costs of continuity that the bridge reports, for each turn and in sum,
  equal those computed from outside;
* *session*: the transitions of each session are replayed from the decision log and checked by the
  reference model of the explorer, if the policy has the cells of ``default`` (other policies are
  known to break properties; ``bridgecore verify`` reports which);
* *foreign*: a client that names a response of another credential gets the same answer, at the same
  number of sends, as for an id that does not exist.
"""

from __future__ import annotations

import attrs

from bridgecore import transport as tp
from bridgecore.continuity.accounts import Accounts
from bridgecore.simulate.clients import Client, Probe
from bridgecore.simulate.contract import Json
from bridgecore.simulate.report import Journal
from bridgecore.simulate.upstream import Upstream
from bridgecore.simulate.witness import Asked, Ledger, Witness
from bridgecore.testing.emulator import Outcome, Turn
from bridgecore.testing.faults import Alter, CloseWith, Point, SendEvents
from bridgecore.testing.network import NO_CLIENT
from bridgecore.verify.properties import ViolationError
from bridgecore.verify.replay import Replay
from bridgecore.wire.decisions import DECISION, hashed


@attrs.define
class _Sends:
    """The sends of one turn as the upstream received them."""

    attempts: int = 0
    asked: list[Asked] = attrs.Factory(list)  # one entry for attempts with equal content
    turns: list[Turn] = attrs.Factory(list)
    responses: dict[str, Turn] = attrs.Factory(dict)


class Checks:
    """Follows each turn of a run from its client's attempts to its sends upstream.

    ``warm``: connections are preloaded, so the history up to each turn has to be kept.
    """

    def __init__(self, upstream: Upstream, journal: Journal, *, warm: bool) -> None:
        self._upstream = upstream
        self._journal = journal
        self._warm = warm
        self._witness = Witness()
        self._sends: dict[tuple[int, int], _Sends] = {}  # by (client, turn)
        self._completed: dict[str, tuple[_Sends, Turn]] = {}  # by hashed response id, as in logs
        self._accounted: dict[str, Ledger] = {}  # by hashed id: as reported by the bridge
        self._believed: dict[tuple[int, int], list[Json]] = {}  # history up to the end of a turn
        self._silent: list[Turn] = []  # turns with ``generate: false``
        self._decisions: dict[str, Replay] = {}  # by the process that wrote the log
        self._forwarded: set[tuple[str, int]] = set()  # (process, turn), forwarded to another one
        self.rejected: set[str] = set()  # responses whose rebuilt input the upstream has refused
        self._warmth = Ledger()  # reported costs of preloading

    # ------------------------------------------------------------ called for clients

    def attempt_begins(self, client: Client) -> None:
        """``client`` sends its body once more."""
        sends = self._sends.setdefault((client.number, client.turn), _Sends())
        sends.attempts += 1
        asked = client.asked()
        if not sends.asked or sends.asked[-1].new is not asked.new:
            sends.asked.append(asked)

    def answered(self, client: Client, response: str) -> None:
        """Check that ``response`` answers the turn, and add what it saved and cost to the
        report."""
        sends = self._sends[client.number, client.turn]
        turn = sends.responses.get(response)
        if turn is None:
            self._violate("context", client, "the response belongs to another turn")
            return
        self._journal.report.ledger.add(self._witness.account(turn, sends.asked[-1]))
        if self._warm:
            self._believed[client.number, client.turn] = client.history()
        if hashed(response) not in self._accounted:
            self._violate("accounts", client, "the bridge reported no account of its turn")

    def probed(self, client: Client, foreign: Probe, unknown: Probe) -> None:
        """Check that ``client`` got the same answer for both ids, at the same number of sends."""
        sends = self._sends[client.number, client.turn]
        cost = [
            sum(1 for turn in sends.turns if turn.request.anchor == probe.response)
            for probe in (foreign, unknown)
        ]
        if foreign.answers != unknown.answers or cost[0] != cost[1]:
            text = (
                f"for a response of another credential it got {foreign.answers} in {cost[0]} "
                f"sends, for one that does not exist {unknown.answers} in {cost[1]}"
            )
            self._violate("foreign", client, text)

    # ------------------------------------------------------------ what the upstream received

    def look_upstream(self) -> None:
        """Check the turns that the upstream began or ended since the last call."""
        emulator = self._upstream.emulator
        for turn in emulator.turns:
            key = self._upstream.owner_of(turn.request.number)
            if key is not None:
                self._sent(key, turn)
        emulator.turns.clear()
        emulator.requests.clear()

    def _sent(self, key: tuple[int, int], turn: Turn) -> None:
        client, number = key
        sends = self._sends.setdefault(key, _Sends())
        if self._journal.record is not None:
            what = f"create frame {turn.request.number}, anchor {turn.request.anchor}"
            self._journal.note(
                f"upstream: client {client} turn {number}: {what}, {turn.outcome.value}"
            )
        self._journal.report.upstream_turns += 1
        if self._is_of_the_bridge(turn, sends):
            self._warming(key, turn, sends)
            return
        sends.turns.append(turn)
        sends.responses[turn.response_id] = turn
        self._completed[hashed(turn.response_id)] = sends, turn
        if sends.asked:
            anchor = sends.asked[-1].anchor
            if turn.outcome is Outcome.FAILED and anchor not in (None, turn.request.anchor):
                self.rejected.add(anchor)
            for prop, found in self._witness.saw(turn, sends.asked):
                self._journal.violate(prop, client, found, number)
        count = self._executions(sends)
        if count > sends.attempts:
            text = f"sent upstream {count} times in {sends.attempts} attempts"
            self._journal.violate("execution", client, text, number)

    def _executions(self, sends: _Sends) -> int:
        return sum(1 for sent in sends.turns if not self._refused(sent))

    def _is_of_the_bridge(self, turn: Turn, sends: _Sends) -> bool:
        """Whether the turn is the bridge's own preload of an answer: ``generate: false``, and no
        client asked for it."""
        if turn.request.body.get("generate") is not False:
            return False
        self._silent.append(turn)
        if not any(map(self._is_answer, sends.responses.values())):
            return False  # there is nothing to preload
        return not sends.asked[-1].warms or self._executions(sends) >= sends.attempts

    def _warming(self, key: tuple[int, int], turn: Turn, sends: _Sends) -> None:
        """Check that a connection is preloaded with the context of a turn that was answered."""
        answers = [one for one in sends.responses.values() if self._is_answer(one)]
        # With several answers it is not visible from outside which one is preloaded.
        meant = self._believed.get(key) if len(answers) == 1 else None
        for prop, found in self._witness.warmed(turn, answers[-1], sends.asked[-1], meant):
            self._journal.violate(prop, key[0], found, key[1])

    def _is_answer(self, turn: Turn) -> bool:
        """Whether ``turn`` can be continued: it completed or was cut short. The emulator counts
        every scripted end as a failure, so those are counted as answers here."""
        fault = self._upstream.faulted.get(turn.request.number)
        scripted = fault is not None and isinstance(fault.action, SendEvents)
        return scripted or turn.outcome in (Outcome.COMPLETED, Outcome.INCOMPLETE)

    def _refused(self, turn: Turn) -> bool:
        """Whether the upstream refused the turn before it generated anything."""
        fault = self._upstream.faulted.get(turn.request.number)
        if turn.outcome is Outcome.LOST and fault is not None:
            # Close code 1009 (message too big): the frame was not processed.
            return isinstance(fault.action, CloseWith) and fault.action.code == 1009
        if turn.outcome is not Outcome.FAILED or fault is None:
            return turn.outcome is Outcome.FAILED
        return fault.point is Point.BEFORE_CREATED and not isinstance(fault.action, Alter)

    # ------------------------------------------------------------ what the bridge reports

    def logged(self, log: tp.Log, source: str) -> None:
        """Check a log record of the process ``source`` about a decision, a preload, or a completed
        turn."""
        if log.event == DECISION:
            self._decided(source, str(log.fields["line"]))
            return
        if log.event == "turn.forwarded":
            self._forwarded.add((source, int(log.fields["turn"])))
        elif log.event == "turn.resolving":
            self._forwarded.discard((source, int(log.fields["turn"])))
        if log.event == "session.warmed" and log.fields["outcome"] == "completed":
            cost = int(log.fields["bytes_spent"]), int(log.fields["input_tokens"])
            seen = [(len(t.request.raw), t.usage) for t in self._silent]
            costs = {(size, usage["input_tokens"] if usage else 0) for size, usage in seen}
            if cost not in costs:
                self._journal.violate(
                    "accounts", NO_CLIENT, f"no preload of {cost} was seen upstream"
                )
            self._warmth.add(Ledger(warmed=1, bytes_spent=cost[0], tokens_spent=cost[1]))
        if log.event != "turn.completed" or log.fields["outcome"] != "completed":
            return
        if (source, int(log.fields["turn"])) in self._forwarded:
            return  # the other process counts it
        name = str(log.fields["response"])
        figures = {field: int(log.fields[field]) for field in _FIGURES}
        sends, turn = self._completed[name]
        accounts = [self._witness.account(turn, asked) for asked in reversed(sends.asked)]
        fitting = [one for one in accounts if _figures(one) == figures]
        if not fitting:
            client, number = self._upstream.owner_of(turn.request.number) or (NO_CLIENT, 0)
            text = f"the bridge reports {figures}, from outside it is {_figures(accounts[0])}"
            self._journal.violate("accounts", client, text, number)
        self._accounted[name] = (fitting or accounts)[0]

    def _decided(self, source: str, line: str) -> None:
        # A process that starts writes a header, at which the replay begins anew.
        decisions = self._decisions.setdefault(source, Replay(watched=True))
        try:
            found = decisions.take(line.encode())
        except ViolationError as violation:
            self._journal.violate("session", NO_CLIENT, str(violation))
            return
        if found is not None:
            text = f"recorded {found.expected}; replayed {found.actual}"
            self._journal.violate("session", NO_CLIENT, text)

    def close(self, accounts: Accounts) -> None:
        """Compare the sum over all turns with the bridge's ``accounts``, at the end of the run."""
        total = attrs.evolve(self._warmth)
        for account in self._accounted.values():
            total.add(account)
        if attrs.astuple(total) != attrs.astuple(accounts):
            text = f"in sum {accounts}, turn by turn {total}"
            self._journal.violate("accounts", NO_CLIENT, text)

    def add_warmth(self, ledger: Ledger) -> None:
        """Add the costs of preloading to ``ledger``, which has those of clients' turns."""
        ledger.add(self._warmth)

    def _violate(self, prop: str, client: Client, text: str) -> None:
        self._journal.violate(prop, client.number, text, client.turn)


_FIGURES = ("bytes_saved", "bytes_spent", "tokens_saved", "tokens_spent")


def _figures(account: Ledger) -> dict[str, int]:
    return {field: getattr(account, field) for field in _FIGURES}
