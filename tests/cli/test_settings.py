"""Tests of bridgecore_cli's settings: kinds, sources, precedence, and errors for wrong values."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import attrs
import pytest

from bridgecore.config import (
    Config,
    Continuity,
    Fallback,
    HttpUrl,
    OnAmbiguousLoss,
    Rotation,
    UpstreamUrl,
)
from bridgecore.errors import ConfigError
from bridgecore.recovery.events import Standing
from bridgecore.recovery.policy import (
    DEFAULT,
    POLICIES,
    Action,
    Budgets,
    Situation,
    Timeouts,
)
from bridgecore.wire.passing import PASSED_PATHS
from bridgecore_cli.errors import CONFIGURATION, USAGE, SettingsError
from bridgecore_cli.settings import (
    CORE,
    HEADERS,
    SECONDS,
    SETTINGS,
    SIZE,
    Setting,
    Settings,
    load,
)

URL = UpstreamUrl.parse("ws://127.0.0.1:9/v1/responses")
S = 1_000_000_000
TIMES = {
    "connect": "connect_timeout",
    "created": "created_timeout",
    "idle": "idle_timeout",
    "turn": "turn_timeout",
    "lifetime": "upstream_lifetime",
    "expiry": "session_idle",
}

# Names, and defaults in seconds and bytes, as documented.
PROMISED = {
    "host": "127.0.0.1",
    "port": 8080,
    "upstream": None,
    "policy": DEFAULT,
    "verify": True,
    "backend": "asyncio",
    "loop": "asyncio",
    "workers": 1,
    "log_level": "info",
    "decision_log": None,
    "store": "memory",
    "replica": None,
    "cluster_keys": None,
    "advertise": None,
    "cluster_certificate": None,
    "connect_timeout": 10 * S,
    "created_timeout": 60 * S,
    "idle_timeout": 1200 * S,
    "turn_timeout": 3600 * S,
    "head_timeout": 15 * S,
    "keepalive": 15 * S,
    "upstream_lifetime": 3300 * S,
    "session_idle": 900 * S,
    "drain_timeout": 30 * S,
    "header_timeout": 10 * S,
    "body_timeout": 60 * S,
    "ambiguous": OnAmbiguousLoss.REFUSE,
    "fallback": Fallback.NONE,
    "rotation": Rotation.LAZY,
    "continuity": Continuity.TRANSCRIPT,
    "transcript_bytes": 256 * 1024 * 1024,
    "transcript_scope_bytes": 128 * 1024 * 1024,
    "transcript_age": 21_600 * S,
    "forward_headers": (
        *("api-key", "authorization", "chatgpt-account-id", "openai-beta", "openai-organization"),
        *("openai-project", "originator", "session-id", "thread-id", "user-agent"),
        *("x-client-request-id", "x-codex-beta-features", "x-codex-turn-metadata"),
        "x-codex-window-id",
    ),
    "upstream_http": None,
    "pass_through": PASSED_PATHS,
    "websocket": False,
    "websocket_idle": 3600 * S,
    "websocket_lifetime": 3600 * S,
    "websocket_origins": (),
    "metrics": False,
    "max_sessions": None,
    "max_header": 65_536,
    "max_body": 64 * 1024 * 1024,
    "max_message": 16 * 1024 * 1024,
    "lease_ttl": 15 * S,
    "lease_margin": 3 * S,
    "store_timeout": 2 * S,
}


def effective(settings: Settings) -> dict[str, object]:
    values = attrs.asdict(settings, recurse=False)
    return {**values.pop("core"), **values}


def error(
    flags: Mapping[str, str | None] | None = None, environ: Mapping[str, str] | None = None
) -> SettingsError:
    with pytest.raises(SettingsError) as caught:
        load(flags or {}, environ or {})
    assert "\n" not in str(caught.value)
    return caught.value


def test_defaults_are_the_promised_ones() -> None:
    assert effective(load({}, {})) == PROMISED
    assert [setting.name for setting in SETTINGS] == list(PROMISED)


def test_names_of_flags_and_variables_follow_from_the_name() -> None:
    by_name = {setting.name: setting for setting in SETTINGS}
    assert by_name["created_timeout"].flag == "--created-timeout"
    assert by_name["created_timeout"].variable == "BRIDGECORE_CREATED_TIMEOUT"


def test_every_setting_has_a_default_that_its_kind_can_show_and_read_back() -> None:
    for setting in SETTINGS:
        text = setting.kind.show(setting.default)
        assert setting.kind.read(text) == setting.default, setting.name


def test_the_configuration_gets_every_value() -> None:
    # In descending order, because a part of transcript_bytes cannot be more than the whole.
    flags = {setting.name: str(99 - index) for index, setting in enumerate(CORE)}
    chosen = {
        "ambiguous": OnAmbiguousLoss.REPLAY,
        "rotation": Rotation.WARM,
        "fallback": Fallback.HTTP,
        "continuity": Continuity.PASSTHROUGH,
    }
    flags |= {name: choice.value for name, choice in chosen.items()}
    flags["forward_headers"] = "x-tenant"
    flags["upstream_http"] = "https://api.example:444/v1"
    flags["pass_through"] = "models chat/completions"
    flags["websocket"] = flags["metrics"] = "true"
    flags["websocket_origins"] = "https://a.example, http://b.example:81"
    config = load({**flags, "policy": "pr397"}, {}).config(URL, 1024, "a")
    assert config.upstream is URL
    assert config.policy is POLICIES["pr397"]
    for index, setting in enumerate(CORE):
        value: object = (99 - index) * (S if setting.kind is SECONDS else 1)
        if setting.kind is HEADERS:
            value = ("x-tenant",)
        elif setting.name == "upstream_http":
            value = HttpUrl.parse("https://api.example:444/v1")
        elif setting.name == "pass_through":
            value = ("models", "chat/completions")
        elif setting.name in ("websocket", "metrics"):
            value = True
        elif setting.name == "websocket_origins":
            value = ("https://a.example", "http://b.example:81")
        assert getattr(config, setting.name) == chosen.get(setting.name, value), setting.name


def test_every_promised_setting_of_the_core_is_a_field_of_its_configuration() -> None:
    fields = {field.name: field.default for field in attrs.fields(Config)}
    fields["max_sessions"] = None  # its default depends on the process: see below
    assert {setting.name: fields[setting.name] for setting in CORE} == {
        setting.name: PROMISED[setting.name] for setting in CORE
    }


@pytest.mark.parametrize(
    ("files", "bridge", "with_emulator"),
    [
        (None, 10_000, 10_000),
        (1_048_576, 10_000, 10_000),
        (20_064, 10_000, 6_666),
        (20_062, 9_999, 6_666),
        (1_024, 480, 320),
        (256, 96, 64),
        (128, 48, 32),
        (16, 6, 4),
        (2, 1, 1),
    ],
)
def test_sessions_follow_from_the_files_that_the_process_may_open(
    files: int | None, bridge: int, with_emulator: int
) -> None:
    """A session has two sockets, or three if the emulator is embedded."""
    assert load({"upstream": "ws://a/b"}, {}).config(URL, files, "a").max_sessions == bridge
    assert load({}, {}).config(URL, files, "a").max_sessions == with_emulator


@pytest.mark.parametrize("value", ["1", "20000"])
def test_a_number_of_sessions_that_was_asked_for_is_not_changed(value: str) -> None:
    assert load({"max_sessions": value}, {}).config(URL, 128, "a").max_sessions == int(value)


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "many", ""])
def test_a_number_of_sessions_is_a_whole_number(value: str) -> None:
    assert "max-sessions" in str(error({"max_sessions": value}))


# ------------------------------------------------------------------ sources


def write(folder: Path, text: str) -> str:
    path = folder / "bridge.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_flag_over_environment_over_file_over_default(tmp_path: Path) -> None:
    path = write(tmp_path, "port = 3\nkeepalive = 3\nidle_timeout = 3\n")
    environ = {"BRIDGECORE_PORT": "2", "BRIDGECORE_KEEPALIVE": "2"}
    settings = load({"port": "1", "config": path}, environ)
    assert settings.port == 1
    assert settings.core["keepalive"] == 2 * S
    assert settings.core["idle_timeout"] == 3 * S
    assert settings.core["turn_timeout"] == 3600 * S


def test_the_environment_can_name_the_file_and_the_flag_wins(tmp_path: Path) -> None:
    path = write(tmp_path, 'host = "::1"\n')
    assert load({}, {"BRIDGECORE_CONFIG": path}).host == "::1"
    missing = str(tmp_path / "missing.toml")
    assert load({"config": path}, {"BRIDGECORE_CONFIG": missing}).host == "::1"


def test_every_setting_can_be_set_in_each_way(tmp_path: Path) -> None:
    values = {
        "host": "localhost",
        "port": "9000",
        "upstream": "wss://api.example.com/v1/responses?v=1",
        "policy": "v1_12",
        "verify": "false",
        "backend": "trio",
        "loop": "uvloop",
        "workers": "auto",
        "log_level": "debug",
        "decision_log": "/var/log/my decisions.ndjson",
        "store": "sqlite:/var/lib/bridgecore/conversations.db",
        "replica": "bridge-0",
        "cluster_keys": "/etc/bridgecore/keys",
        "advertise": "https://bridge-0.bridges:8081",
        "cluster_certificate": "/etc/bridgecore/bridge-0.pem",
        **{setting.name: "7" for setting in CORE},
        "lease_ttl": "70",
        "ambiguous": "replay",
        "rotation": "warm",
        "fallback": "http",
        "continuity": "passthrough",
        "forward_headers": "x-tenant",
        "upstream_http": "https://api.example/v1",
        "pass_through": "models",
        "metrics": "true",
        "websocket": "true",
        "websocket_origins": "https://chat.example",
    }
    quoted = {name for name, value in values.items() if not value.isdigit()}
    lines = [f'{k} = "{v}"' if k in quoted else f"{k} = {v}" for k, v in values.items()]
    from_file = load({"config": write(tmp_path, "\n".join(lines))}, {})
    from_flags = load(values, {})
    from_environ = load({}, {f"BRIDGECORE_{k.upper()}": v for k, v in values.items()})
    assert from_file == from_flags == from_environ
    assert set(effective(from_flags)) == set(PROMISED)
    for name, value in effective(from_flags).items():
        assert value != PROMISED[name], name


def test_a_policy_of_ones_own_in_the_configuration_file(tmp_path: Path) -> None:
    text = 'port = 1\n[policy.cells]\nsilent.bound = "refuse"\n[policy.budgets]\nwaiting = 5\n'
    path = write(tmp_path, text)
    policy = load({"config": path}, {}).policy
    assert policy.name == "own"
    assert policy.remedy(Situation.SILENT, Standing.BOUND).action is Action.REFUSE
    assert load({"policy": path}, {}).policy.name == "bridge"  # of the file
    assert load({"config": path, "policy": "pr397"}, {}).policy is POLICIES["pr397"]
    assert load({"config": path}, {"BRIDGECORE_POLICY": "pr397"}).policy is POLICIES["pr397"]


def test_the_budgets_of_a_policy_are_those_of_the_bridge(tmp_path: Path) -> None:
    path = write(tmp_path, "[policy.budgets]\nwaiting = 5\nrefusals = 0\nwarm = true\n")
    for rotation in ("lazy", "warm"):
        config = load({"policy": path, "rotation": rotation}, {}).config(URL, None, "a")
        assert config.session_policy.budgets == Budgets(waiting=5, refusals=0, warm=True)
        assert config.max_waiting == 5


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("policy = 3", ": policy: 3 is no policy: neither a text nor a table"),
        ('policy = "pr379"', ": policy: 'pr379' is no policy; did you mean pr397?"),
        ("[policy.cells.silnt]", ": policy.cells.silnt: 'silnt' is no row; did you mean silent?"),
        ('[policy.cells.silent]\nheld = "wait"', ": policy.cells.silent.held: 'wait' is no action"),
    ],
)
def test_a_wrong_policy_is_an_error_with_its_place(text: str, said: str, tmp_path: Path) -> None:
    path = write(tmp_path, text + "\n")
    for flags in ({"config": path}, {"config": path, "policy": "default"}):
        caught = error(flags)
        assert str(caught).startswith(path + said)
        assert caught.exit_code == CONFIGURATION
    caught = error({"policy": path})
    assert caught.exit_code == USAGE
    assert str(caught).startswith("--policy: ")


@pytest.mark.parametrize(("name", "setting"), TIMES.items())
def test_times_of_a_policy_are_settings_of_the_bridge(
    name: str, setting: str, tmp_path: Path
) -> None:
    path = write(tmp_path, f"[policy.timeouts]\n{name} = 5\n")
    caught = error({"config": path})
    assert caught.exit_code == CONFIGURATION
    assert str(caught) == (
        f"policy own: timeouts.{name} has no effect here, the times are settings of their own: set "
        f"{setting} instead"
    )
    assert error({"policy": path}).exit_code == USAGE
    assert setting in PROMISED
    assert name in {field.name for field in attrs.fields(Timeouts)}


def test_a_store_needs_keys_and_its_url_is_not_repeated() -> None:
    assert "cluster_keys" in str(error({"store": "sqlite:x.db"}))
    for wrong in ("sqlite:", "mysql://user:hunter2@host/db", "postgresql", ""):
        text = str(error({"store": wrong}))
        assert text.startswith("--store: the value is not ")
        assert "hunter2" not in text
    wrong_times = {"store": "sqlite:x.db", "cluster_keys": "keys", "lease_ttl": "4"}
    assert "store_timeout" in str(error(wrong_times))


def test_forwards_need_a_store_and_with_tls_a_certificate() -> None:
    assert "store other than memory" in str(error({"advertise": "http://a:1"}))
    cluster = {"store": "sqlite:x.db", "cluster_keys": "keys"}
    for url, more in (("https://a:1", {}), ("http://a:1", {"cluster_certificate": "a.pem"})):
        text = str(error({**cluster, "advertise": url, **more}))
        assert text.startswith("cluster_certificate: ")
    for url in ("a:1", "ws://a:1", "http://a:1/path", "http://user@a:1", "http://"):
        assert "advertise" in str(error({**cluster, "advertise": url}))


def test_times_that_do_not_go_together_are_shown_in_seconds() -> None:
    replica = {"store": "sqlite:x.db", "cluster_keys": "keys"}
    text = str(error({**replica, "lease_ttl": "3.5", "lease_margin": "3"}))
    assert text.startswith(
        "lease_ttl (3.5 s) less lease_margin (3 s) must be at least three times store_timeout (2 s)"
    )


@pytest.mark.parametrize("more", [{}, {"store": "sqlite:x.db"}, {"cluster_keys": "keys"}])
def test_what_advertise_needs_is_called_as_a_setting(more: dict[str, str]) -> None:
    caught = error({"advertise": "http://a:1", **more})
    assert caught.exit_code == USAGE
    assert str(caught).endswith("needs a store other than memory, and cluster_keys")
    caught = error(more, {"BRIDGECORE_ADVERTISE": "http://a:1"})
    assert caught.exit_code == CONFIGURATION


@pytest.mark.parametrize("url", ["sqlite:relative.db?mode=ro", "sqlite:///x.db?cache=shared"])
def test_a_file_of_sqlite_has_no_query_parameters(url: str) -> None:
    text = str(error({"store": url, "cluster_keys": "keys"}))
    assert text.startswith("--store: the value has query parameters, and sqlite: takes only")


def test_unknown_variables_are_ignored() -> None:
    assert effective(load({}, {"PORT": "x", "BRIDGECORE": "x", "BRIDGE_PORT": "x"})) == PROMISED


@pytest.mark.parametrize(
    ("name", "wrong", "right"),
    [
        ("port", "70000", "80"),
        ("port", "-1", "80"),
        ("keepalive", "0", "15"),
        ("max_body", "1.5", "1000"),
        ("policy", '"nope"', "default"),
        ("backend", '"curio"', "trio"),
        ("upstream", '"ftp://h/"', "ws://h/"),
        ("host", '"a b"', "localhost"),
        ("rotation", '"cold"', "warm"),
        ("fallback", '"https"', "http"),
        ("websocket", "1", "true"),
        ("metrics", '"yes"', "true"),
        ("websocket_origins", '"chat.example"', "https://chat.example"),
    ],
)
def test_an_overridden_wrong_value_is_an_error(
    name: str, wrong: str, right: str, tmp_path: Path
) -> None:
    """It would be used as soon as the flag or the variable is removed."""
    path = write(tmp_path, f"{name} = {wrong}\n")
    variable = f"BRIDGECORE_{name.upper()}"
    for flags, environ, where in (
        ({name: right, "config": path}, {}, f"{path}: {name}: "),
        ({"config": path}, {variable: right}, f"{path}: {name}: "),
        ({name: right}, {variable: wrong.strip('"')}, f"{variable}: "),
        ({name: right, "config": path}, {variable: right}, f"{path}: {name}: "),
    ):
        caught = error(flags, environ)
        assert caught.exit_code == CONFIGURATION
        assert str(caught).startswith(where)


def test_a_wrong_flag_is_reported_before_errors_of_other_sources(tmp_path: Path) -> None:
    path = write(tmp_path, "port = 70000\n")
    assert error({"port": "x", "config": path}, {"BRIDGECORE_PORT": "y"}).exit_code == USAGE


def test_a_variable_that_kubernetes_sets_is_explained() -> None:
    """BRIDGECORE_PORT=tcp://... is set for a Service named ``bridgecore``."""
    caught = error({"port": "80"}, {"BRIDGECORE_PORT": "tcp://10.0.0.1:80"})
    assert caught.exit_code == CONFIGURATION
    assert "enableServiceLinks" in str(caught)
    assert "enableServiceLinks" not in str(error({}, {"BRIDGECORE_PORT": "80x"}))


