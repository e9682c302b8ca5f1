"""Writes an explored policy as text for other programs: TLA+, JSON, and diagrams of its phases.

What belongs here: the text, and nothing that decides. The tables that it is made of are those of
``explore.tabulate``.

The TLA+ module is for a second opinion. It has one table of what a session does at each move, one
of what the reference model says of each outcome, and no list of the worlds, which are pairs of a
session's state and a model: TLC, the model checker of TLA+, finds them itself, counts them, and
looks for those in which a property does not hold. Liveness is stated as in explore.py: within a
bounded number of moves of a healthy upstream.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence

from bridgecore.recovery.state import Phase
from bridgecore.verify.explore import TabledMove, Tables
from bridgecore.verify.properties import Property

LIVENESS = (Property.TURNS_END, Property.RETRIES_END)
INVARIANTS = tuple(prop.name for prop in Property)  # those that the TLA+ module defines
_RETIRED = "retired"  # a session that is over; it is no phase


# ---------------------------------------------------------------- TLA+


def tla(tables: Tables, module: str = "Session") -> str:
    """The TLA+ module named ``module``. After its end, which TLC does not read, comes the
    configuration file that TLC needs beside it."""
    kinds: dict[tuple[str, int, str, str], int] = {}
    moves: list[str] = []
    for state, row in zip(tables.states, tables.moves, strict=True):
        pairs = []
        for move in row:
            broken = "" if move.broken is None else move.broken.name
            kind = (move.label, move.outcome + 1, move.ended, broken)
            place = kinds.setdefault(kind, len(kinds) + 1)
            pairs.append(f"<<{place},{0 if move.after is None else move.after + 1}>>")
        moves.append(f"{_set(pairs)}  \\* {len(moves) + 1}: {state.phase.value}")
    checks = []
    for judged in tables.checks:
        entries = []
        for outcome, check in sorted(judged.items()):
            after = 0 if check.after is None else check.after + 1
            broken = _text("" if check.broken is None else check.broken.name)
            entries.append(f"<<{outcome + 1},{after},{broken},{check.loss}>>")
        checks.append(_set(entries))
    labels = sorted({label for label, *_ in kinds})
    submissions = [label for label in labels if label.startswith("submit ")]
    older = [f"{_text(one)} :> {_text(one.replace(' tip', ' old'))}" for one in submissions]
    return _MODULE.format(
        line="-" * 20,
        end="=" * 60,
        module=module,
        policy=_line(tables.policy),
        bounds=tables.bounds,
        starts=_set(f"<<{state + 1},{model + 1}>>" for state, model in tables.starts),
        kinds=_table(
            f"<<{_text(label)},{outcome},{_text(ended)},{_text(broken)}>>"
            for label, outcome, ended, broken in kinds
        ),
        moves=_table(moves),
        checks=_table(checks),
        healthy=_table(_text(label or "") for label in tables.healthy),
        unknowing=_set(
            str(number + 1) for number in range(len(tables.checks)) if number not in tables.knowing
        ),
        quiet=_set(
            str(number + 1) for number, state in enumerate(tables.states) if state.running is None
        ),
        older=" @@ ".join(older),
        steps=tables.steps,
        tries=tables.tries,
        safety="\n".join(
            f"{prop.name} == broken # {_text(prop.name)}"
            for prop in Property
            if prop not in LIVENESS
        ),
        config=config(),
    )


def config() -> str:
    """The configuration file with which TLC checks a module of ``tla``."""
    return "\n".join(["SPECIFICATION Spec", *[f"INVARIANT {name}" for name in INVARIANTS], ""])


def _text(text: str) -> str:
    escaped = _line(text).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _line(text: str) -> str:
    return " ".join(text.split())


def _set(members: Iterable[str]) -> str:
    return f"{{{','.join(members)}}}"


def _table(rows: Iterable[str]) -> str:
    """A tuple, one row a line. A comment that ends a row stays behind the comma."""
    lines = []
    for row in rows:
        value, mark, comment = row.partition("  \\*")
        lines.append([value, ",", mark + comment])
    if lines:
        lines[-1][1] = ""
    return "\n".join(["<<", *["".join(line) for line in lines], ">>"])


_MODULE = """\
{line} MODULE {module} {line}
\\* The sessions of the policy {policy}, explored within the bounds {bounds}.
\\* Written by `bridgecore verify --export tla`.
\\*
\\* A world is the state of a session and a reference model that watches it; both are numbered, and
\\* the numbers of the states have their phases beside them in Moves. Worlds are not listed here. To
\\* find them is the task of the checker: each move that a session has in its state, with what the
\\* model says of its outcome, leads to the next world.
\\*
\\* A move that breaks a property leads to a world of its own, the same one for all moves that break
\\* it, in which nothing more happens. So TLC finds one more state for each broken property.

