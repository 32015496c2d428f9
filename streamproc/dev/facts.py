"""What a project consists of: its app id and its topics, found out in a process of its own.

The project's modules are imported there and not here, so they meet no event loop, settings
or module names of ours, and a project that doesn't import shows its traceback.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from streamproc.errors import ConfigurationError


@dataclass(frozen=True)
class ProjectFacts:
    """What is needed to run and watch a project."""

    #: App id, which is the consumer group too.
    group: str
    #: Topics that agents read.
    sources: list[str]
    #: Other topics that the project's modules name: what agents write.
    outputs: list[str]
    #: Topic of rejected records, if there is one.
    dead_letters: str | None
    #: Whether what it sends is in transactions.
    exactly_once: bool

    @property
    def topics(self) -> list[str]:
        """All of them."""
        return [
            *self.sources,
            *self.outputs,
            *([self.dead_letters] if self.dead_letters else []),
        ]


def read_facts(folder: Path, app: str, env: Mapping[str, str]) -> ProjectFacts:
    """Import the project in ``folder`` as a worker would (``faust -A app``), and look.

    Raises:
        ConfigurationError: It can't be imported; the message ends with its traceback.
    """
    done = subprocess.run(
        [sys.executable, "-m", "streamproc.dev.facts", app],
        cwd=folder,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ConfigurationError(f"The app {app!r} in {folder} does not load:\n{done.stderr}")
    return ProjectFacts(**json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Print the facts of the app named on the command line as one line of JSON."""
    from faust.cli.base import find_app

    print(json.dumps(asdict(_facts_of(find_app(sys.argv[1])))))


def _facts_of(app: Any) -> ProjectFacts:
    sources = {name for topic in _agent_topics(app) for name in topic.topics}
    named = {name for topic in _module_topics(Path.cwd()) for name in topic.topics}
    dead_letters = getattr(getattr(app, "dead_letters", None), "topic", None)
    return ProjectFacts(
        group=app.conf.id,
        sources=sorted(sources),
        outputs=sorted(named - sources - {dead_letters}),
        dead_letters=dead_letters,
        exactly_once=getattr(app, "exactly_once", False),
    )


def _agent_topics(app: Any) -> Iterator[Any]:
    from faust.types import TopicT

    for agent in app.agents.values():
        channel = agent.channel
        if isinstance(channel, TopicT) and not channel.internal:
            yield channel


def _module_topics(folder: Path) -> Iterator[Any]:
    from faust.types import TopicT

    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if file and folder in Path(file).parents:
            yield from (value for value in vars(module).values() if isinstance(value, TopicT))


if __name__ == "__main__":
    main()
