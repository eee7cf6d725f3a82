"""Documents: links and paths that exist, a short README, one version."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import rainfusion_trt

ROOT = Path(__file__).resolve().parents[2]
_PLACES = ("*.md", "docs/*.md", "engines/*.md", "plugins/**/*.md", "rainfusion_trt/**/*.md")
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix() for place in _PLACES for path in ROOT.glob(place)
)
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
NUMBERS = re.compile(r"### .*: (\d+) files$")


def prose(document: str) -> str:
    """A document without its code."""
    return FENCE.sub("", (ROOT / document).read_text(encoding="utf-8"))


def anchors(path: Path) -> set[str]:
    """Anchors of the headings of a document, as GitHub names them."""
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def broken_links(document: str) -> Iterator[str]:
    path = ROOT / document
    for link in LINK.findall(prose(document)):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        if not target.exists() or (anchor and anchor not in anchors(target)):
            yield link


def test_all_documents_are_seen():
    assert {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/results.md"} <= set(DOCUMENTS)
    assert {"engines/README.md", "plugins/README.md"} <= set(DOCUMENTS)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_resolve(document):
    assert list(broken_links(document)) == []


def test_broken_links_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr("test_documents.ROOT", tmp_path)
    (tmp_path / "a.md").write_text("# A `b` c\n[x](#a-b-c) [y](#no) [z](no.md) [w](https://x.y)\n")
    assert list(broken_links("a.md")) == ["#no", "no.md"]


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 200


def contributing_lists() -> list[tuple[int, list[str]]]:
    """For each kind of change, the number in its title and the paths of its table."""
    found = []
    for section in re.split(r"^(?=#{2,3} )", prose("CONTRIBUTING.md"), flags=re.MULTILINE):
        if title := NUMBERS.match(section.splitlines()[0]):
            rows = [line for line in section.splitlines() if line.startswith("| `")]
            found.append((int(title[1]), [row.split("`")[1] for row in rows]))
    return found


def exists(path: str) -> bool:
    """Whether a path exists; ``<...>`` stands for any name."""
    return any(ROOT.glob(re.sub("<[^>]*>", "*", path.rstrip("/"))))


def test_lists_of_contributing_are_true():
    lists = contributing_lists()
    assert len(lists) == 5
    for number, paths in lists:
        assert len(paths) == number
        assert [path for path in paths if not exists(path)] == []


def test_paths_in_the_text_of_contributing_exist():
    roots = {path.name for path in ROOT.iterdir()}
    paths = [
        word
        for word in re.findall(r"`([^`\s]+)`", prose("CONTRIBUTING.md"))
        if "/" in word and word.split("/")[0] in roots
    ]
    assert len(paths) > 40
    assert [path for path in paths if not exists(path)] == []


def test_a_missing_path_is_noticed():
    assert exists("rainfusion_trt/models/<family>.py") and exists("plugins/kernels/sm<NN>/")
    assert not exists("rainfusion_trt/modelz/<family>.py") and not exists("docs/nothing.md")


def test_one_version():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    version = rainfusion_trt.__version__
    # Packaging and CMake take it from there.
    assert re.findall(r"^version = (.+)$", project, re.MULTILINE) == [
        '{ attr = "rainfusion_trt.__version__" }'
    ]
    assert 'REGEX "^__version__ = "' in (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    titles = re.findall(r"^## \[(.+?)\](.*)$", changes, re.MULTILINE)
    assert titles[0] == ("Unreleased", "")
    assert titles[1][0] == version
    assert re.fullmatch(r" - \d{4}-\d\d-\d\d", titles[1][1])


def test_hooks_use_pinned_tools():
    """Versions are said once, in the extra ``test``."""
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (extra,) = re.findall(r"^test = \[$(.*?)^\]$", project, re.MULTILINE | re.DOTALL)
    pinned = set(re.findall(r'"([\w-]+)==[\d.]+"', extra))
    assert [repo["repo"] for repo in hooks["repos"]] == ["local"]
    tools = {hook["entry"].split()[0] for hook in hooks["repos"][0]["hooks"]}
    assert {"ruff", "clang-format", "mypy"} <= tools & pinned
