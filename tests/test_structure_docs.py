"""The examples of docs/structure print what they claim."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest

PAGES = sorted((Path(__file__).parents[1] / "docs" / "structure").glob("*.md"))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_page_prints_what_it_claims(path: Path) -> None:
    text, scope = path.read_text(), {}
    blocks = list(re.finditer(r"```python\n(.*?)```\n\n```text\n(.*?)```", text, re.DOTALL))
    assert len(blocks) == text.count("```python") > 0
    for block in blocks:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(block[1], path.name, "exec"), scope)  # noqa: S102 our own document
        assert printed.getvalue() == block[2]
