"""A page of docs: written by hand but for blocks from `<!-- generated: NAME -->` to `<!-- end -->`."""

import re
from pathlib import Path
from typing import NamedTuple

BLOCK = re.compile(r"<!-- generated: ([a-z]+) -->\n.*?\n<!-- end -->", re.DOTALL)
MISSING = "*Not written yet.*"


class Page(NamedTuple):
    path: Path
    blocks: dict[str, str]  # what is generated: name -> Markdown
    headings: tuple[str, ...] = ()  # that the text written by hand must have; none: it is free

    def fresh(self) -> str:
        """The page with its blocks as they must be; begun if there is none. Raises ValueError if it has others."""
        if not self.path.exists():
            return self._begun()
        text = self.path.read_text(encoding="utf-8")
        if (found := BLOCK.findall(text)) != list(self.blocks):
            raise ValueError(f"{self.path.name} has the blocks {found}; it must have {list(self.blocks)}")
        return BLOCK.sub(lambda match: _block(match[1], self.blocks[match[1]]), text)

    def stale(self) -> bool:
        """Whether it is missing or is not what it must be."""
        try:
            return not self.path.exists() or self.path.read_text(encoding="utf-8") != self.fresh()
        except ValueError:
            return True

    def written(self) -> bool:
        """Whether text stands under all headings, and under no others."""
        text = BLOCK.sub("", self.path.read_text(encoding="utf-8")) if self.path.exists() else ""
        before, *parts = re.split(r"^## (.+)$", text, flags=re.MULTILINE)
        told = all(part.strip() not in ("", MISSING) for part in parts[1::2])
        return not self.headings or (not before.strip() and tuple(parts[::2]) == self.headings and told)

    def write(self) -> None:
        text = self.fresh()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(text, encoding="utf-8")

    def _begun(self) -> str:
        """The first block, the headings with a note that text is missing, and the other blocks."""
        first, *others = (_block(name, content) for name, content in self.blocks.items())
        sections = [part for heading in self.headings for part in (f"## {heading}", MISSING)]
        return "\n\n".join([first, *sections, *others]) + "\n"


def _block(name: str, content: str) -> str:
    return f"<!-- generated: {name} -->\n\n{content}\n\n<!-- end -->"
