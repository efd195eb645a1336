"""
The repository's own shape: sizes, layout, links, and nothing that belongs to one machine.

Each rule is a function from text to faults, so that a control can show it finds one.
"""

import ast
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODULE_LINES_MAX = 500
FUNCTION_LINES_MAX = 60  # without the docstring
TOP_LEVEL = {
    ".ci",
    ".gitignore",
    "CHANGELOG.md",
    "LICENSE",
    "README.md",
    "client",
    "docker",
    "proto",
    "pyproject.toml",
    "requirements",
    "run",
    "server",
    "tests",
}
NOT_PACKAGES = ("proto", "client", "server", "tests", "docker", ".ci")
GENERATED = re.compile(r"client/tidewire/v1/|.*_pb2(_grpc)?\.pyi?$")
BINARY_SUFFIXES = {".binpb", ".png", ".woff2", ".ico"}
CHANGE_KINDS = ["Security", "Removed", "Deprecated", "Added", "Changed", "Fixed"]

# Written in two parts, or this file would be its own fault.
# Absolute paths of somebody's working folders; /data, /etc, /run and the like belong to everybody.
MACHINE_PATH = re.compile(r"(?<![\w.>/])/(?:work|root|tmp|home/\w+|Users/\w+)/\w+")
URL = re.compile(r"(?:https?|git\+ssh)://([\w.\-]+)(:\d+)?(/[^\s\"'<>)`]*)?")
REGISTRY = re.compile(r"pypi|registry|npm|nexus|artifact|devpi|mirror|goproxy|proxy\.golang")
PUBLIC_REGISTRY = re.compile(r"pypi\.org|.+\.example")  # .example is nobody's (RFC 2606)


def tracked(*arguments: str) -> list[Path]:
    """Return the repository's files that exist, as absolute paths."""
    command = ["git", "ls-files", "-z", *arguments]
    if not shutil.which("git"):
        pytest.skip("git is not installed, so nobody knows what belongs to the repository")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout (an unpacked sdist): the tree may hold anything")
    names = (name for name in done.stdout.decode().split("\0") if name)
    return [ROOT / name for name in names if (ROOT / name).is_file()]


def files() -> list[Path]:
    """Return what is committed and what could be: ignored files are nobody's business."""
    return tracked("--cached", "--others", "--exclude-standard")


def relative(path: Path) -> str:
    """Return the name that messages show."""
    return path.relative_to(ROOT).as_posix()


def modules() -> list[Path]:
    """Return the hand-written Python files."""
    found = [path for path in files() if path.suffix == ".py" or path == ROOT / "run"]
    return [path for path in found if not GENERATED.match(relative(path))]


def long_functions(source: str) -> Iterator[str]:
    """Yield functions that are longer than the limit, without their docstrings."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        first = node.body[0]
        documented = ast.get_docstring(node, clean=False) is not None
        docstring = (first.end_lineno or 0) - first.lineno + 1 if documented else 0
        lines = (node.end_lineno or 0) - node.lineno + 1 - docstring
        if lines > FUNCTION_LINES_MAX:
            yield f"{node.name} has {lines} lines"


def undocumented_tests(source: str) -> Iterator[str]:
    """Yield tests without a docstring."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if node.name.startswith("test_") and not ast.get_docstring(node):
            yield node.name


def machine_traces(text: str) -> Iterator[str]:
    """Yield paths of one machine and addresses of package registries other than the public one."""
    for match in MACHINE_PATH.finditer(text):
        yield match[0]
    for match in URL.finditer(text):
        host, path = match[1].lower(), match[3] or ""
        is_registry = REGISTRY.search(host) or "/simple/" in f"{path}/"
        if is_registry and not PUBLIC_REGISTRY.fullmatch(host):
            yield match[0]


def headings(text: str) -> set[str]:
    """Return the anchors of a Markdown page as GitHub makes them."""
    anchors: set[str] = set()
    for title in re.findall(r"^#{1,6}\s+(.+?)\s*#*$", without_code(text), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).lower()
        anchors.add(re.sub(r"[^\w\- ]", "", plain).replace(" ", "-"))
    return anchors


def without_code(text: str) -> str:
    """Drop fenced blocks: they are no prose."""
    return re.sub(r"^(```|~~~).*?^\1", "", text, flags=re.MULTILINE | re.DOTALL)


