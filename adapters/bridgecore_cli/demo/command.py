"""``bridgecore demo``: runs the demo, shows it, and writes its files.

What belongs here: the order of things, and the exit code: 0, or 1 if a file cannot be written.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path

from bridgecore import DEFAULT, PR397, V1_12
from bridgecore.simulate import Experiment
from bridgecore.simulate.experiment import OUTPUT_TOKENS
from bridgecore.simulate.growth_report import plot
from bridgecore_cli.demo.page import page
from bridgecore_cli.demo.stage import HURRY, Conversation, play
from bridgecore_cli.demo.story import Results, story
from bridgecore_cli.demo.view import open_view
from bridgecore_cli.errors import FAILURE, CommandError

_POLICIES = (V1_12, PR397, DEFAULT)


def run(args: argparse.Namespace) -> int:
    """Run the command; return the exit code.

    Raises:
        CommandError: no port can be listened on, or a file cannot be written.
    """
    experiments = [
        Experiment(policy=policy, store=store, turns=args.turns, seed=args.seed)
        for store in (True, False)
        for policy in _POLICIES
    ]
    introduction = _introduction(experiments[0])
    with open_view(introduction) as view:

        def update(conversations: Sequence[Conversation]) -> None:
            view.update(_results(conversations))

        conversations = _run(lambda: play(experiments, update))
        results = _results(conversations)
        lines = story(results)
        view.end(results, lines)
    if args.svg is not None:
        _write(args.svg, plot([growth for (_, store), growth in results.items() if store]))
    if args.html is not None:
        arrows = {_key(one): one.arrows for one in conversations}
        _write(args.html, page(introduction, results, lines, arrows))
    return 0


def _run(start: Callable[[], Coroutine[None, None, list[Conversation]]]) -> list[Conversation]:
    """Run what ``start`` returns in an event loop.

    An interrupt waits until the loop runs: one that came while it is made would leave half of a
    loop behind, which complains when it is collected.
    """

    async def run() -> list[Conversation]:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        return await start()

    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    return asyncio.run(run())


def _introduction(experiment: Experiment) -> str:
    return (
        f"{experiment.turns} turns of the same client behind three bridges. The upstream loses "
        "its connection after each answer, and once more before the next one begins. A system "
        f"prompt of {experiment.system_tokens:,} tokens, {experiment.new_tokens:,} new ones a "
        f"turn, {OUTPUT_TOKENS:,} of them in the answer. Waits before retries are a {HURRY}th of "
        "what the bridge asks for."
    )


def _key(conversation: Conversation) -> tuple[str, bool]:
    return conversation.experiment.policy.name, conversation.experiment.store


def _results(conversations: Sequence[Conversation]) -> Results:
    return {_key(one): one.dialogue.growth() for one in conversations}


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as exc:
        raise CommandError(f"cannot write {path}: {exc.strerror}", FAILURE) from None
