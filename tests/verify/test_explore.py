"""Tests of verify/explore.py: its findings for the named policies, and that reduction loses
nothing."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from xml.etree import ElementTree

import attrs
import pytest

from bridgecore.recovery import effects as fx
from bridgecore.recovery.events import Event, Standing
from bridgecore.recovery.policy import (
    DEFAULT,
    POLICIES,
    PR397,
    V1_12,
    Action,
    Budgets,
    Policy,
    Situation,
    falling_back,
    replaying,
)
from bridgecore.recovery.rules import EVENT_KEYS, RULES, Transition, step
from bridgecore.recovery.state import Phase, SessionState
from bridgecore.verify import diagram
from bridgecore.verify.environment import BOUNDS, Bounds, bounded
from bridgecore.verify.explore import (
    PAIRS,
    Report,
    Step,
    _Search,
    explore,
    never_fired,
    never_met,
)
from bridgecore.verify.explore_bridge import BridgeProperty
from bridgecore.verify.properties import INVARIANTS, Property
from bridgecore.verify.scenario import replay
from bridgecore.verify.story import explain, tell
from tests.verify.endless import opens_for_ever, refuses_longer

SMALL, OVER_HTTP = BOUNDS["small"]
# Without late events, which double the states: these tests are not about them.
PUNCTUAL = attrs.evolve(SMALL, late=False)
ALL = len(Property)
SHORT = attrs.evolve(SMALL.timeouts, turn=1, lifetime=1)
TINY = Bounds("tiny", 0, (Standing.UNANCHORED, Standing.BOUND), SHORT, 1, remote=False, depth=6)


def test_every_invariant_has_a_property_or_a_reason() -> None:
    assert len(INVARIANTS) == 45
    named = {prop for entry in INVARIANTS.values() if not isinstance(entry, str) for prop in entry}
    assert set(Property) - named == {Property.NO_INTERNAL_ERROR}


def test_each_reason_names_what_exists() -> None:
    reasons = [entry for entry in INVARIANTS.values() if isinstance(entry, str)]
    names = {name for reason in reasons for name in re.findall(r"\b[A-Z]+(?:_[A-Z]+)+\b", reason)}
    assert names <= {*BridgeProperty.__members__, *Property.__members__}
    assert len(names) > 4
    root = Path(__file__).parent.parent.parent
    files = {name for reason in reasons for name in re.findall(r"tests/[\w/]+\.py", reason)}
    assert all((root / name).exists() for name in files)
    source = "".join(path.read_text() for path in root.glob("bridgecore/simulate/*.py"))
    for prop in {name for reason in reasons for name in re.findall(r"'([\w-]+)'", reason)}:
        assert f'"{prop}"' in source, prop


def test_every_pair_is_ruled() -> None:
    assert set(RULES) == {(phase, key) for phase in Phase for key in EVENT_KEYS}
    assert len(RULES) == PAIRS


@pytest.mark.timeout(400)
@pytest.mark.parametrize("part", BOUNDS["ci"], ids=lambda part: part.name)
def test_the_default_policy_is_clean(part: Bounds) -> None:
    report = explore(DEFAULT, part, most=ALL)
    assert report.counterexamples == []
    assert report.complete
    assert report.states > (5_000 if part.http else 50_000)


def test_every_rule_fires() -> None:
    """The same is true of each ``BOUNDS``, but the first thousand states of these are enough."""
    late = attrs.evolve(SMALL, standings=(Standing.UNANCHORED, Standing.HELD), remote=False)
    queue = attrs.evolve(late, waiting=1, queued=(Standing.UNANCHORED,), late=False, depth=9)
    old = attrs.evolve(SMALL.timeouts, lifetime=2)  # a session expires before its connection is old
    idle = attrs.evolve(late, standings=(Standing.BOUND,), timeouts=old, late=False)
    parts = (*BOUNDS["quick"][:2], late, queue, idle)
    reports = [explore(DEFAULT, attrs.evolve(part, max_states=1000)) for part in parts]
    assert never_fired(reports) == []
    assert never_met(reports) == []


# One process for all tests that use ``find``, which explores each policy once then.
finding = pytest.mark.xdist_group("find")


@functools.cache
def find(name: str) -> Report:
    return explore(POLICIES[name], attrs.evolve(SMALL, max_states=4000), most=ALL)


@finding
def test_the_shortcomings_of_the_seed_are_named() -> None:
    report = find("pr397")
    ways = {prop: found.path for prop, found in report.broken.items()}
    assert ways[Property.NO_AMBIGUOUS_RESEND] == ("submit unanchored", "opened", "lost", "opened")
    assert ways[Property.REBIND_CODE_IS_PROVEN] == ("submit held old", "opened", "lost")
    assert ways[Property.REBIND_CODE_IS_NOT_WITHHELD] == ("submit unanchored", "connect fails")
    assert "connect fails" in ways[Property.RECONNECT_COSTS_NO_REPLAY]
    assert Property.NOT_FOUND_IS_EARNED not in ways


def test_a_reconnect_uses_the_replay_only_if_the_budget_says_so() -> None:
    policy = attrs.evolve(PR397, budgets=Budgets())
    report = explore(policy, attrs.evolve(SMALL, max_states=4000), most=ALL)
    assert Property.RECONNECT_COSTS_NO_REPLAY not in report.broken


def resends_later(policy: Policy, state: SessionState, event: Event, now: int) -> Transition:
    """A turn that is lost on the first connection is refused, on any later one it is resent."""
    return step(replaying(policy) if state.generation > 1 else policy, state, event, now)


def test_it_does_not_matter_which_remedy_is_met_first() -> None:
    report = explore(DEFAULT, TINY, stepper=resends_later)
    found = report.broken[Property.RECONNECT_COSTS_NO_REPLAY]
    assert found.text.endswith(
        "a turn lost in the same way after as many replays was not sent again"
    )
    # What the owner replica says it has not sent is not lost, and is sent from here at once.
    remote = attrs.evolve(TINY, remote=True)
    assert set(explore(DEFAULT, remote, stepper=step, most=ALL).broken) == set()


@finding
def test_the_broken_policy_loses_a_chain_with_its_socket() -> None:
    found = find("v1_12").broken[Property.NOT_FOUND_IS_EARNED]
    assert found.path == ("submit held old", "opened")


def test_a_path_without_other_replicas_is_preferred() -> None:
    few = attrs.evolve(BOUNDS["quick"][0], standings=(Standing.UNANCHORED,))
    remote = {}
    for first in (False, True):
        report = explore(V1_12, few, most=ALL, local_first=first)
        assert report.complete
        remote[first] = {prop for prop, found in report.broken.items() if found.remote}
    assert remote[False] == {Property.OWNER_LOSS_REBINDS, Property.RECONNECT_COSTS_NO_REPLAY}
    assert remote[True] == {Property.OWNER_LOSS_REBINDS}


@finding
def test_a_counterexample_names_the_cells_that_decided() -> None:
    found = find("v1_12").broken[Property.NOT_FOUND_IS_EARNED]
    story = tell(V1_12, SMALL, found)
    because = (
        "because: socket is open but does not know the anchor / held = "
        "refuse (previous_response_not_found); `default` has rehydrate (upstream_unavailable)"
    )
    assert because in explain(story)
    assert because in diagram.text(story)
    assert because in "".join(ElementTree.fromstring(diagram.svg(story)).itertext())
    usual = find("pr397").broken[Property.REBIND_CODE_IS_NOT_WITHHELD]
    assert "because: connect failed / unanchored = refuse (upstream_unavailable)\n" in explain(
        tell(PR397, SMALL, usual)
    )


@pytest.mark.parametrize("standing", Standing, ids=lambda standing: standing.value)
def test_the_quick_bounds_have_every_column_of_a_policy(standing: Standing) -> None:
    """In a session of this replica without a limit on its moves, in one that another replica owns,
    and over HTTP."""
    parts = [part for part in BOUNDS["quick"] if standing in part.standings]
    assert any(part.depth is None for part in parts)
    assert any(part.remote for part in parts)
    assert any(part.http for part in parts)


@pytest.mark.parametrize(
    ("situation", "standing", "action", "broken"),
    [
        (Situation.SILENT, Standing.STORED, Action.REFUSE, Property.REFUSALS_ARE_BOUNDED),
        (Situation.LOST_SENT, Standing.INJECTED, Action.RESEND, Property.NO_AMBIGUOUS_RESEND),
        (
            *(Situation.OWNER_LOST, Standing.UNKNOWN, Action.REFUSE),
            Property.ANSWER_TELLS_WHAT_HAPPENED,
        ),
        (
            *(Situation.OWNER_LOST_DISPATCHED, Standing.STORED, Action.REFUSE_BOUNDED),
            Property.NOT_FOUND_IS_EARNED,
        ),
        (
            *(Situation.LOST_SENT, Standing.INJECTED, Action.REFUSE_BOUNDED),
            Property.FORM_IS_POSSIBLE,
        ),
    ],
)
def test_the_quick_bounds_find_a_wrong_cell_of_a_rare_column(
    situation: Situation, standing: Standing, action: Action, broken: Property
) -> None:
    usual = DEFAULT.remedy(situation, standing)
    policy = DEFAULT.with_cell(situation, standing, attrs.evolve(usual, action=action))
    parts = [part for part in BOUNDS["quick"] if standing in part.standings]
    assert any(broken in explore(policy, part).broken for part in reversed(parts))


@finding
@pytest.mark.parametrize("policy", [PR397, V1_12], ids=lambda policy: policy.name)
def test_a_story_has_concrete_ids_and_times(policy: Policy) -> None:
    report = find(policy.name)
    assert len(report.counterexamples) >= 4
    for found in report.counterexamples:
        story = tell(policy, SMALL, found)
        assert explain(story) == str(story)
        assert found.prop.name in str(story)
        assert replay(story.scenario) == story.scenario
        # Each form of the story has the effect that broke the property.
        last = story.seen[-1].transition.rule
        assert story.scenario.splitlines()[-2 - len(story.seen[-1].transition.effects)].endswith(
            f" by {last}"
        )
        drawn = list(diagram.arrows(story))
        assert len(diagram.text(story).splitlines()) == len(drawn) + 3
        svg = diagram.svg(story)
        assert svg.count("marker-end") + svg.count("<circle") == len(drawn)


@pytest.mark.timeout(400)
def test_a_replaying_policy_breaks_only_no_ambiguous_resend() -> None:
    few = attrs.evolve(PUNCTUAL, max_states=4000)  # the first resend comes early
    assert set(explore(replaying(DEFAULT), few, most=ALL).broken) == {Property.NO_AMBIGUOUS_RESEND}
    without = frozenset({Property.NO_AMBIGUOUS_RESEND})
    report = explore(replaying(DEFAULT), PUNCTUAL, most=ALL, without=without)
    assert report.complete
    assert report.counterexamples == []


@pytest.mark.timeout(240)
def test_endless_retries_are_detected_on_the_graph() -> None:
    """Liveness is checked on the graph, without the count of refusals."""
    without = frozenset({Property.REFUSALS_ARE_BOUNDED})
    bounds = attrs.evolve(PUNCTUAL, standings=(Standing.BOUND,))
    report = explore(DEFAULT, bounds, stepper=refuses_longer, without=without, most=ALL)
    assert {prop: found.path for prop, found in report.broken.items()} == {
        Property.RETRIES_END: ("submit bound old",)
    }


def test_an_endless_turn_is_detected_on_the_graph() -> None:
    """Nothing is lost, refused or late, so no budget is used up: but the turn never ends."""
    without = frozenset({Property.SOUND_SOCKETS_STAY})
    report = explore(DEFAULT, PUNCTUAL, stepper=opens_for_ever, without=without, most=ALL)
    assert report.complete
    assert {prop: found.path for prop, found in report.broken.items()} == {
        Property.TURNS_END: ("submit unanchored",)
    }


@pytest.mark.timeout(240)
def test_preloading_breaks_no_property() -> None:
    warm = attrs.evolve(DEFAULT, budgets=Budgets(warm=True))
    report = explore(warm, PUNCTUAL, most=ALL)
    assert report.complete
    assert report.counterexamples == []


def forgets_to_warm(policy: Policy, state: SessionState, event: Event, now: int) -> Transition:
    after = step(policy, state, event, now)
    kept = tuple(one for one in after.effects if not isinstance(one, fx.WarmSession))
    return attrs.evolve(after, effects=kept)


def holding(held: bool) -> Step:
    """A policy whose answers are all held back, or none."""

    def stepper(policy: Policy, state: SessionState, event: Event, now: int) -> Transition:
        after = step(policy, state, event, now)
        told = tuple(
            attrs.evolve(one, held=held) if isinstance(one, fx.DeliverEvent) else one
            for one in after.effects
        )
        return attrs.evolve(after, effects=told)

    return stepper


@pytest.mark.parametrize(
    ("policy", "stepper", "prop"),
    [
        (
            attrs.evolve(DEFAULT, budgets=Budgets(warm=True)),
            forgets_to_warm,
            Property.SOCKETS_ARE_ROTATED,
        ),
        (replaying(DEFAULT), holding(True), Property.ANSWER_IS_WHOLE),
        (DEFAULT, holding(True), Property.ANSWER_IS_WHOLE),
        (replaying(DEFAULT), holding(False), Property.NO_REPLAY_AFTER_ANSWER),
    ],
)
def test_warming_and_replaying_are_watched(policy: Policy, stepper: Step, prop: Property) -> None:
    # These properties would detect it a step earlier.
    without = frozenset({Property.NO_AMBIGUOUS_RESEND, Property.RECOVERY_DESCENDS})
    report = explore(policy, SMALL, stepper=stepper, without=without)
    assert set(report.broken) == {prop}


# ------------------------------------------------------------------ connections over HTTP

FEW = attrs.evolve(OVER_HTTP, standings=(Standing.UNANCHORED, Standing.HELD))


@pytest.mark.timeout(240)
def test_falling_back_breaks_no_property() -> None:
    report = explore(falling_back(DEFAULT), OVER_HTTP, most=ALL)
    assert report.complete
    assert report.counterexamples == []


@pytest.mark.timeout(240)
def test_a_replaying_policy_that_falls_back_breaks_only_no_ambiguous_resend() -> None:
    without = frozenset({Property.NO_AMBIGUOUS_RESEND})
    report = explore(falling_back(replaying(DEFAULT)), FEW, most=ALL, without=without)
    assert report.complete
    assert report.counterexamples == []


def tries_again(policy: Policy, state: SessionState, event: Event, now: int) -> Transition:
    """It is forgotten that a turn goes over HTTP."""
    after = step(policy, state, event, now)
    if after.state.running is None:
        return after
    running = attrs.evolve(after.state.running, over_http=False)
    return attrs.evolve(after, state=attrs.evolve(after.state, running=running))


def over(http: bool) -> Step:
    """Each connection is asked for over HTTP, or none."""

    def stepper(policy: Policy, state: SessionState, event: Event, now: int) -> Transition:
        after = step(policy, state, event, now)
        told = tuple(
            attrs.evolve(one, http=http) if isinstance(one, fx.OpenConnection) else one
            for one in after.effects
        )
        return attrs.evolve(after, effects=told)

    return stepper


@pytest.mark.parametrize(
    ("stepper", "prop", "path"),
    [
        (over(True), Property.FALLBACK_IS_PROVEN, ("submit unanchored",)),
        (over(False), Property.FALLBACK_IS_PROVEN, ("submit unanchored", "upgrade 404")),
        (
            tries_again,
            Property.FALLBACK_IS_PROVEN,
            ("submit unanchored", "upgrade 404", "upgrade 404"),
        ),
    ],
)
def test_what_a_connection_speaks_is_watched(
    stepper: Step, prop: Property, path: tuple[str, ...]
) -> None:
    report = explore(falling_back(DEFAULT), FEW, stepper=stepper)
    assert {one: found.path for one, found in report.broken.items()} == {prop: path}


@pytest.mark.parametrize("situation", [Situation.NO_WEBSOCKET, Situation.TOO_LARGE])
def test_a_policy_that_falls_back_in_one_row_only_is_detected(situation: Situation) -> None:
    policy = falling_back(DEFAULT)
    for standing in Standing:
        policy = policy.with_cell(situation, standing, DEFAULT.remedy(situation, standing))
        assert policy.remedy(situation, standing).action is not Action.FALL_BACK
    report = explore(policy, FEW)
    assert set(report.broken) == {Property.FALLBACK_IS_PROVEN}


@pytest.mark.parametrize("policy", POLICIES.values(), ids=lambda policy: policy.name)
def test_reduction_leaves_nothing_out(policy: Policy) -> None:
    """With and without reduction the same canonical states are reached and the same properties
    break."""
    reached, broken = [], []
    for reduced in (True, False):
        search = _Search(bounded(policy, TINY), TINY, step, ALL, reduced, frozenset())
        report = search.run()
        reached.append(search.reached())
        broken.append(set(report.broken))
    assert broken[0] == broken[1]
    assert reached[0] == reached[1]
    assert len(reached[0]) > 100
