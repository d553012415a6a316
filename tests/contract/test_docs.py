"""The docs tell the truth: what they link, list and have people type exists."""

import ast
import importlib.util
import re
import shlex
from collections.abc import Iterator
from itertools import count, takewhile
from pathlib import Path

import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase

from common import metrics
from common.contracts.dead_letter_kinds import KINDS, Remedy
from common.settings import example
from tools.launcher.arguments import parser
from tools.launcher.ports import BASE_PORTS

ROOT = Path(__file__).resolve().parents[2]

SERVICES = ("frontend", "queue_receiver", "sender", "database_service", "report_generator")

PAGES = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not any(part.startswith(".") or part == "node_modules" for part in path.parts)
)

LEVELS = {
    "debug": "debug",
    "info": "info",
    "warning": "warning",
    "error": "error",
    "exception": "error",
    "critical": "critical",
}
"""Method of a logger to the level of its lines."""

LINK = re.compile(
    r"""\]\(([^)\s]+)(?:\s+"[^"]*")?\)|(?:src|srcset|href)="([^"]+)"|^\[[^\]]+\]:\s+(\S+)""",
    re.MULTILINE,
)
"""``[text](target "title")``, HTML, and ``[name]: target``."""


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The anchors of a page as GitHub makes them: of headings, and those that HTML names."""
    text = without_code(page.read_text())
    found = set(re.findall(r'<\w+[^>]* (?:id|name)="([^"]+)"', text))
    for heading in re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE):
        name = re.sub(r"[^\w\- ]", "", plain(heading).lower()).replace(" ", "-")
        again = (f"{name}-{number}" for number in count(1))
        found.add(name if name not in found else next(each for each in again if each not in found))
    return found


def has_anchor(file: Path, anchor: str) -> bool:
    """Whether a page has the heading, or a source the line (``L12``, ``L12-L20``)."""
    if file.suffix == ".md":
        return anchor in anchors(file)
    lines = re.fullmatch(r"L(\d+)(?:-L(\d+))?", anchor)
    length = len(file.read_text().splitlines())
    return lines is not None and int(lines[2] or lines[1]) <= length


def rows(page: str, heading: str) -> Iterator[list[str]]:
    """The cells of the table rows below a heading, up to the next one of its kind."""
    text = (ROOT / page).read_text()
    section = text.partition(f"\n{heading}\n")[2]
    level = heading.partition(" ")[0]
    for line in section.partition(f"\n{level} ")[0].splitlines():
        if line.startswith("|"):
            yield [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_somewhere(page: Path) -> None:
    for match in LINK.finditer(without_code(page.read_text())):
        target = match[1] or match[2] or match[3]
        if re.match(r"https?:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{target} does not exist"
        if anchor:
            assert has_anchor(file, anchor), f"{target}: no such heading or line"


def test_anchors_are_those_that_github_makes(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        '# What `it` does\n## Twice\n## Twice\n<a id="here"></a>\n## [A link](x.md), too\n'
        "```\n# a comment\n```\n"
    )
    source = tmp_path / "source.py"
    source.write_text("one\ntwo\n")

    assert anchors(page) == {"what-it-does", "twice", "twice-1", "here", "a-link-too"}
    assert [has_anchor(source, anchor) for anchor in ("L2", "L1-L2", "L3", "twice")] == [
        True,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_picture_has_a_text_for_those_who_do_not_see_it(page: Path) -> None:
    text = without_code(page.read_text())
    texts = [
        *re.findall(r"!\[([^\]]*)\]\(", text),
        *(
            found[1] if (found := re.search(r'alt="([^"]*)"', tag)) else ""
            for tag in re.findall(r"<img\b[^>]*>", text)
        ),
    ]

    assert all(texts)


def test_every_command_of_the_docs_is_one_of_the_launcher() -> None:
    found = set()
    for page in PAGES:
        found |= set(re.findall(r"\./userstream((?: [\w./-]+)*)", page.read_text()))
    commands = {command for command in found if command}

    assert {" demo", " test"} <= commands
    for command in commands:
        parser().parse_args(shlex.split(command))


def test_every_module_that_the_docs_run_exists() -> None:
    for page in PAGES:
        for module in re.findall(r"python -m ([\w.]+)", page.read_text()):
            assert importlib.util.find_spec(module), f"{name_of(page)} runs {module}"


def test_every_address_of_the_docs_is_one_where_something_listens() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"].values()
    ports = (port for part in compose for port in part.get("ports", ()))
    published = {port.rsplit(":-")[1].split("}")[0] for port in ports}
    known = {str(port) for port in BASE_PORTS.values()} | published

    for page in PAGES:
        used = re.findall(r"(?:localhost|127\.0\.0\.1):(\d+)", page.read_text())
        assert set(used) <= known, name_of(page)


def test_the_tree_of_the_readme_shows_what_is_there() -> None:
    text = (ROOT / "README.md").read_text().partition("## Where things are")[2]
    tree = text.partition("```\n")[2].partition("```")[0]
    shown = {line.split()[0] for line in tree.splitlines()}

    for entry in shown:
        path = ROOT / entry
        assert path.is_dir() if entry.endswith("/") else path.is_file(), entry
    packages = {f"{path.parent.name}/" for path in ROOT.glob("*/__init__.py")}
    assert packages <= shown


DECISIONS = sorted((ROOT / "docs/adr").glob("[0-9]*.md"))

DECISION = re.compile(
    r"# \d+\. (?P<title>.+)\n\n"
    r"\* \*\*Status\*\*: (?P<status>(?:Accepted|Superseded).*)\n"
    r"\* \*\*Date\*\*: (?P<date>\d{4}-\d\d-\d\d)\n\n"
)


def test_every_decision_is_in_the_list_as_its_head_says() -> None:
    listed = re.findall(
        r"\]\((\d{4}-[\w-]+\.md)\) \| (.+) \| (.+) \| (.+) \|",
        (ROOT / "docs/adr/README.md").read_text(),
    )

    heads = [(path.name, DECISION.match(path.read_text())) for path in DECISIONS]
    assert listed == [(name, *(head.groups() if head else ())) for name, head in heads]


@pytest.mark.parametrize("page", DECISIONS, ids=name_of)
def test_a_decision_has_the_usual_parts(page: Path) -> None:
    assert re.findall(r"^## (.+)$", page.read_text(), flags=re.MULTILINE) == [
        "Context",
        "Decision",
        "Alternatives considered",
        "Consequences",
    ]


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_says_what_comes_in_what_goes_out_and_what_to_do(service: str) -> None:
    text = (ROOT / service / "README.md").read_text()

    for expected in ("**In**", "**Out**", "## Settings", "## When"):
        assert expected in text


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_lists_no_setting_that_it_does_not_have(service: str) -> None:
    settings = importlib.import_module(f"{service}.settings").Settings.model_fields

    for variable, *_ in rows(f"{service}/README.md", "## Settings"):
        for name in re.findall(r"`([A-Z_]+)`", variable):
            assert name.lower() in settings, f"{service} has no {name}"


@pytest.mark.parametrize("service", SERVICES)
def test_the_example_of_the_settings_is_made_from_them(service: str) -> None:
    settings = importlib.import_module(f"{service}.settings").Settings

    assert (ROOT / service / ".env.example").read_text() == example(settings)


def test_every_kind_of_dead_letter_is_described_as_the_pages_describe_it() -> None:
    described = {
        code: (plain(meaning), plain(advice), remedy)
        for codes, meaning, advice, remedy in takewhile(
            lambda cells: len(cells) == 4, rows("docs/observability.md", "### Dead letters")
        )
        for code in re.findall(r"`(\w+)`", codes)
    }

    words = {
        Remedy.SEND_BACK: "may succeed",
        Remedy.CORRECT: "fails again, unless corrected",
        Remedy.DISCARD: "fails again",
    }
    assert described == {
        code: (kind.meaning, kind.advice, words[kind.remedy]) for code, kind in KINDS.items()
    }


def plain(text: str) -> str:
    """Markdown without links and code marks."""
    return re.sub(r"\[(.*?)\]\(.*?\)", r"\1", text).replace("`", "")


def logged() -> Iterator[tuple[str, str]]:
    """Every event with its level, as the code says them."""
    packages = ("common", *SERVICES)
    for path in (path for package in packages for path in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            logger, method = node.func.value, node.func.attr
            if isinstance(logger, ast.Name) and logger.id == "log" and method in LEVELS:
                event = node.args[0]
                assert isinstance(event, ast.Constant), f"{path}:{node.lineno}: not a plain name"
                yield str(event.value), LEVELS[method]


def test_every_log_event_is_described_with_its_level_and_no_other() -> None:
    described = {
        (cells[0].strip("`"), cells[1])
        for cells in rows("docs/observability.md", "## Log events")
        if cells[0].startswith("`")
    }

    assert described == set(logged())


@pytest.mark.parametrize("event", sorted({event for event, _ in logged()}))
def test_events_are_named_noun_verb(event: str) -> None:
    assert re.fullmatch(r"[a-z_]+\.[a-z_]+", event)


def test_every_metric_is_described_with_its_kind_and_labels_and_no_other() -> None:
    described = {
        cells[0].strip("`"): (cells[1], tuple(re.findall(r"`(\w+)`", cells[2])))
        for cells in rows("docs/observability.md", "## Metrics")
        if re.fullmatch(r"`userstream_\w+`", cells[0])
    }

    existing = {}
    for metric in vars(metrics).values():
        if isinstance(metric, MetricWrapperBase):
            (family,) = metric.describe()
            name = f"{family.name}_total" if family.type == "counter" else family.name
            existing[name] = (family.type, tuple(metric._labelnames))
    assert described == existing
