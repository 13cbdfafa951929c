"""The sentences and numbers of a report: units, differences, and whether a gain is one."""

import math

from agents.outcome import ORIGINAL
from agents.report_data import Record
from amc.costs.symbolic import ALIASES
from amc.targets.protocol import NOISE_FLOOR, UNRELIABLE_NOISE
from envs.budget_range import is_range

MINUS, NO_BREAK = "\N{MINUS SIGN}", "\N{NO-BREAK SPACE}"
COST_NAMES = {
    "macs": "multiply-accumulates",
    "params": "parameters",
    "size": "size",
    "bops": "bit-operations",
    "latency": "latency",
    "nonzeros": "non-zero weights",
    "code": "length of a code",
    "storage": "network and database",
}
_UNITS = {
    **{"macs": "MACs", "params": "", "size": "B", "bops": "bit-ops", "nonzeros": ""},
    **{"code": "bits", "storage": "B"},
}
_PREFIXES = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


def percent(share: float) -> str:
    """A share as `83.33 %`."""
    return f"{share * 100:.2f}{NO_BREAK}%".replace("-", MINUS)


def points(difference: float) -> str:
    """A difference of shares as `+2.08 points`; what rounds to zero has no sign."""
    return f"{_signed(difference * 100)}{NO_BREAK}points"


def change(value: float, before: float) -> str:
    """A relative change as `-70.00 %`."""
    return f"{_signed((value / before - 1.0) * 100)}{NO_BREAK}%" if before else ""


def _signed(number: float) -> str:
    text = f"{number:+.2f}".replace("-", MINUS)
    return "0.00" if text.endswith("0.00") and abs(number) < 0.005 else text


def cost_scale(name: str, largest: float, latency_unit: str = "ms") -> tuple[float, str]:
    """Divisor and unit in which costs up to `largest` read well: 16,800,000 MACs as MMACs."""
    unit = latency_unit if name == "latency" else _UNITS.get(name, "")
    if name != "latency":
        for divisor, prefix in _PREFIXES:
            if largest >= divisor:
                return divisor, prefix + unit
    return 1.0, unit


def cost_text(name: str, value: float, largest: float, latency_unit: str = "ms") -> str:
    """A cost with its unit, on the scale of the largest that it is compared with."""
    divisor, unit = cost_scale(name, largest, latency_unit)
    decimals = 3 if name == "latency" else 0 if divisor == 1.0 else 2
    return f"{value / divisor:,.{decimals}f}{NO_BREAK}{unit}".rstrip()


def duration(seconds: float) -> str:
    """Seconds as `48 s`, `12.5 min` or `3.2 h`."""
    if seconds < 90:
        return f"{seconds:.0f}{NO_BREAK}s"
    return f"{seconds / 60:.1f}{NO_BREAK}min" if seconds < 5400 else f"{seconds / 3600:.1f}{NO_BREAK}h"


def status(record: Record) -> str:
    """How far the search is."""
    done, asked = len(record.log), record.config.search.evaluations
    if done >= asked:
        return f"finished: {done:,} evaluations"
    if record.algorithm in ("uniform", "balanced") and done:
        return f"finished: the {record.algorithm} policy is all that this searcher proposes"
    return f"not finished: {done:,} of {asked:,} evaluations"


def goal(record: Record) -> str:
    """What was asked, in one sentence."""
    problem = record.config.problem
    limits = " and ".join(_limit(text) for text in problem.budgets)
    if problem.goal == "accuracy":
        return f"the best {record.score_name} with {limits}"
    within = f", with {limits}" if limits else ""
    return (
        f"the smallest {COST_NAMES[problem.minimize]} that costs at most "
        f"{points(problem.max_drop / 100).lstrip('+')} of {record.score_name}{within}"
    )


def _limit(budget: str) -> str:
    """A budget as it is read aloud: `macs=0.3` as at most 30 % of the multiply-accumulates."""
    name, _, value = (part.strip() for part in budget.partition("="))
    name = COST_NAMES.get(ALIASES.get(name.lower(), name.lower()), name)
    try:
        share = float(value)
    except ValueError:
        share = math.inf
    if is_range(value):
        return f"{name} of any budget from {value.replace('..', ' to ')}"
    return f"at most {share * 100:g}{NO_BREAK}% of the {name}" if share <= 1 else f"{name} of at most {value}"


def verdict(record: Record) -> list[str]:
    """What was gained over the reference policy and the original, in sentences that do not flatter."""
    if record.best is None or record.first is None:
        return ["Nothing has been evaluated yet."]
    if record.misses:
        first = _miss_verdict(record)
    elif record.best.index == record.first.index:
        first = f"No policy beat the {record.reference} one in {_evaluations(record)}."
    elif record.config.problem.goal == "accuracy":
        first = _score_verdict(record)
    else:
        first = _cost_verdict(record)
    return [first, *_sparsity_verdict(record), *_latency_verdict(record), *_test_verdict(record)]