def test_values_that_do_not_go_together_are_named(tmp_path: Path) -> None:
    values = {"transcript_scope_bytes": "10", "transcript_bytes": "9"}
    caught = error(values)
    assert caught.exit_code == USAGE
    assert "transcript_scope_bytes=10 is more than transcript_bytes=9" in str(caught)
    path = write(tmp_path, "transcript_scope_bytes = 10\ntranscript_bytes = 9\n")
    assert error({"config": path}).exit_code == CONFIGURATION


def test_the_emulator_is_no_url(tmp_path: Path) -> None:
    assert load({"upstream": "emulator"}, {"BRIDGECORE_UPSTREAM": "ws://h/"}).upstream is None
    upstream = load({}, {"BRIDGECORE_UPSTREAM": "wss://h:8443/x?y=1"}).upstream
    assert upstream == UpstreamUrl.parse("wss://h:8443/x?y=1")


# ------------------------------------------------------------------ kinds


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("1", S),
        ("0.1", 100_000_000),
        (".5", 500_000_000),
        ("5.", 5 * S),
        ("+2", 2 * S),
        ("1e-3", 1_000_000),
        ("1.000000001", S + 1),
        ("0.29", 290_000_000),  # 289,999,999 if computed as a float
        ("1000000000", 10**9 * S),
    ],
)
def test_times(text: str, ns: int, tmp_path: Path) -> None:
    assert load({"keepalive": text}, {}).core["keepalive"] == ns
    if not text.startswith(".") and not text.endswith("."):  # TOML does not permit them
        path = write(tmp_path, f"keepalive = {text}\n")
        assert load({"config": path}, {}).core["keepalive"] == ns


