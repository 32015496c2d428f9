"""``python -m streamproc.cli``."""

from streamproc.cli import main

main(prog_name="streamproc")
