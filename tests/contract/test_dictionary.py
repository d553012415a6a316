"""The words are the field's: names that were replaced by standard terms stay replaced.

What a term is called now stands beside the word that is no longer used, so that a failure says
what to write. Decisions in ``docs/adr/`` and the table of renamed things in ``CHANGELOG.md`` may
use the old words: they are about the past. So may migrations: an applied one is never edited.
"""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

READ = {".py", ".md", ".html", ".txt", ".js", ".css", ".json", ".yml", ".yaml", ".toml", ".example"}

EXEMPT = (
    "docs/adr/",
    "sql/",
    "CHANGELOG.md",
    "tests/contract/test_dictionary.py",
    "tests/integration/database_service/test_migrations.py",  # tables of an earlier release
    "tests/naughty.py",  # names of people and places
    "common/contracts/rules.py",  # letters of alphabets
    "tests/unit/common/test_context.py",
)

NAMES = {
    # What people see: log events, headers, JSON, metrics, settings, commands.
    r"(?i)in_?hospital|hospital": "dead-lettered",
    r"(?i)(?<!0018-)suspects?_?|suspected": "quarantined, a quarantined message",
    r"(?i)put[_ ]aside|put_asides": "deferred",
    r"(?i)held[_ ]up": "deferred; busy_consumer",
    r"(?i)given[_-]before|given_in_vain|in vain": "previous deliveries",
    r"x-attempts": "x-failed-attempts",
    r"(?i)\bin[_ ]hand\b": "in flight",
    r"CRASH_NOTES_DIR|(?i:crash notes?)": "CRASH_MARKER_DIR, crash marker",
    r"FAST_FRAMES|fast_frames": "gone",
    r"looked_at_elsewhere": "lockedByAnotherReader",
    r"(?i)rehears\w*|would_?pass": "dry run, wouldSucceed",
    r"broken_off|failed_again": "aborted, failed",
    r"(?i)own[_ ]?doors?\b": "self request, SelfClient",
    r"canary\.(missing|back)": "canary.failed, canary.recovered",
    r"(?i)under_way|somebody else is at it": "in_progress",
    r"(?i)neighbou?rs?": "upstream, another service",
    r"(?i)ledger_unread|ledger\.forgotten": "truncated",
    r"left_to_redelivery|delivery\.unsettled": "requeued, delivery.failed_internally",
    r"http\.unreadable": "http.bad_request_line",
    r"database\.(back|lost)\b": "database.reconnected, database.disconnected",
    # What engineers see.
    r"class Link\b|amqp[./]link\b|import Link\b": "ReconnectingConnection",
    r"\bLine\b|\b_work_off\w*": "backlog, _handle_with_retry, _drain_backlog",
    r"\b(Plain)?Wire\b|plain_wire|\bcame_back\b": "Channel",
    r"\bTaker\b|\bTap\b|_overhear": "FrameFilter, FrameHandler",
    r"\bConfirms\(": "ConfirmTracker",
    r"tolerant_amqp": "lenient",
    r"(?i)\b(piece|portion)s?\b": "chunk, batch",
    r"\bgently\b": "throttled",
    r"(?i)verdicts?\b|(?<!x-)(?<!first-)(?<!\}-)\bdeaths?\b|\bpatience\b": "crash_count",
    r"COMPANY_SECONDS|ASIDE_PER_WAIT|NOTES_LAST|LAST_WORDS_SECONDS": "a name that says what it is",
    r"\bbegin_alone\b|\blet_go\b|\bwiden\w*\b|\bNARROW =|\b_reach\b": "raise_prefetch and others",
    r"\bBreaker\b|\b_moved_on\b|\b_got_through\b": "OutageGate",
    r"(?i)coalesc(er|ing|ed)\b(?!-without)|travels? together": "Batcher, sent in one request",
    r"republishing|kept_headers": "headers, republish_headers",
    r"PLAUSIBLE_COUNT|\bsane_id\b|\bis_sane_key\b": "MAX_TRUSTED_COUNT, valid_id, is_valid_key",
    r"QueueView|QueueLook|queue_view": "QueueDepths",
    r"(?i)(?<!dead.)(?<!dead)(?<!full-width )\bletters?\b(?!-spacing)|MAX_LETTERS": "message",
    r"DeadLetterOffice|queue_receiver\.office": "DeadLetterAdmin",
    r"\bFates?\b|\bfates?\b": "Outcome, OutcomeTracker",
    r"\bCOVER\b|\brevealed\b": "REDACTED, unmasked",
    r"\bBook\b|\bAccounts\b|\blog_\b|\bread_on\b|\bis_behind\b": "LedgerStore, Stream, has_more",
    r"\.watching\b|(?i:\bsettlements?\b)": "running, reconciliation",
    r"OwnDoor|\b_Flight\b|\b_fly\b|_comes_home|_in_trouble": "SelfClient, _Trip",
    r"end_what_never_ends|TELL_AFTER_SECONDS|_tell_the_last": "stop_background_tasks and others",
    r"\bshown_form\b|same_site|refuse_cross_site": "html_form, csrf.reject_cross_site",
    r"_calm_the_garbage_collector|TurnWriter": "_tune_gc, BufferedLineWriter",
    r"by_statements|LostRaceError|\bRACES\b": "with_retry, SerializationConflict",
    r"\btold_(by|at)\b|\bwithheld\b": "last_notice_by, last_notice_at, rate_limited",
    r"_spare_the_server|_take_follower|\bfollowing\b\(": "_share_connect_failure, _assign_next",
    r"\bNEEDS\b|class Needs\b": "TEMPLATES, TemplateSpec",
    r"hand_out\b|(?i:strangers?\b)": "distribute_secrets, unknown_bindings",
    r"\bArena\b|\bTrick\b|(?i:\blimbo\b|\bdoses?\b|fault bench)": "Stack, Fault, stuck, scale",
    r"launcher[./](private|asking|watching|checks|table|guard)\b": "the launcher's new names",
    r"chaos[./](lone|evidence|judge)\b": "single, observations, evaluate",
}
"""Pattern → what is written instead."""

PROSE = {
    r"(?i)\bcan not\b": "cannot",
    r"(?i)(?<!mails-)(?<!what-)(?<!named )\b(whoever|somebody|nobody)\b(?!\")": "a noun",
}
"""Forbidden outside tests, whose names are sentences."""


@cache
def files() -> tuple[Path, ...]:
    found = [
        path
        for path in sorted(ROOT.rglob("*"))
        if path.suffix in READ and not _is_foreign(path.relative_to(ROOT))
    ]
    assert len(found) > 500
    return tuple(found)


def _is_foreign(path: Path) -> bool:
    return (
        any(part.startswith(".") or part == "node_modules" for part in path.parts[:-1])
        or str(path).startswith(EXEMPT)
        or path.name in ("swagger.json", "package-lock.json")
    )


def uses(pattern: str, paths: tuple[Path, ...]) -> Iterator[str]:
    word = re.compile(pattern)
    for path in paths:
        for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
            if match := word.search(line):
                yield f"{path.relative_to(ROOT)}:{number}: {match[0]!r} in {line.strip()[:100]}"


@pytest.mark.parametrize("pattern", NAMES)
def test_a_replaced_name_is_used_nowhere(pattern: str) -> None:
    assert list(uses(pattern, files())) == [], f"write {NAMES[pattern]}"


@pytest.mark.parametrize("pattern", PROSE)
def test_texts_use_nouns(pattern: str) -> None:
    product = tuple(path for path in files() if path.relative_to(ROOT).parts[0] != "tests")
    assert list(uses(pattern, product)) == [], f"write {PROSE[pattern]}"
