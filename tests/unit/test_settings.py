"""Settings: which place wins, what is refused, and that secrets stay secret."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from streamproc.errors import ConfigurationError
from streamproc.settings import Loaded, Secret, Settings, load, load_settings
from streamproc.settings.catalog import CATALOG, markdown_table

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def write(folder: Path, **files: str) -> None:
    names = {"yaml": "config.yaml", "env": ".env", "module": "settings.py"}
    for name, text in files.items():
        (folder / names[name]).write_text(text)


def problems(folder: Path, environ: dict[str, str] | None = None, **arguments: object) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load(folder, environ=environ or {}, **arguments)
    return str(caught.value)


def test_defaults(folder: Path) -> None:
    settings = load_settings(folder, environ={})
    assert settings == Settings()
    assert settings.name == "streamproc"
    assert settings.brokers == ["127.0.0.1:9092"]
    assert settings.error_handling.retries == 3


def test_each_place_wins_over_the_next(folder: Path) -> None:
    write(folder, module="batch_size = 5\npartitions = 5\n")
    found: list[tuple[int, str]] = []

    def look(environ: dict[str, str], **arguments: object) -> None:
        loaded = load(folder, environ=environ, **arguments)
        found.append((loaded.settings.batch_size, loaded.origins["batch_size"]))
        assert loaded.settings.partitions == 5

    look({})
    write(folder, yaml="batch_size: 4\n")
    look({})
    write(folder, env="STREAMPROC_BATCH_SIZE=3\n")
    look({})
    look({"STREAMPROC_BATCH_SIZE": "2"})
    look({"STREAMPROC_BATCH_SIZE": "2"}, batch_size=1)
    assert found == [
        (5, "settings.py:1"),
        (4, "config.yaml:1"),
        (3, ".env:1"),
        (2, "environment STREAMPROC_BATCH_SIZE"),
        (1, "argument batch_size"),
    ]


def test_the_config_of_the_five_line_form(folder: Path) -> None:
    write(
        folder,
        yaml="broker_list: 'a:9092,b:9092'\ntopic: readings\n"
        "redis:\n  host: cache\n  port: 6380\n  db: 2\n",
    )
    settings = load_settings(folder, environ={})
    assert settings.brokers == ["a:9092", "b:9092"]
    assert settings.topics == ["readings"]
    assert settings.redis_url == "redis://cache:6380/2"


@pytest.mark.parametrize(
    "written", ["[a:9092, b:9092]", "a:9092,b:9092", "kafka://a:9092;kafka://b:9092"]
)
def test_ways_to_write_brokers(folder: Path, written: str) -> None:
    write(folder, yaml=f"broker_list: {written}\n")
    settings = load_settings(folder, environ={})
    assert settings.brokers == ["a:9092", "b:9092"]
    assert settings.broker_urls == ["kafka://a:9092", "kafka://b:9092"]


def test_nested_settings_in_the_environment(folder: Path) -> None:
    environ = {
        "STREAMPROC_ERROR_HANDLING__RETRIES": "7",
        "STREAMPROC_ERROR_HANDLING__DEAD_LETTERS": "false",
        "STREAMPROC_SAMPLE__FILE": "x.csv",
    }
    settings = load_settings(folder, environ=environ)
    assert settings.error_handling.retries == 7
    assert settings.dead_letter_topic is None
    assert settings.sample.file == "x.csv"


@pytest.mark.parametrize(
    ("key", "meant"),
    [("brokr_list", "broker_list"), ("bootstrap_servers", "broker_list"), ("topics", "topic")],
)
def test_unknown_settings_name_the_nearest(folder: Path, key: str, meant: str) -> None:
    write(folder, yaml=f"name: a\n\n{key}: x\n")
    assert re.search(rf"config.yaml:3: .*{key}; did you mean {meant}\?", problems(folder))


@pytest.mark.parametrize(
    ("setting", "values"),
    [
        ("processing_guarantee", "at_least_once or exactly_once"),
        ("log_level", "debug or error or info or warning"),
        ("broker_sasl_mechanism", "OAUTHBEARER or PLAIN or SCRAM-SHA-256 or SCRAM-SHA-512"),
    ],
)
def test_a_wrong_choice_is_told_what_there_is(folder: Path, setting: str, values: str) -> None:
    name = f"STREAMPROC_{setting.upper()}"
    wanted = f"{setting} = 'twice': Expected {values}"
    assert problems(folder, {name: "twice"}).endswith(f"environment {name}: {wanted}")
    assert problems(folder, **{setting: "twice"}).endswith(f"argument {setting}: {wanted}")
    write(folder, yaml=f"{setting}: twice\n")
    assert problems(folder).endswith(f"config.yaml:1: {wanted}")


def test_all_problems_are_told_at_once(folder: Path) -> None:
    write(
        folder,
        yaml="batch_size: many\nerror_handling:\n  retires: 3\nredis: ${NOWHERE}\n",
        module='\ncommit_interval = "soon"\n',
        env="STREAMPROC_TOPIK=a\n",
    )
    message = problems(folder, {"STREAMPROC_WEB_PORT": "99999"})
    for part in (
        "6 problems",
        "config.yaml:1: batch_size = 'many': Expected int",
        "config.yaml:3: there is no setting retires in error_handling; did you mean retries?",
        "config.yaml:4: redis: the environment has no NOWHERE",
        "settings.py:2: commit_interval = 'soon': Expected float",
        ".env:1: STREAMPROC_TOPIK is no setting; did you mean STREAMPROC_TOPIC?",
        "environment STREAMPROC_WEB_PORT: web_port = '99999': Expected int <= 65535",
    ):
        assert part in message


def test_variables_in_config_yaml(folder: Path) -> None:
    write(folder, yaml="topic: ${PLACE}-readings\nbatch_size: ${SIZE:-100}\n", env="PLACE=oslo\n")
    settings = load_settings(folder, environ={})
    assert settings.topic == "oslo-readings"
    assert settings.batch_size == 100
    assert load_settings(folder, environ={"PLACE": "bergen"}).topic == "bergen-readings"


@pytest.mark.parametrize(
    ("text", "line"), [("a: [1\nb: 2\n", 2), ("- 1\n", 1), ("name: a\nname: b\n", 2)]
)
def test_broken_yaml(folder: Path, text: str, line: int) -> None:
    write(folder, yaml=text)
    assert f"config.yaml:{line}: " in problems(folder)


def test_broken_settings_py(folder: Path) -> None:
    write(folder, module="name = 'a'\n1 / 0\n")
    assert "settings.py:2: ZeroDivisionError" in problems(folder)
    write(folder, module="name = \n")
    assert "settings.py:1: " in problems(folder)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("broker_list", "kafka://user:word@a:9092"),
        ("broker_list", "a:port"),
        ("redis", "http://a"),
        ("serialization", "jsom"),
        ("name", "a b"),
        ("batch_size", 0),
        ("log_level", "loud"),
    ],
)
def test_values_that_mean_nothing(folder: Path, name: str, value: object) -> None:
    assert f"argument {name}: {name} = " in problems(folder, **{name: value})


def everything_shown(loaded: Loaded) -> str:
    return f"{loaded} {loaded.settings!r} {loaded.settings} {loaded.warnings}"


def test_secrets_are_never_shown(folder: Path) -> None:
    environ = {
        "STREAMPROC_REDIS_PASSWORD": "w0rd-1",
        "STREAMPROC_BROKER_PASSWORD": "w0rd-2",
        "STREAMPROC_REDIS": "redis://user@cache/0",
    }
    loaded = load(folder, environ=environ)
    assert "w0rd" not in everything_shown(loaded)
    assert loaded.settings.broker_password == Secret("w0rd-2")
    assert loaded.settings.redis_url == "redis://user:w0rd-1@cache/0"
    in_url = load(folder, environ={"STREAMPROC_REDIS": "redis://:w0rd-3@cache/0"})
    assert "w0rd" not in everything_shown(in_url)
    message = problems(folder, {"STREAMPROC_REDIS": "http://:w0rd-4@cache/0"})
    assert "w0rd" not in message


def test_a_password_in_config_yaml_is_warned_of(folder: Path) -> None:
    write(folder, yaml="redis: redis://:w0rd@cache/0\nbroker_password: w0rd\n")
    loaded = load(folder, environ={})
    assert len(loaded.warnings) == 2
    assert "config.yaml:1" in loaded.warnings[0] + loaded.warnings[1]
    assert "w0rd" not in everything_shown(loaded)
    write(folder, yaml="broker_password: ${WORD}\n")
    assert load(folder, environ={"WORD": "w0rd"}).warnings == []


def test_every_setting_is_documented() -> None:
    assert all(setting.description for setting in CATALOG.values())
    assert markdown_table() in (ROOT / "docs" / "settings.md").read_text()


def test_a_token_function_in_settings_py(folder: Path) -> None:
    (folder / "settings.py").write_text(
        "def broker_token():\n    return _word()\n\n\ndef _word():\n    return 'tok'\n"
    )
    loaded = load(folder, environ={})
    token = loaded.settings.broker_token
    assert token is not None
    assert token.target() == "tok"
    assert repr(token) == "broker_token"
    assert loaded.origins["broker_token"] == "settings.py:1"
    options = loaded.settings.broker_security.client_options()
    assert options["sasl_mechanism"] == "OAUTHBEARER"


def test_a_token_function_by_name(folder: Path) -> None:
    environ = {"STREAMPROC_BROKER_TOKEN": "tokens:get"}
    assert load_settings(folder, environ=environ).broker_security.token == "tokens:get"
    assert "as module:function" in problems(folder, {"STREAMPROC_BROKER_TOKEN": "not a name"})


def test_files_are_looked_for_in_the_project(folder: Path) -> None:
    environ = {"STREAMPROC_BROKER_CA_FILE": "ca.pem", "STREAMPROC_REDIS_CA_FILE": "/etc/ca.pem"}
    settings = load_settings(folder, environ=environ)
    assert settings.broker_security.ca_file == str(folder / "ca.pem")
    assert settings.redis_ca_file == "/etc/ca.pem"


@pytest.mark.parametrize(
    ("values", "url"),
    [
        ({}, "redis://h:1/2"),
        ({"username": "ann", "password": "p@ss"}, "redis://ann:p%40ss@h:1/2"),
        ({"password": "w0rd"}, "redis://:w0rd@h:1/2"),
        ({"tls": "true"}, "rediss://h:1/2?ssl_check_hostname=true"),
        (
            {"ca_file": "/ca", "certificate_file": "/c", "key_password": "w&d"},
            "rediss://h:1/2?ssl_ca_certs=/ca&ssl_certfile=/c&ssl_keyfile=/c&ssl_password=w%26d"
            "&ssl_check_hostname=true",
        ),
        (
            {"ca_file": "/ca", "check_hostname": "false"},
            "rediss://h:1/2?ssl_ca_certs=/ca&ssl_check_hostname=false",
        ),
    ],
)
def test_redis_urls(folder: Path, values: dict[str, str], url: str) -> None:
    environ = {f"STREAMPROC_REDIS_{name.upper()}": value for name, value in values.items()}
    environ["STREAMPROC_REDIS"] = "redis://h:1/2"
    assert load_settings(folder, environ=environ).redis_url == url


def test_what_a_redis_url_says_itself_wins(folder: Path) -> None:
    environ = {"STREAMPROC_REDIS": "rediss://bob:b0b@h/0?ssl_ca_certs=/mine"}
    environ |= {"STREAMPROC_REDIS_USERNAME": "ann", "STREAMPROC_REDIS_PASSWORD": "w0rd"}
    environ |= {"STREAMPROC_REDIS_CA_FILE": "/other"}
    assert load_settings(folder, environ=environ).redis_url == (
        "rediss://bob:b0b@h/0?ssl_ca_certs=/mine&ssl_check_hostname=true"
    )