BAD_TIMES = [
    "0",
    "0.0009",
    "1e-9",
    "-1",
    "-0.5",
    "nan",
    "inf",
    "-inf",
    "1e10",
    "1e999",
    "10s",
    "1_000",
    "",
    " 1",
]
BAD_SIZES = ["0", "-1", "1.5", "1k", "1_000", "", " 1", "1e3", "9" * 16, "9" * 5000, "\u0661"]
BAD_PORTS = ["-1", "65536", "70000", "http", "", "80.0", "0x50", "\u0668\u0660"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("created_timeout", value) for value in BAD_TIMES),
        *(("max_body", value) for value in BAD_SIZES),
        *(("port", value) for value in BAD_PORTS),
        ("policy", "nope"),
        ("policy", "DEFAULT"),
        ("backend", "curio"),
        ("log_level", "loud"),
        ("log_level", "INFO"),
        ("decision_log", ""),
        ("decision_log", "a\0b"),
        ("host", ""),
        ("host", "a b"),
        ("host", "a\nb"),
    ],
)
def test_a_wrong_value_is_named_with_its_source(name: str, value: str) -> None:
    flag = "--" + name.replace("_", "-")
    caught = error({name: value})
    assert caught.exit_code == USAGE
    assert str(caught).startswith(f"{flag}: ")
    variable = f"BRIDGECORE_{name.upper()}"
    caught = error({}, {variable: value})
    assert caught.exit_code == CONFIGURATION
    assert str(caught).startswith(f"{variable}: ")
    assert len(str(caught)) < 250


