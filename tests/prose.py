"""The prose linter of `make check`: proselint with a few rules of this project's own, on the pages and on docstrings.

`python tests/prose.py` checks all files of the repository, `python tests/prose.py FILE ...` those named.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from proselint.checks import __register__ as peers
from proselint.config import DEFAULT, Config
from proselint.registry import CheckRegistry
from proselint.registry.checks import Check, CheckResult
from proselint.tools import LintFile

ROOT = Path(__file__).parents[1]
MOST_WORDS = 40
SPELLED = {"NTK": "neural tangent kernel", "NNGP": "neural network Gaussian process"}


class Rule(NamedTuple):
    """A pattern that prose must not have, what to write instead, and a text that breaks it."""

    name: str
    pattern: str
    advice: str
    example: str


RULES = (
    Rule("riddle", r"\bin any memory\b", "write: within any memory budget", "It runs in any memory."),
    Rule("riddle", r"\b(named and )?made anew\b|\banew\b", "write: regenerated, or: again", "Tiles are made anew."),
    Rule("riddle", r"\bthis very\b", "write: this exact", "A run of this very configuration exists."),
    Rule(
        "riddle",
        r"MORE THAN THIS MACHINE HAS",
        "write: exceeds this machine's memory",
        "8 GB, MORE THAN THIS MACHINE HAS",
    ),
    Rule("riddle", r"\bone's own\b|\boneself\b", "write: your own, yourself", "Weights of one's own are copied."),
    Rule(
        "riddle",
        r"\b([Ww]ho ends first|as walls|asks? to be started again)\b",
        "say it plainly",
        "Who ends first wins.",
    ),
    Rule("inverted", r"^Of\s", "put the subject first", "Of `cntk` the depth counts convolutions."),
    Rule("cleft", r"^(What|Whatever)\s[^?:]*\.$", "put the subject first", "What decides is the recurrence."),
    Rule(
        "inverted",
        r"^(Refused|Printed|Kept|Shown|Given|Stored|Drawn|Left)\s(are|is|by)\b",
        "put the subject first",
        "Refused are variances.",
    ),
    Rule("inverted", r"^Not\s[^.]*\b(are|is)\b[^,]*\.$", "put the subject first", "Not among them are pools."),
    Rule("fragment", r"^(Measured|Tried|Compared)\b[^.]{0,40}[:(]", "write a sentence", "Measured on one core: 3 s."),
    Rule("latin", r"\b(e\.g\.|i\.e\.|cf\.|viz\.|etc\.|resp\.|w\.r\.t\.)", "write it in English", "Use it, e.g. here."),
    Rule(
        "filler",
        r"\b(simply|obviously|of course|basically|actually|clearly|needless to say|as far as one can tell)\b",
        "leave it out",
        "It is simply a sum.",
    ),
    Rule("filler", r"\bjust\s(a|an|as|like|the|use|call|run)\b", "leave it out", "It is just a sum."),
    Rule("weasel", r"\b(quite|fairly|arguably|somewhat|various|hopefully)\b", "be exact", "It is quite fast."),
    Rule(
        "archaic",
        r"\b(whence|thereof|therein|wherein|thereby|whosoever|hitherto)\b",
        "use a common word",
        "See therein.",
    ),
    Rule("terse", r"\b[Ll]ikewise\b", "say it again in full", "columns: likewise."),
    Rule(
        "terse",
        r"^(Nothing|Never|Always|Everything|Unknown|The same|The rest|For people)\.$",
        "say what the function returns",
        "Never.",
    ),
    Rule("dashes", "—.*—|\\s\u2013\\s.*\\s\u2013\\s", "split the sentence", "It — as said — runs."),
)


def _blank(match: re.Match[str]) -> str:
    return re.sub(r"[^\n]", " ", match.group(0))


def _name(match: re.Match[str]) -> str:
    return "_" * len(match.group(0)) if "\n" not in match.group(0) else _blank(match)


def prose_of_page(text: str) -> str:
    """The words of a page in Markdown at their places: code, links' targets and addresses are blanked."""
    for pattern in (r"^```.*?^```", r"<!--.*?-->", r"^    \S.*$", r"^---\n.*?^---\n"):
        text = re.sub(pattern, _blank, text, flags=re.DOTALL | re.MULTILINE if "*?" in pattern else re.MULTILINE)
    text = re.sub(r"``.+?``|`[^`]+`", _name, text)
    return re.sub(r"(?<=\])\([^)\s]*\)|https?://\S+", _blank, text)


def prose_of_code(text: str) -> str:
    """The docstrings of a module at their places, without the names in backquotes and what is indented beyond them."""
    lines = text.splitlines(keepends=True)
    kept = [re.sub(r"[^\n]", " ", line) for line in lines]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            first, last = node.lineno - 1, node.end_lineno or node.lineno
            kept[first:last] = lines[first:last]
    return re.sub(
        r"``.+?``|`[^`]+`", _name, re.sub(r"```.*?```", _blank, "".join(kept), flags=re.DOTALL).replace('"""', "   ")
    )


