"""Settings: their sources, their rules, and how a wrong one is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from eventproc.errors import ConfigError
from eventproc.settings import Settings, parse_partitions
from eventproc.settings_load import (
    default_text,
    flag_name,
    is_secret,
    load_settings,
    settings_markdown,
    settings_table,
)


def written(folder: Path, text: str) -> Path:
    path = folder / "eventproc.toml"
    path.write_text(text)
    return path


def problems(flags: dict[str, object] | None = None, config: Path | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_settings(flags, config)
    assert caught.value.exit_code == 3
    return str(caught.value).splitlines()


# --- sources ----------------------------------------------------------------------------------------


def test_without_any_source_there_are_the_defaults() -> None:
    settings = load_settings()
    assert settings.kafka_bootstrap_servers == "localhost:9092"
    assert settings.gap_timeout_ms == 5000
    assert settings.dlq_topic == "events.dlq"


def test_flags_go_before_environment_before_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = written(tmp_path, "gap_timeout_ms = 1\nmax_attempts = 1\nbatch_max = 1\n")
    monkeypatch.setenv("EVENTPROC_GAP_TIMEOUT_MS", "2")
    monkeypatch.setenv("EVENTPROC_MAX_ATTEMPTS", "2")
    settings = load_settings({"gap_timeout_ms": "3"}, config)
    assert (settings.gap_timeout_ms, settings.max_attempts, settings.batch_max) == (3, 2, 1)


def test_the_file_may_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVENTPROC_CONFIG", str(written(tmp_path, "key_prefix = 'a:'")))
    assert load_settings().key_prefix == "a:"
    other = tmp_path / "other.toml"
    other.write_text("key_prefix = 'b:'")
    assert load_settings(config=other).key_prefix == "b:"


@pytest.mark.parametrize(
    "text",
    [
        "[kafka_config]\n'linger.ms' = 5\n'enable.idempotence' = true",
        "[kafka_config]\nlinger.ms = 5\nenable.idempotence = true",
        'kafka_config = \'{"linger.ms": 5, "enable.idempotence": true}\'',
    ],
)
def test_librdkafka_properties_become_text(tmp_path: Path, text: str) -> None:
    settings = load_settings(config=written(tmp_path, text))
    assert settings.kafka_config == {"linger.ms": "5", "enable.idempotence": "true"}


def test_librdkafka_properties_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVENTPROC_KAFKA_CONFIG", '{"security.protocol": "SSL"}')
    assert load_settings().kafka_client()["security.protocol"] == "SSL"


# --- what is wrong ----------------------------------------------------------------------------------


def test_a_wrong_value_names_key_value_source_and_rule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = written(tmp_path, "locking = 'none'")
    monkeypatch.setenv("EVENTPROC_MAX_ATTEMPTS", "0")
    lines = problems({"gap_timeout_ms": "soon"}, config)
    assert len(lines) == 3
    assert (
        lines[0] == "gap_timeout_ms='soon' (from --gap-timeout-ms): should be a valid integer,"
        " unable to parse string as an integer"
    )
    assert lines[1] == "max_attempts='0' (from EVENTPROC_MAX_ATTEMPTS): should be greater than 0"
    assert lines[2] == f"locking='none' (from {config}): should be 'event' or 'partition'"


def test_a_misspelt_key_in_the_file_is_told_with_the_nearest(tmp_path: Path) -> None:
    config = written(tmp_path, "gap_timout_ms = 5")
    assert problems(config=config) == [
        f"unknown setting 'gap_timout_ms' in {config}: did you mean gap_timeout_ms?"
    ]


def test_a_misspelt_variable_is_told_with_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVENTPROC_KAFKA_TOPICS", "a")
    assert problems() == ["unknown variable EVENTPROC_KAFKA_TOPICS: did you mean EVENTPROC_KAFKA_TOPIC?"]


def test_a_variable_like_nothing_points_to_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVENTPROC_XYZZY", "1")
    assert problems() == ["unknown variable EVENTPROC_XYZZY: `eventproc settings` lists what there is"]


def test_unknown_names_and_wrong_values_are_told_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVENTPROC_KAFKA_TOPICS", "a")
    assert len(problems({"max_attempts": "0"})) == 2


def test_the_switches_of_tests_are_no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVENTPROC_TEST_PLAN", "x")
    monkeypatch.setenv("EVENTPROC_CRASH_AT", "x")
    assert load_settings() == Settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("EVENTPROC_REDIS_URL", "http://user:hunter2@host"),
        ("EVENTPROC_KAFKA_CONFIG", '{"sasl.password": "hunter2"'),
        ("EVENTPROC_KAFKA_CONFIG", '["hunter2"]'),
    ],
)
def test_a_secret_is_not_repeated(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    (line,) = problems()
    assert line.startswith(f"{name.removeprefix('EVENTPROC_').lower()} (from {name}): should ")
    assert "hunter2" not in line


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "none.toml"
    assert problems(config=path) == [f"config file {path}: No such file or directory"]


@pytest.mark.parametrize("text", [b"gap_timeout_ms: 5", b"a = \xff"])
def test_a_file_that_is_no_toml_is_named(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(text)
    (line,) = problems(config=path)
    assert line.startswith(f"config file {path} is not TOML: ")


@pytest.mark.parametrize(
    ("flags", "start"),
    [
        ({"event_ttl_s": "10", "dedup_ttl_s": "9"}, "dedup_ttl_s=9: should be at least event_ttl_s=10"),
        ({"worker_memory_max_bytes": "1000"}, "worker_memory_max_bytes=1000: should be at least 268435456"),
        (
            {"retry_backoff_ms": "9", "retry_backoff_max_ms": "8"},
            "retry_backoff_max_ms=8: should be at least",
        ),
        ({"restart_backoff_ms": "9", "restart_backoff_max_ms": "8"}, "restart_backoff_max_ms=8: should be"),
        ({"kafka_dlq_topic": "events"}, "kafka_dlq_topic='events': should differ from kafka_topic"),
        ({"kafka_topic": "a b"}, "kafka_topic='a b' (from --kafka-topic): should be 1 to 249 letters"),
        ({"kafka_topic": ""}, "kafka_topic='' (from --kafka-topic): should be"),
        ({"kafka_group_id": " "}, "kafka_group_id=' ' (from --kafka-group-id): should not be empty"),
        (
            {"kafka_bootstrap_servers": "a:b"},
            "kafka_bootstrap_servers='a:b' (from --kafka-bootstrap-servers):",
        ),
        ({"kafka_bootstrap_servers": "a:1,"}, "kafka_bootstrap_servers='a:1,' "),
        ({"kafka_bootstrap_servers": "kafka-1"}, "kafka_bootstrap_servers='kafka-1' "),
        ({"kafka_bootstrap_servers": "a:1,a:65536"}, "kafka_bootstrap_servers='a:1,a:65536' "),
        ({"handler": "nothing"}, "handler='nothing' (from --handler): should be package.module:callable"),
        ({"partitions": "1,x"}, "partitions='1,x' (from --partitions): should be all, or a list"),
        ({"partitions": "5-3"}, "partitions='5-3' (from --partitions): should not run backwards"),
        ({"monitor_port": "65536"}, "monitor_port='65536' (from --monitor-port): should be less than"),
    ],
)
def test_rules(flags: dict[str, object], start: str) -> None:
    (line,) = problems(flags)
    assert line.startswith(start)


@pytest.mark.parametrize(
    ("url", "rule"),
    [
        ("redis://host/x", "should name the database by its number"),
        ("redis://host/-1", "should name the database by its number"),
        ("redis://host/1/2", "should name the database by its number"),
        ("redis://host?db=x", "should name the database by its number"),
        ("redis://host/0?foo=1", "should have no parameter 'foo'"),
        ("redis://host/0?connection_class=x", "should have no parameter"),
        ("rediss://host/0?ssl_cert_reqs=maybe", "should have ssl_cert_reqs none, optional or required"),
        ("redis://host:99999/0", "should be a URL: Port out of range"),
        ("redis://[::1/0", "should be a URL: Invalid IPv6 URL"),
        ("unix://", "should name the socket"),
    ],
)
def test_a_redis_url_that_cannot_be_meant(monkeypatch: pytest.MonkeyPatch, url: str, rule: str) -> None:
    monkeypatch.setenv("EVENTPROC_REDIS_URL", url)
    (line,) = problems()
    assert line.startswith(f"redis_url (from EVENTPROC_REDIS_URL): {rule}")


@pytest.mark.parametrize(
    "url",
    [
        *("redis://host", "redis://host/", "redis://u:p@host:1/15", "redis://[::1]:1/0?db=3&client_name=x"),
        *(
            "unix:///run/redis.sock",
            "unix://u:p@/run/redis.sock?db=2",
            "rediss://host/0?ssl_ca_certs=/ca.pem",
        ),
    ],
)
def test_redis_urls(url: str) -> None:
    assert load_settings({"redis_url": url}).redis_url.get_secret_value() == url


@pytest.mark.parametrize("key", ["max_attempts", "monitor_port", "worker_nice", "topic_replication_factor"])
def test_true_is_no_number(tmp_path: Path, key: str) -> None:
    config = written(tmp_path, f"{key} = true")
    assert problems(config=config) == [f"{key}=True (from {config}): should be a number"]


def test_several_broken_rules_are_a_line_each() -> None:
    flags: dict[str, object] = {"event_ttl_s": "10", "dedup_ttl_s": "9", "kafka_dlq_topic": "events"}
    assert [line.split("=")[0] for line in problems(flags)] == ["dedup_ttl_s", "kafka_dlq_topic"]


@pytest.mark.parametrize("servers", ["a:1", "a:1,b:2", "[::1]:9092", "10.0.0.1:1", "SSL://kafka-1.x:9093"])
def test_bootstrap_servers(servers: str) -> None:
    assert load_settings({"kafka_bootstrap_servers": servers}).kafka_bootstrap_servers == servers


# --- partitions -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [("all", None), ("0", [0]), ("3,1", [1, 3]), ("0, 2-4,3", [0, 2, 3, 4]), ("7-7", [7])],
)
def test_partitions_are_read(text: str, expected: list[int] | None) -> None:
    assert parse_partitions(text) == expected


@pytest.mark.parametrize("text", ["", ",", "a", "1-", "-1", "2-1", "1;2"])
def test_partitions_that_make_no_sense(text: str) -> None:
    with pytest.raises(ValueError, match="should"):
        parse_partitions(text)


def test_partitions_of_a_topic() -> None:
    assert Settings().partition_list(3) == [0, 1, 2]
    assert Settings(partitions="1").partition_list(3) == [1]
    with pytest.raises(ConfigError, match=r"partitions='1-3': topic events has 3 partitions, 0 to 2"):
        Settings(partitions="1-3").partition_list(3)


# --- children and docs ------------------------------------------------------------------------------


def test_a_child_gets_everything_and_needs_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVENTPROC_REDIS_URL", "redis://:hunter2@host/1")
    monkeypatch.setenv("EVENTPROC_MAX_ATTEMPTS", "7")
    settings = load_settings({"gap_timeout_ms": "8"})
    values = settings.revealed()
    monkeypatch.delenv("EVENTPROC_REDIS_URL")
    monkeypatch.setenv("EVENTPROC_MAX_ATTEMPTS", "9")
    assert Settings(**values) == settings
    assert values["redis_url"] == "redis://:hunter2@host/1"


def test_secrets_do_not_show() -> None:
    settings = load_settings(
        {"redis_url": "redis://:hunter2@host", "kafka_config": '{"sasl.password": "hunter2"}'}
    )
    assert "hunter2" not in repr(settings)
    assert "hunter2" not in str(settings)
    secret = [name for name, field in Settings.model_fields.items() if is_secret(field)]
    assert secret == ["kafka_config", "redis_url"]


def test_the_table_has_every_setting_with_its_help() -> None:
    rows = settings_table()
    assert [row[0] for row in rows] == list(Settings.model_fields)
    assert all(meaning for *_, meaning in rows)
    markdown = settings_markdown().splitlines()
    assert len(markdown) == len(rows) + 2
    assert "| `locking` | event, partition | `event` |" in settings_markdown()
    assert all(line.count(" | ") == 3 for line in markdown[2:])


def test_names_that_carry_a_unit_say_it_in_their_help() -> None:
    units = {"_ms": "ms", "_s": "s", "_bytes": "bytes"}
    for name, field in Settings.model_fields.items():
        for suffix, unit in units.items():
            if name.endswith(suffix):
                words = (field.description or "").replace(",", " ").replace(";", " ").split()
                assert unit in words, name


def test_defaults_are_shown_as_they_would_be_set() -> None:
    fields = Settings.model_fields
    assert default_text(fields["create_topics"]) == "true"
    assert default_text(fields["redis_url"]) == "redis://127.0.0.1:6379/0"
    assert default_text(fields["kafka_config"]) == ""
    assert flag_name("gap_timeout_ms") == "--gap-timeout-ms"
