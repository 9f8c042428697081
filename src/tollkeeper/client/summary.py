"""What came of a run, for people (facts on the screen) and for programs (one JSON document).

Shared by `replay`, `bench` and `demo`; pure.
"""

from collections import Counter
from dataclasses import asdict

from tollkeeper.client.load import Audit, Quantiles, Tally
from tollkeeper.client.terminal import Fact

Facts = tuple[Fact, ...]


def tally_document(tally: Tally) -> dict[str, object]:
    """Return a tally as JSON members."""
    return {
        "requests": tally.requests,
        "charged": tally.charged,
        "charged_units": tally.charged_units,
        "replayed": tally.replayed,
        "replayed_units": tally.replayed_units,
        "refused": dict(tally.refused),
        "failed": dict(tally.failed),
        "elapsed_s": round(tally.elapsed_s, 3),
        "requests_per_s": round(tally.rate_per_s, 1),
        "latency": quantiles_document(tally.latencies.quantiles()),
    }


def quantiles_document(quantiles: Quantiles | None) -> dict[str, float] | None:
    """Return percentiles as JSON members, or null when nothing was measured."""
    return None if quantiles is None else asdict(quantiles)


def audit_document(audit: Audit) -> dict[str, object]:
    """Return an audit as JSON members."""
    return {
        "accounts": audit.accounts,
        "transactions": audit.transactions,
        "topped_up": audit.topped_up,
        "consumed": audit.consumed,
        "balances": audit.balances,
        "conserved": audit.is_conserved,
        "faults": audit.faults,
    }


def tally_facts(tally: Tally) -> Facts:
    """Say what became of the requests, and how fast."""
    return (
        ("requests", f"{tally.requests:,} in {tally.elapsed_s:,.1f} s: {tally.rate_per_s:,.0f}/s"),
        ("latency", quantiles_text(tally.latencies.quantiles())),
        ("charged", f"{tally.charged:,} for {tally.charged_units:,} units"),
        ("replayed", _replayed_text(tally)),
        counts_fact("refused", tally.refused, tone="warn"),
        counts_fact("failed", tally.failed, tone="bad"),
    )


def audit_facts(audit: Audit) -> Facts:
    """Say whether every unit is accounted for and whether the chain holds."""
    sums = f"balances {audit.balances:,} + consumed {audit.consumed:,}"
    if audit.is_conserved:
        conservation = (f"{sums} = topped up", "good")
    else:
        conservation = (f"{sums} is not what was topped up", "bad")
    chain = f"{audit.transactions:,} transactions of {audit.accounts:,} accounts verified"
    faults = f"{chain}: {len(audit.faults):,} faults, see `tollkeeper credits verify`"
    return (
        ("topped up", f"{audit.topped_up:,} units"),
        ("conservation", *conservation),
        ("chain", faults, "bad") if audit.faults else ("chain", chain, "good"),
    )


def quantiles_text(quantiles: Quantiles | None) -> str:
    """Return percentiles in one line."""
    if quantiles is None:
        return "nothing measured"
    return (
        f"P50 {quantiles.p50_ms:,.1f} ms   P95 {quantiles.p95_ms:,.1f} ms   "
        f"P99 {quantiles.p99_ms:,.1f} ms   max {quantiles.max_ms:,.1f} ms"
    )


def counts_fact(name: str, counts: Counter[str], *, tone: str) -> Fact:
    """Return counts by name in one line, `tone` saying what it means that there are any."""
    if not counts:
        return (name, "none")
    return (name, ", ".join(f"{count:,} {each}" for each, count in counts.most_common()), tone)


def _replayed_text(tally: Tally) -> str:
    if not tally.replayed:
        return "none"
    return f"{tally.replayed:,} with a known key: {tally.replayed_units:,} units not charged twice"