EXTENDS Integers, Sequences, TLC

VARIABLES
  session,  \\* the number of the session's state; 0 if a property is broken
  model,    \\* the number of the model; 0 if a property is broken
  broken    \\* the name of the property that is broken, or ""

\\* The first worlds: a new session of this replica, and one that another replica owns.
Starts == {starts}

\\* All that can happen: the name of the move, the number of the outcome that the model judges, how
\\* the turn ended that the move is about ("" if it did not), and the property that the session
\\* broke whatever the model says ("" if none).
Kinds == {kinds}
Label(move) == Kinds[move[1]][1]
Outcome(move) == Kinds[move[1]][2]
Ended(move) == Kinds[move[1]][3]
Fault(move) == Kinds[move[1]][4]

\\* For each state of a session its moves: what happens (see Kinds), and the next state; 0: the
\\* session is retired.
Moves == {moves}
After(move) == move[2]

\\* For each model what it says of an outcome: the number of the outcome, the next model, the
\\* property that is broken ("" if none), and the way in which a turn was lost (0: none was): the
\\* number of the way if the turn was sent again, its negative if the turn failed.
Checks == {checks}
Check(m, move) == CHOOSE check \\in Checks[m] : check[1] = Outcome(move)
Broken(m, move) == IF Fault(move) # "" THEN Fault(move) ELSE Check(m, move)[3]

\\* Turns that are lost in the same way get the same remedy.
Losses == UNION {{{{check[4] : check \\in Checks[m]}} : m \\in 1..Len(Checks)}}
Unlike(check) == check[3] = "" /\\ check[4] # 0 /\\ -check[4] \\in Losses

Breaks(property) == session' = 0 /\\ model' = 0 /\\ broken' = property

Happens(move) ==
  IF Broken(model, move) # "" THEN Breaks(Broken(model, move))
  ELSE LET check == Check(model, move) IN
    \\/ Unlike(check) /\\ Breaks("RECONNECT_COSTS_NO_REPLAY")
    \\/ /\\ After(move) # 0
       /\\ session' = After(move)
       /\\ model' = check[2]
       /\\ broken' = ""

Init == /\\ \\E start \\in Starts : session = start[1] /\\ model = start[2]
        /\\ broken = ""
Next == IF broken # "" THEN UNCHANGED <<session, model, broken>>
        ELSE \\E move \\in Moves[session] : Happens(move)
Spec == Init /\\ [][Next]_<<session, model, broken>>

{safety}

\\* -------------------- liveness, within bounds --------------------

\\* For each state of a session the move that a healthy upstream makes next, "" if it has none to
\\* make. It accepts a turn if it knows the anchor, which it does not with the models of Unknowing.
Healthy == {healthy}
Unknowing == {unknowing}
HealthyMove(s, m) ==
  IF Healthy[s] = "created" /\\ m \\in Unknowing THEN "refused: not found" ELSE Healthy[s]

\\* The moves in a world that have a name and break nothing: one or none.
Named(s, m, name) == {{move \\in Moves[s] : Label(move) = name /\\ Broken(m, move) = ""}}

\\* How the running turn ends if the upstream is healthy: the world, and its end. "" if there is no
\\* turn or a move breaks a property; "never" if it takes more than that many moves.
Most == {steps}
RECURSIVE Finish(_, _, _)
Finish(s, m, left) ==
  LET moves == Named(s, m, HealthyMove(s, m)) IN
  IF moves = {{}} THEN <<s, m, "">>
  ELSE LET move == CHOOSE one \\in moves : TRUE
           next == Check(m, move)[2] IN
    IF Ended(move) # "" THEN <<After(move), next, Ended(move)>>
    ELSE IF After(move) = 0 \\/ left = 1 THEN <<s, m, "never">>
    ELSE Finish(After(move), next, left - 1)

TURNS_END == broken = "" => Finish(session, model, Most)[3] # "never"

\\* The states in which no turn runs; the moves that submit one, and each one's name when the client
\\* tries again and the response that it continues is not cached on the connection any more.
Quiet == {quiet}
Older == {older}
Tries == {tries}

Submissions(s, m, name) ==
  IF Named(s, m, name) # {{}} THEN Named(s, m, name) ELSE Named(s, m, Older[name])