def _evaluations(record: Record) -> str:
    count = len(record.log) - record.round_start
    return f"{count:,} evaluation{'s' if count != 1 else ''}"


def gain(record: Record) -> float:
    """By how much the best policy's score is above the reference policy's, both on the reward split."""
    return record.best.score - record.first.score if record.best and record.first else 0.0


def is_tie(record: Record) -> bool:
    """Whether a gain in score is below the reward split's standard error."""
    error = record.standard_error(record.first.score) if record.first else None
    return error is not None and abs(gain(record)) < error


def _score_verdict(record: Record) -> str:
    assert record.first is not None
    error = record.standard_error(record.first.score)
    above = f"{points(gain(record))} of {record.score_name} over the {record.reference} policy"
    if error is None:
        return (
            f"{above} on the reward split, whose number of images this run does not record: it may be chance."
        )
    if is_tie(record):
        return (
            f"A tie with the {record.reference} policy: {points(gain(record))} of {record.score_name} is "
            f"less than the reward split's standard error of {points(error).lstrip('+')}."
        )
    return f"{above} on the reward split, whose standard error is {points(error).lstrip('+')}."


def _cost_verdict(record: Record) -> str:
    assert record.best is not None and record.first is not None
    name, original = record.config.problem.minimize, record.original
    before, first, after = (each.costs[name] for each in (original, record.first, record.best))
    largest, unit = max(before, after), record.latency_unit
    return (
        f"{COST_NAMES[name].capitalize()} {cost_text(name, after, largest, unit)} instead of "
        f"{cost_text(name, before, largest, unit)}, "
        f"{before / after:.2f} times less ({record.reference} policy: {before / first:.2f} times), for "
        f"{points(record.best.score - original.reward_score)} of {record.score_name} on the reward split."
    )


def _miss_verdict(record: Record) -> str:
    """What to say where no network is within the drop, or where no measured one keeps the latency budget."""
    assert record.best is not None
    if record.misses_drop:
        lost = record.original.reward_score - record.best.score
        return (
            f"No network of {_evaluations(record)} is within the allowed drop of "
            f"{points(record.config.problem.max_drop / 100).lstrip('+')}: the most accurate loses "
            f"{points(lost).lstrip('+')} of {record.score_name} on the reward split."
        )
    latency, limit = record.best.costs["latency"], record.limits["latency"]
    return (
        f"No network that was measured in {_evaluations(record)} keeps the latency budget of "
        f"{cost_text('latency', limit, latency, record.latency_unit)}: the fastest takes "
        f"{cost_text('latency', latency, latency, record.latency_unit)}."
    )


def _sparsity_verdict(record: Record) -> list[str]:
    """What single zeros in the weights are not worth."""
    densities = record.best.policy.values("density") if record.best else {}
    if all(density == 100 for density in densities.values()):
        return []
    return [
        "Its zeros are single weights, spread over all channels: no CPU target here runs it faster for them, "
        "and only a packed file is smaller."
    ]


def _latency_verdict(record: Record) -> list[str]:
    """Which latencies are measured, where some are not, or not reliably."""
    sentences = _measured_once(record)
    if record.predicted:
        sentences.append(
            f"The latency of {record.predicted:,} of {len(record.log):,} policies is predicted; it is "
            f"measured for the {record.reference} policy, the best one, and every other that would have been "
            "the best."
        )
    if record.best is not None and record.best.latency_source == "unreliable":
        sentences.append("The machine was too busy for a reliable latency of the best policy.")
    return sentences


def _measured_once(record: Record) -> list[str]:
    """What was measured at the end of a search that counts no latency."""
    found = {each.name: each for each in record.networks if each.latency_source}
    best, original = found.get(record.algorithm), found.get(ORIGINAL)
    if best is None or original is None:
        return []
    before, after = original.costs["latency"], best.costs["latency"]
    shaky = any(each.latency_source == "unreliable" for each in found.values())
    return [
        f"Measured once on {record.config.problem.target}, beside each other: "
        f"{cost_text('latency', after, before, record.latency_unit)} instead of "
        f"{cost_text('latency', before, before, record.latency_unit)}, {speed(after, before, not shaky)}."
        + (" The machine was too busy, or the networks too slow, for this to be reliable." if shaky else "")
    ]


def speed(after: float, before: float, reliable: bool = True) -> str:
    """Two measured latencies compared: `2.10 times as fast`, or that noise explains the difference."""
    if abs(math.log(after / before)) <= math.log1p(NOISE_FLOOR if reliable else UNRELIABLE_NOISE):
        return "no difference that exceeds the noise"
    return f"{before / after:.2f} times as fast"


def _test_verdict(record: Record) -> list[str]:
    if record.outdated:
        return ["Test figures are left out: outcomes.json tells of an earlier best policy than the log."]
    scores = [
        f"{each.name} {percent(each.test_score)}" for each in record.networks if each.test_score is not None
    ]
    return [f"On the test split: {', '.join(scores)}."] if scores else []
