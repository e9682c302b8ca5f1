"""Codex: ``codex exec``, and ``codex exec resume --last`` for the turns after it.

Variants: ``http`` and ``websocket``. It always streams, and calls a tool of its own, which runs
commands. The environment variable CODEX names the program.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path

from conversation import MODEL, QUESTIONS, TASK, VARIANT, report

SETTINGS = """\
model = "{model}"
model_provider = "bridge"
approval_policy = "never"
sandbox_mode = "danger-full-access"
check_for_update_on_startup = false
[analytics]
enabled = false
[otel]
exporter = "none"
[features]
plugins = false
apps = false
[model_providers.bridge]
name = "bridge"
base_url = "{base_url}"
wire_api = "responses"
env_key = "BRIDGE_API_KEY"
supports_websockets = {websocket}
"""


def ask(home: str, question: str, resumes: bool) -> str:
    """The last message of Codex in a turn."""
    last = ["resume", "--last"] if resumes else []
    command = [os.environ["CODEX"], "exec", *last, "--json", "--skip-git-repo-check", question]
    done = subprocess.run(
        command,
        env={**os.environ, "HOME": home, "CODEX_HOME": home, "BRIDGE_API_KEY": TASK["key"]},
        cwd=home,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"codex: exit code {done.returncode}: {done.stdout}{done.stderr}")
    events = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    items = [event["item"] for event in events if event["type"] == "item.completed"]
    said = [str(item["text"]) for item in items if item["type"] == "agent_message"]
    return said[-1] if said else done.stdout


def main() -> list[str]:
    with tempfile.TemporaryDirectory() as home:
        websocket = str(VARIANT == "websocket").lower()
        settings = SETTINGS.format(model=MODEL, base_url=TASK["base_url"], websocket=websocket)
        Path(home, "config.toml").write_text(settings, encoding="utf-8")
        return [ask(home, question, number > 0) for number, question in enumerate(QUESTIONS)]


if __name__ == "__main__":
    report(main())