\\* Whether a client that submits a turn, and again after each answer that asks for it, gets another
\\* answer within that many tries.
RECURSIVE Answered(_, _, _, _)
Answered(s, m, name, left) ==
  IF s \\notin Quiet THEN TRUE
  ELSE IF left = 0 THEN FALSE
  ELSE LET moves == Submissions(s, m, name) IN
    IF moves = {{}} THEN TRUE
    ELSE LET move == CHOOSE one \\in moves : TRUE
             next == Check(m, move)[2]
             end == IF Ended(move) # "" \\/ After(move) = 0
                    THEN <<After(move), next, Ended(move)>>
                    ELSE Finish(After(move), next, Most) IN
      end[3] = "retry" => Answered(end[1], end[2], name, left - 1)

RETRIES_END ==
  (broken = "" /\\ session \\in Quiet) =>
    \\A move \\in Moves[session] :
      (Label(move) \\in DOMAIN Older /\\ Broken(model, move) = "") =>
        Answered(session, model, Label(move), Tries)

{end}

The configuration, for a file of the same name that ends in .cfg:

{config}"""


# ---------------------------------------------------------------- JSON


def as_json(tables: Tables) -> str:
    """The tables as one JSON object; numbers count from 0."""
    kinds: dict[tuple[str, str, int, str, str | None], int] = {}
    moves = []
    for row in tables.moves:
        moves.append([[kinds.setdefault(_kind(move), len(kinds)), move.after] for move in row])
    data = {
        "policy": tables.policy,
        "bounds": tables.bounds,
        "starts": tables.starts,
        "phases": [state.phase.value for state in tables.states],
        "kinds": [dict(zip(_KIND, kind, strict=True)) for kind in kinds],
        "moves": moves,
        "checks": [
            [
                [outcome, check.after, None if check.broken is None else check.broken.name]
                for outcome, check in sorted(row.items())
            ]
            for row in tables.checks
        ],
    }
    return json.dumps(data, separators=(",", ":")) + "\n"


_KIND = ("move", "rule", "outcome", "ended", "broken")


def _kind(move: TabledMove) -> tuple[str, str, int, str, str | None]:
    broken = None if move.broken is None else move.broken.name
    return move.label, move.rule, move.outcome, move.ended, broken


# ---------------------------------------------------------------- diagrams


def dot(tables: Tables) -> str:
    """The phases of a session and the rules that lead from one to the next, for Graphviz."""
    lines = [f"digraph {_text(tables.policy)} {{", "  node [shape=box, style=rounded];"]
    lines += [f"  {_text(name)};" for name in _phases(tables)]
    for (source, target), rules in _changes(tables).items():
        label = "".join(f"{rule}\\l" for rule in rules)  # \\l ends a line, aligned to the left
        lines.append(f'  {_text(source)} -> {_text(target)} [label="{label}"];')
    return "\n".join([*lines, "}", ""])


def mermaid(tables: Tables) -> str:
    """The same as a state diagram of Mermaid."""
    lines = ["stateDiagram-v2"]
    lines += [f"  state {_text(name)} as {_name(name)}" for name in _phases(tables)]
    lines.append(f"  [*] --> {_name(tables.states[0].phase.value)}")
    for (source, target), rules in _changes(tables).items():
        lines.append(f"  {_name(source)} --> {_name(target)}: {'<br>'.join(rules)}")
    lines.append(f"  {_RETIRED} --> [*]")
    return "\n".join([*lines, ""])


def _name(phase: str) -> str:
    return phase.replace(" ", "_").replace("-", "_")


def _phases(tables: Tables) -> Sequence[str]:
    met = {state.phase for state in tables.states}
    return [*[phase.value for phase in Phase if phase in met], _RETIRED]


def _changes(tables: Tables) -> Mapping[tuple[str, str], Sequence[str]]:
    """The pairs of phases that follow each other, with the rules that lead there. Events that are
    ignored and time that passes are left out; a rule that keeps the phase is not."""
    rules: dict[tuple[str, str], set[str]] = {}
    for state, row in zip(tables.states, tables.moves, strict=True):
        for move in row:
            if move.inert or not move.rule:
                continue
            after = _RETIRED if move.after is None else tables.states[move.after].phase.value
            rules.setdefault((state.phase.value, after), set()).add(move.rule)
    order = _phases(tables)
    places = sorted(rules, key=lambda pair: (order.index(pair[0]), order.index(pair[1])))
    return {pair: sorted(rules[pair]) for pair in places}
