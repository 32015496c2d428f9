"""``streamproc doctor``: what keeps a project from working, and what to do."""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import asdict
from pathlib import Path

import click
from rich.console import Console

from streamproc.cli.findings import Finding, Level, fault, ok
from streamproc.dev.words import counted
from streamproc.errors import ConfigurationError
from streamproc.project import Project

_MARKS = {Level.OK: "[green]✓[/]", Level.NOTE: "[yellow]![/]", Level.FAULT: "[red]✗[/]"}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "--seconds",
    type=click.FloatRange(0.5, 60),
    default=2.0,
    show_default=True,
    help="How long to look whether records flow.",
)
def doctor(as_json: bool, seconds: float) -> None:
    """Check the servers, topics and folders that the project needs; exit 1 on faults."""
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # findings say it better
    findings = examine(seconds)
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        _print(findings)
    sys.exit(any(finding.level is Level.FAULT for finding in findings))


def examine(seconds: float) -> list[Finding]:
    """Check everything that can be checked; ``seconds`` of it for the flow of records."""
    # Imported here: they load Kafka and Redis clients, which other commands don't need.
    from streamproc.cli import check_kafka, check_place, check_redis

    versions = check_place.check_versions()
    try:
        project = Project()
    except ConfigurationError as exc:
        advice = "Correct the settings; `streamproc config --markdown` lists all there are."
        return [versions, fault("settings", str(exc), advice)]
    settings = project.settings
    try:
        security = settings.broker_security.client_options()
    except ConfigurationError as exc:  # the project doesn't load then, either
        kafka = [fault("settings", str(exc), "Correct the setting that it names.")]
    else:
        loads, facts = check_place.check_project(project)
        sources = sorted({*settings.topics, *(facts.sources if facts else ())})
        checks = check_kafka.run(settings, security, sources, settings.dead_letter_topic, seconds)
        kafka = [ok("settings", f"of {project.folder}"), loads, *checks]
    return [
        versions,
        *kafka,
        *check_redis.check_redis(settings),
        check_place.check_data_folder(Path(project.app_options()["datadir"])),
    ]


def _print(findings: list[Finding]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    for finding in findings:
        console.print(_MARKS[finding.level], end=" ")
        console.print(f"{finding.check}: {finding.message}", markup=False)
        if finding.advice:
            console.print(f"    → {finding.advice}", markup=False)
    faults = sum(finding.level is Level.FAULT for finding in findings)
    console.print(f"{counted(faults, 'fault')}." if faults else "No faults.")
