"""The ledger: where every token went, for the terminal and for the report."""

from collections.abc import Mapping, Sequence
from dataclasses import fields

from markupsafe import Markup

from frisket.report.bars import taught_bars
from frisket.report.render import count, page, words
from frisket.types import Ledger, total

LedgerRow = tuple[str | int, ...]
"""A name, then one number for each source, then their sum where there are several sources."""

_PLAIN = (
    ("dropped", "dropped"),
    ("truncated", "cut off"),
    ("held_out", "held out"),
    ("other_objective", "not this objective"),
)


def ledger_columns(ledgers: Mapping[str, Ledger]) -> list[str]:
    """Headings of the numbers in ``ledger_table``."""
    return [*ledgers, *(["all sources"] if len(ledgers) > 1 else [])]


def ledger_table(ledgers: Mapping[str, Ledger]) -> list[LedgerRow]:
    """The ledger as plain rows, in the order of its two identities.

    Rows that are 0 in every column are left out, but for ``read``, ``flat``, ``computed`` and ``shared``.

    Args:
        ledgers: one for each source, under the name that heads its column.

    Returns:
        ``(name, number of each source …, their sum)``; the sum stands only where there are several sources.
    """
    columns = _columns(ledgers)
    rows: list[LedgerRow] = [("read", *(c.read for c in columns))]
    rows += [row for name, label in _PLAIN if any((row := (label, *(getattr(c, name) for c in columns)))[1:])]
    for field in ("taught", "untaught"):
        rows += _by_provenance(columns, field)
    rows += [(name, *(getattr(c, name) for c in columns)) for name in ("flat", "computed", "shared")]
    for name in ("straddling", "removed_characters"):
        row = (words(name), *(getattr(c, name) for c in columns))
        rows += [row] if any(row[1:]) else []
    return rows


def ledger_identities(ledgers: Mapping[str, Ledger]) -> list[tuple[str, bool]]:
    """Both identities in numbers, and whether they hold; of several sources all together first, then each."""
    each = [pair for name, ledger in ledgers.items() for pair in _identities(ledger, f"{name}: ")]
    if len(ledgers) == 1:
        return _identities(next(iter(ledgers.values())), "")
    (read, _), (flat, _) = _identities(total(list(ledgers.values())), "")
    return [(read, all(holds for _, holds in each[::2])), (flat, all(holds for _, holds in each[1::2])), *each]


def _identities(whole: Ledger, prefix: str) -> list[tuple[str, bool]]:
    terms = [(label, getattr(whole, name)) for name, label in _PLAIN]
    terms += [("taught", sum(whole.taught.values())), ("not taught", sum(whole.untaught.values()))]
    shown = [t for t in terms if t[1] or t[0] in ("taught", "not taught")]
    read = f"{prefix}{count(whole.read)} read = " + " + ".join(f"{count(number)} {label}" for label, number in shown)
    flat = f"{prefix}{count(whole.flat)} flat = {count(whole.computed)} computed + {count(whole.shared)} shared"
    wrong = whole.imbalances()
    return [(read, not any("were read" in p for p in wrong)), (flat, not any("flat tokens" in p for p in wrong))]


def ledger_html(ledgers: Mapping[str, Ledger]) -> Markup:
    """The ledger as an HTML fragment: identities, table, what each provenance teaches, counts of samples."""
    columns = _columns(ledgers)
    names = dict.fromkeys(name for c in columns for name, samples in c.samples.items() if samples)
    return Markup(
        page(
            "ledger.html.jinja",
            columns=ledger_columns(ledgers),
            identities=ledger_identities(ledgers),
            rows=ledger_table(ledgers),
            bars=taught_bars(total(list(ledgers.values()))),
            samples=[(words(name), *(c.samples.get(name, 0) for c in columns)) for name in names],
        )
    )


def read_ledgers(tokens: Mapping, names: list[str]) -> dict[str, Ledger]:
    """The ledgers of ``summary.json``.

    Args:
        tokens: the object under ``tokens``: the sum, and the ledger of each source under ``sources``.
        names: what the sources are called; equal names are told apart by their number.
    """
    known = {f.name for f in fields(Ledger)}
    entries = tokens.get("sources") or [tokens]
    called = names if len(names) == len(entries) else [f"source {i}" for i in range(len(entries))]
    ledgers = [Ledger(**{key: value for key, value in entry.items() if key in known}) for entry in entries]
    return named_ledgers(ledgers, called)


def named_ledgers(ledgers: Sequence[Ledger], names: Sequence[str]) -> dict[str, Ledger]:
    """Ledgers under the names of their sources; equal names are told apart by their number."""
    if len(set(names)) < len(names):
        names = [f"{i}: {name}" for i, name in enumerate(names)]
    return dict(zip(names, ledgers, strict=True))


def _columns(ledgers: Mapping[str, Ledger]) -> list[Ledger]:
    each = list(ledgers.values())
    return [*each, *([total(each)] if len(each) > 1 else [])]


def _by_provenance(columns: list[Ledger], field: str) -> list[LedgerRow]:
    label = {"taught": "taught", "untaught": "not taught"}[field]
    names = dict.fromkeys(name for c in columns for name in getattr(c, field))
    rows = [(f"{label}: {words(name)}", *(getattr(c, field).get(name, 0) for c in columns)) for name in names]
    return [row for row in rows if any(row[1:])]
