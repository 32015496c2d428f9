"""The page about joins: its code blocks are a test module that passes."""

import re
import subprocess
import sys
import textwrap
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "joins.md"


def test_the_code_of_the_page_runs(tmp_path):
    blocks = re.findall(r"^ *```python\n(.*?)^ *```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
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
    assert f"{len(re.findall('^def test_', module.read_text(), re.MULTILINE))} passed" in run.stdout


def test_its_pictures_are_there():
    pictures = re.findall(r"\]\((\S+\.svg)\)", PAGE.read_text())
    assert len(pictures) == 2
    for name in pictures:
        assert (PAGE.parent / name).read_text().startswith("<svg ")
