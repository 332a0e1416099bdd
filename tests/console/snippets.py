"""Commands of the README and the guide, as they stand there.

A fenced block of `sh` or `python` is run unless a comment right before it says otherwise:

    <!-- not run: why -->                        nothing of the block can run here
    <!-- run without: kvasir chat; kvasir serve: why -->   but for lines that begin so
    <!-- run seldom: why -->                     with the long matrices, by `make test-all`
    <!-- expect: text -->                        it runs, and its output has this text
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "guide"
LAST = GUIDE / "drills.md"  # it kills
PAGES = (ROOT / "README.md", *sorted(GUIDE.glob("*.md"), key=lambda page: (page == LAST, page)))

_BLOCK = re.compile(
    r"(?:^<!-- (?P<marker>[^\n]*) -->\n)?^```(?P<language>sh|python)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_MARKER = re.compile(
    r"not run: (?P<not_run>.+)|run seldom: (?P<seldom>.+)|run without: (?P<without>.+?): .+"
    r"|expect: (?P<expect>.+)"
)


@dataclass(frozen=True)
class Snippet:
    page: str
    line: int
    language: str
    text: str
    not_run: str = ""  # why
    seldom: str = ""  # why
    without: tuple[str, ...] = ()
    expect: str = ""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    def commands(self) -> list[str]:
        """That are run one after the other; a block that has more than plain lines is one."""
        lines = [line.partition("  #")[0].rstrip() for line in self.text.splitlines()]
        plain = not any(re.search(r"\\$|[|;]|^\s|=\$|^\w+=", line) for line in lines)
        if self.language != "sh" or not plain:
            return [self.text]
        return [
            line
            for line in lines
            if line and not line.startswith("#") and not line.startswith(self.without or "\0")
        ]


def snippets() -> Iterator[Snippet]:
    """Of all pages. Raises ValueError for a marker that means nothing."""
    for page in PAGES:
        text = page.read_text("utf-8")
        for found in _BLOCK.finditer(text):
            line = text.count("\n", 0, found.start()) + 1
            yield _read(f"{page.relative_to(ROOT)}", line, found)


def _read(page: str, line: int, found: re.Match[str]) -> Snippet:
    language, text = found["language"], found["text"]
    if found["marker"] is None:
        return Snippet(page, line, language, text)
    marker = _MARKER.fullmatch(found["marker"])
    if marker is None:
        raise ValueError(f"{page}:{line}: no marker: {found['marker']}")
    without = tuple(each.strip() for each in (marker["without"] or "").split(";") if each.strip())
    return Snippet(
        page, line, language, text, marker["not_run"] or "", marker["seldom"] or "", without,
        marker["expect"] or "",
    )  # fmt: skip