WRONG = ["ftp://x", "no\x01pe", "a:1", "-1", "http://a:1/p?q#f", "70000000000000000000"]


@pytest.mark.parametrize("value", WRONG)
@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_a_wrong_value_is_shown_once_and_in_the_unit_of_its_setting(
    setting: Setting, value: str
) -> None:
    try:
        load({setting.name: value}, {})
    except SettingsError as caught:
        text = str(caught)
    else:
        return  # this one is right
    assert text.startswith((f"{setting.flag}: ", setting.name, "store: "))
    rest = text.removeprefix(f"{setting.flag}: ")
    assert rest.count(value) <= 1
    assert rest.count(repr(value)) <= 1
    assert not rest.startswith(setting.name) or not text.startswith("--")
    others = rest.replace(value, "")
    # No nanoseconds: the largest number in a message is the longest time, in seconds.
    assert all(int(number) <= 10**9 for number in re.findall(r"[0-9]+", others))
    assert "cluster_secrets" not in text


@pytest.mark.parametrize(
    ("name", "literal"),
    [
        ("keepalive", "nan"),
        ("keepalive", "inf"),
        ("keepalive", "-1.5"),
        ("keepalive", "0"),
        ("keepalive", "true"),
        ("keepalive", "[1]"),
        ("keepalive", "1979-05-27"),
        ("max_body", "0"),
        ("max_body", "1.0"),
        ("max_body", "true"),
        ("port", "70000"),
        ("port", "false"),
        ("host", "1"),
        ("policy", '"nope"'),
        ("policy", "3"),
        ("upstream", "3"),
        ("upstream", '"ftp://h/"'),
    ],
)
def test_a_wrong_value_in_the_file_is_named_with_file_and_key(
    name: str, literal: str, tmp_path: Path
) -> None:
    path = write(tmp_path, f"{name} = {literal}\n")
    caught = error({"config": path})
    assert caught.exit_code == CONFIGURATION
    assert str(caught).startswith(f"{path}: {name}: ")


