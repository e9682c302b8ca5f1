"""Writes the results of all explorations as JUnit's XML, which every CI system can show.

What belongs here: one test case for each property; a violation is its failure, with the whole story
as the text. A section of which not all could be explored within its limit is an error. The check of
a log is one suite.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bridgecore.verify.cost import CostedProperty
from bridgecore.verify.results import Results, SectionResult, Status
from bridgecore.verify.trace import TraceReport


def junit(results: Results) -> str:
    """The results as an XML document: a suite for each section, a test case for each property."""
    name = _quoted(f"bridgecore verify: {results.policy}, {results.bounds}")
    lines = [
        '<?xml version="1.0" encoding="utf-8"?>',
        f"<testsuites name={name} {_counts(results.sections)}>",
    ]
    for section in results.sections:
        lines.append(f"<testsuite name={_quoted(section.name)} {_counts([section])}>")
        for prop in section.properties:
            lines += _case(section, prop)
        if not section.complete and not section.findings:
            lines += [
                f'<testcase classname={_quoted(section.name)} name="complete">',
                '<error message="not every state within the bounds was explored"/>',
                "</testcase>",
            ]
        lines.append("</testsuite>")
    return "\n".join([*lines, "</testsuites>", ""])


def junit_of_trace(
    log: str, judged: Iterable[CostedProperty], report: TraceReport, verdict: str, shown: str
) -> str:
    """The check of a log as an XML document: a test case for each property that was ``judged``, and
    one for the decisions. What was checked only up to a wrong line is skipped. ``shown``: what
    is wrong, as text."""
    wrong = report.wrong
    names: list[CostedProperty | None] = [*judged]
    if report.policies:
        names.insert(0, None)
    cases: list[str] = []
    for prop in names:
        name = "decisions" if prop is None else prop.name
        head = f"<testcase classname={_quoted('log')} name={_quoted(name)}"
        if wrong is None:
            cases.append(f"{head}/>")
        elif wrong.prop is prop:
            cases += [f"{head}>", f"<failure message={_quoted(wrong.text)}>", _escaped(shown)]
            cases += ["</failure>", "</testcase>"]
        else:
            text = f"the log was checked up to line {wrong.line} only"
            cases += [f"{head}>", f"<skipped message={_quoted(text)}/>", "</testcase>"]
    failures = int(wrong is not None)
    counts = (
        f'tests="{len(names)}" failures="{failures}" errors="0" '
        f'skipped="{(len(names) - 1) * failures}"'
    )
    return "\n".join(
        [
            '<?xml version="1.0" encoding="utf-8"?>',
            f"<testsuites name={_quoted(f'bridgecore verify --trace {log}')} {counts}>",
            f'<testsuite name="log" {counts}>',
            *cases,
            f"<system-out>{_escaped(verdict)}</system-out>",
            "</testsuite>",
            "</testsuites>",
            "",
        ]
    )


def _counts(sections: Sequence[SectionResult]) -> str:
    statuses = [section.status(prop) for section in sections for prop in section.properties]
    partial = sum(not section.complete and not section.findings for section in sections)
    return (
        f'tests="{len(statuses) + partial}" failures="{statuses.count(Status.BROKEN)}" '
        f'errors="{partial}" skipped="{statuses.count(Status.SKIPPED)}" '
        f'time="{sum(section.seconds for section in sections):.3f}"'
    )


def _case(section: SectionResult, prop: CostedProperty) -> list[str]:
    head = f"<testcase classname={_quoted(section.name)} name={_quoted(prop.name)}"
    if section.skipped:
        return [f"{head}>", f"<skipped message={_quoted(section.skipped)}/>", "</testcase>"]
    found = next((one for one in section.findings if one.prop is prop), None)
    if found is None:
        return [f"{head}/>"]
    message = _quoted(found.text.splitlines()[0])
    return [
        f"{head}>",
        f'<failure type="rank {int(prop.rank)}: {_escaped(prop.rank.words)}" message={message}>',
        _escaped(found.told()),
        "</failure>",
        "</testcase>",
    ]


def _quoted(text: str) -> str:
    return f'"{_escaped(text).replace(chr(34), "&quot;")}"'


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