def sentences(text: str) -> Iterator[tuple[int, str]]:
    """Position and text of each sentence; paragraphs, headings, items of lists and cells of tables begin new ones."""
    text = re.sub(r"^(#.*)\n(?=\S)", r"\1\f", text, flags=re.MULTILINE)  # a heading is a sentence; positions stay
    for block in re.finditer(r"(?:(?!\f|\n\s*\n|\n\s*(?:[-*|#]|\d+\.)\s?|\|).)+", text, re.DOTALL):
        for part in re.finditer(r"\S.*?(?:[.?!](?=[\s*)]|$)|$)", block.group(0), re.DOTALL):
            yield block.start() + part.start(), re.sub(r"\s+", " ", part.group(0)).lstrip("-*|#> ").strip()


def _rules(text: str, check: Check) -> Iterator[CheckResult]:
    for start, sentence in sentences(text):
        for rule in RULES:  # proselint joins patterns of its own kind; these look at one sentence each
            if found := re.search(rule.pattern, sentence):
                message = f"'{found.group(0)[:60]}': {rule.advice}"
                yield CheckResult(f"{check.path}.{rule.name}", message, (start, start + 1), None)


def _lengths(text: str, check: Check) -> Iterator[CheckResult]:
    for start, sentence in sentences(text):
        words = len(re.findall(r"[A-Za-z_][\w'-]*", sentence))
        if words > MOST_WORDS:
            yield CheckResult(
                check.path, f"{words} words: split the sentence '{sentence[:50]}...'", (start, start + 1), None
            )


def _acronyms(text: str, check: Check) -> Iterator[CheckResult]:
    text = re.sub(r"^#.*$", _blank, text, flags=re.MULTILINE)
    for short, full in SPELLED.items():
        first = re.search(rf"\b{short}\b", text)
        if first and not re.search(full.replace(" ", r"\s+"), text[: first.end() + len(full) + 25], re.IGNORECASE):
            yield CheckResult(check.path, f"spell out {short} ({full}) at its first mention", first.span(), None)


OWN = (
    Check(_rules, path="ntkpipe.rules"),
    Check(_lengths, path="ntkpipe.long_sentence"),
    Check(_acronyms, path="ntkpipe.acronyms"),
)
CHECKS = DEFAULT["checks"] | {"ntkpipe": True, "typography": False, "lexical_illusions": False, "dates_times": False}
IN_CODE = {"ntkpipe.rules": True}
# A docstring may be a name, such as "What a layer costs." or "Of one tile." below an attribute.
NOT_IN_CODE = {"ntkpipe.rules.cleft", "ntkpipe.rules.inverted"}
# Packages whose docstrings are full sentences; the rules about terse ones hold there.
IN_FULL = ("ntkpipe/kernels/layers/", "ntkpipe/propagation/", "ntkpipe/stax/")
EXEMPT = {"docs/settings.md": {"ntkpipe.acronyms"}, "docs/api.md": {"ntkpipe.acronyms"}}


def faults(text: str, name: str, *, code: bool = False) -> list[str]:
    """The faults of a text, as `name:line: rule: message`."""
    registry = CheckRegistry()
    if not registry.checks:
        registry.register_many((*peers, *OWN))
    prose = prose_of_code(text) if code else prose_of_page(text)
    config = Config(max_errors=1000, checks=IN_CODE if code else CHECKS)
    skipped = NOT_IN_CODE if code else EXEMPT.get(name, set())
    if code and not name.startswith(IN_FULL):
        skipped = skipped | {"ntkpipe.rules.terse"}
    if not prose.strip():
        return []
    file = LintFile(name, prose)
    found = [one.check_result for one in file.lint(config) if one.check_result.check_path not in skipped]
    lines = [file.content.count("\n", 0, one.span[0]) for one in found]
    return [f"{name}:{line}: {one.check_path}: {one.message}" for line, one in zip(lines, found, strict=True)]


def files() -> list[Path]:
    """All files with prose for readers: pages, and the docstrings of the package."""
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "changes").glob("*.md")]
    return sorted(pages) + sorted([*(ROOT / "ntkpipe").rglob("*.py"), *(ROOT / "jobs").glob("*.py")])


def main(names: list[str]) -> int:
    """Print the faults of the files named, or of all; 1 if there are any."""
    found = [
        fault
        for path in ([Path(name).resolve() for name in names] or files())
        for fault in faults(path.read_text(), path.relative_to(ROOT).as_posix(), code=path.suffix == ".py")
    ]
    print(*found, sep="\n")
    print(f"{len(found)} faults" if found else "prose: no faults", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
