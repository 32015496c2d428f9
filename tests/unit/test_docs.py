"""Pages of the documentation: the code blocks of each are a test module that passes."""

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from streamproc.testing import TestDriver

DOCS = Path(__file__).parents[2] / "docs"
#: Pages, and how many pictures each has.
PAGES = {"errors": 0, "flows": 0, "joins": 2, "tables": 1, "testing": 0, "windows": 5}


@pytest.mark.parametrize("name", PAGES)
def test_the_code_of_the_page_runs(name, tmp_path):
    page = (DOCS / f"{name}.md").read_text()
    blocks = re.findall(r"^ *```python\n(.*?)^ *```", page, re.MULTILINE | re.DOTALL)
    module = tmp_path / "test_page.py"
    module.write_text("\n\n".join(map(textwrap.dedent, blocks)))
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(module)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    tests = len(re.findall("^def test_", module.read_text(), re.MULTILINE))
    assert tests
    assert f"{tests} passed" in run.stdout


def test_the_exactly_once_sinks_of_the_page_count():
    page = (DOCS / "sinks.md").read_text()
    (block,) = re.findall(
        r"^## Exactly once\n+```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL
    )
    code = {"__name__": "shop"}
    exec(block, code)
    with TestDriver(code["app"]) as driver:
        driver.topic("orders").pipe(None, code["Order"]("nz", 2.5))
        (revenue,) = driver.sink(code["revenue"]).commands
        assert revenue == ("INCRBYFLOAT", "revenue:nz", 2.5)
        assert {name for name, *_ in driver.sink(code["latest"]).commands} == {"RPUSH", "LTRIM"}


@pytest.mark.parametrize(("name", "count"), PAGES.items())
def test_its_pictures_are_there(name, count):
    pictures = re.findall(r"\]\((\S+\.svg)\)", (DOCS / f"{name}.md").read_text())
    assert len(pictures) == count
    for picture in pictures:
        assert (DOCS / picture).read_text().startswith("<svg ")