@pytest.mark.parametrize(
    "url",
    [
        "ftp://h/",
        "http://",
        "https://h:0/v1",
        "http://h/#f",
        "h",
        "ws://",
        "ws://h:0/",
        "ws://h:99999/",
        "ws://h/#f",
        "",
        "Emulator",
    ],
)
def test_a_bad_upstream_is_a_matter_of_configuration_wherever_it_came_from(url: str) -> None:
    for caught, where in (
        (error({"upstream": url}), "--upstream: "),
        (error({}, {"BRIDGECORE_UPSTREAM": url}), "BRIDGECORE_UPSTREAM: "),
    ):
        assert caught.exit_code == CONFIGURATION
        assert str(caught).startswith(where)


@pytest.mark.parametrize(
    "url",
    [
        "https://user:hunter2@h/",
        "ws://user:hunter2@h/",
        "ws://user:pa/hunter2@h/",
        "ftp://h/?key=hunter2",
        "https://user:hunter2@h/v1",
        "ws://h/#hunter2",
        "user:hunter2@h",
    ],
)
def test_an_upstream_url_is_not_repeated_in_an_error(url: str) -> None:
    assert "hunter2" not in str(error({"upstream": url}))


# ------------------------------------------------------------------ files


def test_a_missing_file(tmp_path: Path) -> None:
    path = str(tmp_path / "missing.toml")
    for caught, where in (
        (error({"config": path}), "--config: "),
        (error({}, {"BRIDGECORE_CONFIG": path}), "BRIDGECORE_CONFIG: "),
    ):
        assert caught.exit_code == CONFIGURATION
        assert str(caught).startswith(where)
        assert path in str(caught)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    caught = error({"config": str(tmp_path)})
    assert caught.exit_code == CONFIGURATION
    assert str(tmp_path) in str(caught)