def broken_links(page: Path, text: str) -> Iterator[str]:
    """Yield relative links of a page that lead nowhere."""
    prose = re.sub(r"`[^`\n]*`", "", without_code(text))
    for link in re.findall(r"\]\(\s*<?([^)\s>]+)>?[^)]*\)", prose):
        if re.match(r"[a-z][a-z0-9+.\-]*:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists():
            yield link
        elif anchor and target.suffix == ".md":
            known = headings(text if target == page else target.read_text("utf-8"))
            if anchor not in known:
                yield link


def changelog_faults(text: str) -> Iterator[str]:
    """Yield departures from Keep a Changelog, in the order of sections that we keep."""
    versions = re.findall(r"^## (.+)$", text, re.MULTILINE)
    if versions[:1] != ["[Unreleased]"]:
        yield f"the first version must be [Unreleased], not {versions[:1]}"
    for version in versions[1:]:
        if not re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", version):
            yield f"{version} is not `[x.y.z] - yyyy-mm-dd`"
    for section in re.split(r"^## .+$", text, flags=re.MULTILINE)[1:]:
        kinds = re.findall(r"^### (.+)$", section, re.MULTILINE)
        if kinds != [kind for kind in CHANGE_KINDS if kind in kinds]:
            yield f"{kinds} is not in the order {CHANGE_KINDS}"
        for line in section.splitlines():
            if line and not re.match(r"### |- \S|  \S|\[[^\]]+\]: ", line):
                yield f"neither heading nor entry: {line}"


def test_modules_are_short() -> None:
    """No hand-written module is longer than the limit."""
    counted = {relative(path): len(path.read_text("utf-8").splitlines()) for path in modules()}

    assert {} == {name: n for name, n in counted.items() if n > MODULE_LINES_MAX}


def test_functions_are_short() -> None:
    """No function is longer than the limit, its docstring apart."""
    found = {relative(p): list(long_functions(p.read_text("utf-8"))) for p in modules()}

    assert {} == {name: faults for name, faults in found.items() if faults}


def test_long_functions_are_found() -> None:
    """Control: one line over the limit is a fault, a long docstring is not."""
    body = "    pass\n" * FUNCTION_LINES_MAX
    docstring = '    """\n' + "    words\n" * FUNCTION_LINES_MAX + '    """\n'

    assert ["f has 61 lines"] == list(long_functions(f"def f():\n{body}"))
    assert [] == list(long_functions(f"def f():\n{docstring}    pass\n"))


def test_every_test_says_what_it_proves() -> None:
    """Every test function has a docstring."""
    tests = [path for path in modules() if path.is_relative_to(ROOT / "tests")]
    found = {relative(p): list(undocumented_tests(p.read_text("utf-8"))) for p in tests}

    assert {} == {name: faults for name, faults in found.items() if faults}


@pytest.mark.parametrize("folder", NOT_PACKAGES)
def test_roots_are_no_packages(folder: str) -> None:
    """An __init__.py there would shadow proto-plus, or hide what stands beside it."""
    assert not (ROOT / folder / "__init__.py").exists()


@pytest.mark.parametrize("package", ["client/tidewire", "server/tidewire_server"])
def test_packages_are_typed(package: str) -> None:
    """Both packages tell type checkers that they carry types."""
    assert (ROOT / package / "__init__.py").exists()
    assert (ROOT / package / "py.typed").exists()


def test_every_folder_of_modules_is_a_package() -> None:
    """A folder without __init__.py would import from a checkout and be absent from the types."""
    roots = (ROOT / "client", ROOT / "server")
    folders = {path.parent for path in files() if path.suffix == ".py"}
    inside = {f for f in folders if any(f != root and f.is_relative_to(root) for root in roots)}

    assert [] == sorted(relative(f) for f in inside if not (f / "__init__.py").exists())


def test_nothing_of_one_machine_is_in_the_repository() -> None:
    """No file names a path of the machine it was made on, or a private package registry."""
    found = {}
    for path in files():
        if path.suffix not in BINARY_SUFFIXES:
            found[relative(path)] = sorted(set(machine_traces(path.read_text("utf-8"))))

    assert {} == {name: traces for name, traces in found.items() if traces}


@pytest.mark.parametrize(
    "text",
    [
        "\x2fwork/project",
        "\x2ftmp/scratch",
        "\x2fhome/someone/project",
        "https:\x2f/registry.test/x",
        "https:\x2f/pypi.test/simple",
        "https:\x2f/files.test:8080/simple/",
    ],
)
def test_traces_of_one_machine_are_found(text: str) -> None:
    """Control: each kind of trace is a fault; the public index is none."""
    assert 1 == len(list(machine_traces(f"see {text} there")))
    assert [] == list(machine_traces("https://pypi.org/simple and /network/x, /etc/y"))


def test_links_in_pages_lead_somewhere() -> None:
    """Every relative link of every Markdown page, with its anchor, resolves."""
    pages = [path for path in files() if path.suffix == ".md"]
    found = {relative(page): list(broken_links(page, page.read_text("utf-8"))) for page in pages}

    assert {} == {name: links for name, links in found.items() if links}


def test_broken_links_are_found(tmp_path: Path) -> None:
    """Control: a missing page and a missing anchor are faults; code and addresses are no links."""
    page = tmp_path / "page.md"
    text = "# One title\n[a](no.md) [b](#no) [c](#one-title) `[d](no.md)` [e](https://x.example)\n"
    page.write_text(text, "utf-8")

    assert ["no.md", "#no"] == list(broken_links(page, text))


def test_changelog_keeps_its_shape() -> None:
    """The changelog is Keep a Changelog with our order of sections."""
    assert [] == list(changelog_faults((ROOT / "CHANGELOG.md").read_text("utf-8")))


def test_changelog_faults_are_found() -> None:
    """Control: a wrong first version, a wrong order and a stray line are faults."""
    text = "# Changelog\n\n## 1.0\n\n### Fixed\n\n- One.\n\n### Added\n\nstray\n"

    assert 3 == len(list(changelog_faults(text)))


def test_the_root_stays_bare() -> None:
    """Nothing stands at the top of the repository but what was agreed."""
    entries = {path.relative_to(ROOT).parts[0] for path in tracked("--cached")}

    assert set() == entries - TOP_LEVEL
