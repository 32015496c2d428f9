"""The command line where no server is needed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from streamproc.cli import main
from streamproc.cli.init import create_project
from streamproc.errors import ConfigurationError
from streamproc.settings.catalog import CATALOG


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "shop"
    create_project(folder)
    monkeypatch.chdir(folder)
    return folder


def run(*arguments: str, **environ: str) -> Result:
    return CliRunner().invoke(main, arguments, env=environ)


def test_all_commands_are_there() -> None:
    result = run("--help")
    assert result.exit_code == 0
    for command in ("init", "dev", "replay", "config", "doctor"):
        assert f"  {command} " in result.output


def test_config_tells_values_and_origins(project: Path) -> None:
    result = run(
        "config", "--json", STREAMPROC_BATCH_SIZE="7", STREAMPROC_REDIS_PASSWORD="hidden-word"
    )
    settings = json.loads(result.output)["settings"]
    assert settings["batch_size"] == {"value": 7, "from": "environment STREAMPROC_BATCH_SIZE"}
    assert settings["name"]["value"] == "shop"
    assert settings["name"]["from"].startswith("settings.py:")
    assert settings["redis"]["from"].startswith("config.yaml:")
    assert settings["session_timeout"]["from"] == "default"
    assert "hidden-word" not in result.output


def test_config_is_a_table(project: Path) -> None:
    result = run("config", COLUMNS="200", STREAMPROC_REDIS="redis://:hidden-word@cache/0")
    assert result.exit_code == 0
    assert "environment STREAMPROC_REDIS" in result.output
    assert "error_handling.retries" in result.output
    assert "hidden-word" not in result.output


def test_a_pipe_gets_a_line_a_setting(project: Path) -> None:
    long = "kafka://" + ",".join(f"broker-{n}.example.com:9092" for n in range(9))
    result = run("config", COLUMNS="40", STREAMPROC_BROKER_LIST=long)
    lines = {line.split()[0]: line for line in result.output.splitlines()}
    assert len(lines) == len(result.output.splitlines()) == len(CATALOG) + 1
    assert long in lines["broker_list"]


@pytest.mark.parametrize("command", [("config",), ("dev",), ("replay", "sample_data.csv")])
def test_wrong_settings_are_one_message(project: Path, command: tuple[str, ...]) -> None:
    (project / "config.yaml").write_text("redsi: x\n")
    result = run(*command)
    assert result.exit_code == 1
    assert "config.yaml:1: there is no setting redsi; did you mean redis?" in result.output
    assert "Traceback" not in result.output


def test_a_folder_that_is_no_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("dev")
    assert result.exit_code == 1
    assert "streamproc init NAME" in result.output


def test_init_overwrites_nothing(project: Path) -> None:
    (project / "settings.py").write_text("mine = 1\n")
    result = run("init", str(project))
    assert result.exit_code == 1
    assert "nothing was written" in result.output
    assert (project / "settings.py").read_text() == "mine = 1\n"


@pytest.mark.parametrize("name", ["---", "..."])
def test_init_needs_a_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigurationError, match="letters and digits"):
        create_project(tmp_path / name)