@pytest.mark.parametrize(
    "content",
    [
        b"port = ",
        b"port 80",
        b"\xff\xfe",
        b"a = 1\na = 2",
        b"keepalive = 1e99999999999999999999999",
        b"x = " + b"[" * 20_000,
    ],
)
def test_a_file_that_is_not_toml(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bridge.toml"
    path.write_bytes(content)
    caught = error({"config": str(path)})
    assert caught.exit_code == CONFIGURATION
    assert str(path) in str(caught)


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ("prot = 80", "prot"),
        ("[server]\nport = 80", "server"),
        ("created-timeout = 1", "created-timeout"),
        ('config = "other.toml"', "config"),
        ('"a\\nb" = 1', "a\nb"),
    ],
)
def test_an_unknown_key_is_named_even_if_a_flag_was_given(
    tmp_path: Path, content: str, key: str
) -> None:
    path = write(tmp_path, content)
    caught = error({"config": path, "port": "80"})
    assert caught.exit_code == CONFIGURATION
    assert repr(key) in str(caught)
    assert path in str(caught)


def test_an_empty_file_is_fine(tmp_path: Path) -> None:
    assert effective(load({"config": write(tmp_path, "")}, {})) == PROMISED


def test_sizes_are_whole_bytes() -> None:
    assert SIZE.read("1") == 1
    assert SIZE.read(2) == 2


