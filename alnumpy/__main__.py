"""``python -m alnumpy``."""

from .cli import run

run()
