"""The HTML page of a report: one file that needs no other, readable in light and dark, wide and narrow."""

from collections.abc import Sequence
from html import escape
from string import Template

from agents.report_comparison import comparison_sections
from agents.report_data import Record
from agents.report_sections import run_sections

GENERATOR = "amc report"
_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="generator" content="$generator">
<title>$title</title>
<style>
:root { --paper: #fff; --ink: #1b1f24; --faint: #5d6673; --line: #d9dee5; --panel: #f5f7f9; --link: #1f63bf }
@media (prefers-color-scheme: dark) {
:root { --paper: #14171b; --ink: #e4e7eb; --faint: #9aa4b1; --line: #333a43; --panel: #1d2228;
--link: #7fb2f5 }
}
* { box-sizing: border-box }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 62rem; background: var(--paper);
color: var(--ink);
font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .4rem; overflow-wrap: anywhere }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .6rem; padding-top: .9rem; border-top: 1px solid var(--line) }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem }
p, ul { margin: .5rem 0; max-width: 46rem }
.faint, figcaption, small { color: var(--faint) }
.verdict { font-size: 1.1rem }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(10rem, 1fr)); gap: .75rem;
margin: 1.2rem 0 }
.tile { background: var(--panel); border: 1px solid var(--line); border-radius: .5rem; padding: .7rem .9rem }
.tile b { display: block; font-size: 1.4rem; font-variant-numeric: tabular-nums }
.tile span { display: block; font-size: .85rem; color: var(--faint) }
.wide { overflow-x: auto }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { padding: .4rem .7rem; text-align: right; border-bottom: 1px solid var(--line); vertical-align: top }
th:first-child { text-align: left; padding-left: 0 } th:last-child, td:last-child { padding-right: 0 }
td { white-space: nowrap }
table.texts td, table.texts th { text-align: left; overflow-wrap: anywhere; white-space: normal }
table.texts th { width: 15rem }
thead th { font-weight: 600; white-space: nowrap } tbody th { font-weight: 400 }
td small { display: block }
tr.faint td, tr.faint th { color: var(--faint); opacity: .75 }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1.2rem; margin: .8rem 0 }
dt { color: var(--faint) } dd { margin: 0; overflow-wrap: anywhere }
figure { margin: 1rem 0 } figcaption { font-size: .9rem; max-width: 46rem }
figure svg text { font-family: inherit !important; fill: currentColor }
pre { background: var(--panel); border: 1px solid var(--line); border-radius: .4rem; padding: .6rem .8rem;
margin: .3rem 0 .9rem; overflow-x: auto; font-size: .85rem }
summary { cursor: pointer; color: var(--link); margin: .8rem 0 }
@media (max-width: 34rem) { th, td { padding: .4rem .45rem } body { padding-top: 1.2rem } }
@media print { body { max-width: none } }
</style>
</head>
<body>
$body
</body>
</html>
""")


def page_html(records: Sequence[Record]) -> str:
    """The whole page of one run, or of several that are compared."""
    if len(records) == 1:
        title, body = _title(records[0]), run_sections(records[0])
    else:
        title, body = f"{len(records)} searches compared", comparison_sections(records)
    return page(title, body)


def page(title: str, body: str) -> str:
    """A page with its heading; the title is escaped here, the body is HTML."""
    body = f"<h1>{escape(title)}</h1>\n{body}"
    return _PAGE.substitute(generator=GENERATOR, title=escape(title), body=body)


def _title(record: Record) -> str:
    budgets = " and ".join(record.config.problem.budgets)
    return f"{record.config.source.model} compressed{f' to {budgets}' if budgets else ''}"