# ------------------------------------------------------------------ header names


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("X-Tenant", ("x-tenant",)),
        ("a,b", ("a", "b")),
        (" a , B  c ", ("a", "b", "c")),
        ("a,A", ("a",)),
        ("none", ()),
    ],
)
def test_header_names_as_text(text: str, names: tuple[str, ...]) -> None:
    assert load({"forward_headers": text}, {}).core["forward_headers"] == names
    assert load({}, {"BRIDGECORE_FORWARD_HEADERS": text}).core["forward_headers"] == names


def test_header_names_in_a_file(tmp_path: Path) -> None:
    for text, names in (
        ('["X-Tenant", "api-key"]', ("x-tenant", "api-key")),
        ("[]", ()),
        ('"a, b"', ("a", "b")),
    ):
        path = write(tmp_path, f"forward_headers = {text}")
        assert load({"config": path}, {}).core["forward_headers"] == names


@pytest.mark.parametrize("text", ["", ",", "a:b", "cookie", "x-tenant,Host", "Sec-WebSocket-Key"])
def test_bad_header_names_are_refused(text: str) -> None:
    assert error({"forward_headers": text}).exit_code == USAGE
    found = error(environ={"BRIDGECORE_FORWARD_HEADERS": text})
    assert found.exit_code == CONFIGURATION
    assert str(found).startswith("BRIDGECORE_FORWARD_HEADERS: ")


