"""How a page reads, in numbers: its sentences, its semicolons, and what a native engineer would not write.

In: taking the text of a Markdown page apart. Not in: which pages are measured and the bounds (`test_documents`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_NOT_TEXT = (
    r"<!-- (\w+): begin -->.*?<!-- \1: end -->",  # made from the settings
    r"<!--.*?-->",
    r"^```.*?^```",
    r"^<p>.*?</p>",  # an equation
    r"^#.*?$",
    r"^--8<--.*?$",
    r"!\[[^\]]*\]\([^)]*\)",
)
_STILTED = (
    r"\b(?:is whole|are whole|told apart|tells? apart|comes? to|gone on with|goes? on with|mend(?:s|ed)?|"
    r"look(?:s|ed)? through|looked over|measured along)\b"
)
_NO_LEADING_ZERO = r"(?<![\w.)\]])\.\d+"


@dataclass(frozen=True)
class Prose:
    """`sentences`: number of words of each sentence in paragraphs and lists; `text`: these and the cells of tables."""

    sentences: list[int]
    text: str

    @property
    def mean(self) -> float:
        """Words in a sentence."""
        return sum(self.sentences) / len(self.sentences)

    @property
    def long(self) -> float:
        """Share of the sentences with more than 30 words."""
        return sum(count > 30 for count in self.sentences) / len(self.sentences)

    @property
    def semicolons(self) -> float:
        """Per thousand words."""
        return 1000 * self.text.count(";") / len(self.text.split())

    @property
    def stilted(self) -> list[str]:
        """Phrases that are translated rather than written, and numbers without their zero."""
        return re.findall(_STILTED, self.text, re.IGNORECASE) + re.findall(_NO_LEADING_ZERO, self.text)


def prose(page: str) -> Prose:
    """Of Markdown. A list item, a cell and a paragraph each end a sentence."""
    for pattern in _NOT_TEXT:
        page = re.sub(pattern, "", page, flags=re.DOTALL | re.MULTILINE)
    page = re.sub(r"\]\([^)]*\)", "]", page)  # where a link leads
    page = re.sub(r"`[^`]*`", "code", page)
    lines, cells = [], []
    for line in page.splitlines():
        (cells if line.lstrip().startswith("|") else lines).append(line)
    blocks = re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) )", "\n".join(lines))
    text = [re.sub(r"^\s*(?:[-*]|\d+\.) ", "", " ".join(block.split())) for block in blocks]
    sentences = [sentence for block in text for sentence in re.split(r"(?<=[.!?])[*)\"]*\s+", block)]
    counts = [len(sentence.split()) for sentence in sentences]
    return Prose([count for count in counts if count > 2], "\n".join([*text, *cells]).replace("|", " "))