@pytest.mark.parametrize("text", ["7", "[7]", '["a b"]', '["cookie"]', "{a = 1}"])
def test_bad_header_names_in_a_file_are_refused(text: str, tmp_path: Path) -> None:
    path = write(tmp_path, f"forward_headers = {text}")
    assert error({"config": path}).exit_code == CONFIGURATION


def test_a_configuration_checks_header_names() -> None:
    config = Config(upstream=URL, forward_headers=("X-Tenant",))
    assert config.forward_headers == ("x-tenant",)
    with pytest.raises(ValueError, match=r"forward_headers: 'Cookie' names a header"):
        Config(upstream=URL, forward_headers=("Cookie",))


# ------------------------------------------------------------------ what is passed through


@pytest.mark.parametrize(
    ("text", "paths"),
    [
        ("api", PASSED_PATHS),
        ("none", ()),
        ("models", ("models",)),
        ("models, chat/completions", ("models", "chat/completions")),
        ("models models", ("models",)),
    ],
)
def test_paths_as_text(text: str, paths: tuple[str, ...]) -> None:
    assert load({"pass_through": text}, {}).core["pass_through"] == paths
    assert load({}, {"BRIDGECORE_PASS_THROUGH": text}).core["pass_through"] == paths


def test_paths_as_a_list(tmp_path: Path) -> None:
    path = write(tmp_path, 'pass_through = ["models", "fine_tuning/jobs"]')
    assert load({"config": path}, {}).core["pass_through"] == ("models", "fine_tuning/jobs")


@pytest.mark.parametrize(
    "text", ["", ",", "/models", "models/", "a//b", "..", "a/%2e%2e", "a%2Fb", "v1/models", "a?b"]
)
def test_paths_that_could_be_read_in_two_ways_are_refused(text: str) -> None:
    assert error({"pass_through": text}).exit_code == USAGE


@pytest.mark.parametrize("value", ["7", "[7]", '["/models"]'])
def test_what_is_no_list_of_paths_is_refused(value: str, tmp_path: Path) -> None:
    path = write(tmp_path, f"pass_through = {value}")
    assert error({"config": path}).exit_code == CONFIGURATION


@pytest.mark.parametrize(
    "url", ["wss://a/v1", "https://", "https://k@a/v1", "https://a/v1#x", "https://a:0/v1", "a/v1"]
)
def test_a_base_that_cannot_be_used_is_refused(url: str) -> None:
    assert error({"upstream_http": url}).exit_code == CONFIGURATION


def test_a_base_with_a_secret_is_not_repeated() -> None:
    assert "hunter2" not in str(error({"upstream_http": "https://me:hunter2@a/v1"}))


@pytest.mark.parametrize(
    ("upstream", "base"),
    [
        ("wss://api.openai.com/v1/responses", "https://api.openai.com/v1"),
        ("ws://127.0.0.1:81/v1/responses/", "http://127.0.0.1:81/v1"),
        (
            "wss://a.openai.azure.com/openai/v1/responses?api-version=preview",
            "https://a.openai.azure.com/openai/v1?api-version=preview",
        ),
        ("wss://[::1]:444/responses", "https://[::1]:444"),
        ("ws://a/other", "http://a/other"),
        ("ws://a", "http://a/"),
    ],
)
def test_the_base_follows_from_the_upstream(upstream: str, base: str) -> None:
    config = Config(upstream=UpstreamUrl.parse(upstream))
    assert config.http_base == HttpUrl.parse(base)
    other = HttpUrl.parse("http://other/v1")
    assert attrs.evolve(config, upstream_http=other).http_base == other


def test_wrong_values_of_a_config_are_refused() -> None:
    for value in ("models", 7, ["/models"]):
        with pytest.raises(ConfigError, match="pass_through"):
            Config(upstream=URL, pass_through=value)  # type: ignore[arg-type]  # what is tested
    with pytest.raises(ConfigError, match=r"HttpUrl\.parse"):
        Config(upstream=URL, upstream_http="https://a/v1")  # type: ignore[arg-type]  # as above
