"""Milliseconds of the networks of a finished search that counts no latency: measured once, at its end."""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import fx

from agents.outcome import ORIGINAL, Outcome
from agents.run import OUTCOMES_FILE, Run
from amc.errors import UserError
from amc.export.model import on_grids
from amc.files import write_json
from amc.targets import Timing

TIME_LIMIT_S = 20.0
"""Seconds that all rounds together may take. Small networks on a quiet machine need one; so many are enough
for a reliable try of networks that take 130 ms together."""


def measure_outcomes(run: Run, outcomes: Sequence[Outcome]) -> tuple[list[Outcome], str]:
    """Time the networks of the before/after table on the run's target, interleaved, and store that.

    Nothing is measured where the search itself has counted latencies, where the target counts no time, and
    where there are several levels of a budget.

    Args:
        run: finished; its `outcomes.json` is written again.
        outcomes: what it led to, the original first.

    Returns:
        The outcomes, with latencies where they were measured, and a sentence for a person; "" where there
        is nothing to say. The search is over, so nothing that goes wrong here may lose what it found, and
        Ctrl-C ends the measuring alone.
    """
    target = run.problem.target
    asked = any(each.case or "latency" in each.costs for each in outcomes)
    # A search in rounds has kept one network, and of the others their figures alone.
    timed = [each for each in outcomes if each.policy is not None or each.name == ORIGINAL]
    if asked or target.unit != "ms" or len(timed) < 2:
        return list(outcomes), ""
    try:
        timings = dict(zip((each.name for each in timed), _timings(run, timed), strict=True))
    except KeyboardInterrupt:
        return list(outcomes), "No milliseconds were measured: interrupted."
    except Exception as error:
        return list(outcomes), f"No milliseconds were measured: {' '.join(str(error).split())}"
    told = [_with_timing(each, timings.get(each.name)) for each in outcomes]
    write_json(run.folder / OUTCOMES_FILE, [each.to_json() for each in told])
    found = ", ".join(f"{name} {timing.best:.3f}" for name, timing in timings.items())
    shaky = (
        ""
        if all(each.reliable for each in timings.values())
        else "; not reliable, for a busy machine or slow networks"
    )
    return told, f"milliseconds on {target.name}, measured once and interleaved: {found}{shaky}"


def _timings(run: Run, outcomes: Sequence[Outcome]) -> list[Timing]:
    """One timing an outcome; the same network under two names is exported twice and measured as two.

    Raises:
        UserError: the runtime is missing or refuses a file, or a network cannot be exported by us.
    """
    target, example = run.problem.target, run.network.example
    with tempfile.TemporaryDirectory(prefix="amc-final-") as folder:
        files = []
        for place, each in enumerate(outcomes):
            files.append(Path(folder) / f"{place}{target.file_suffix}")
            exported = target.export(_network(run, each), example, files[-1])
            if exported.exporter != "amc":
                raise UserError(f"our exporter lacks {exported.unsupported}, and the other one is slow.")
        return target.measure(files, time_limit_s=TIME_LIMIT_S)


def _network(run: Run, outcome: Outcome) -> fx.GraphModule:
    if outcome.policy is None:
        return run.network.module
    # As the search scores it: what is delivered differs in numbers only, and takes longer to make.
    model = run.evaluator.searched(outcome.policy).cpu()
    return on_grids(model, [batch.cpu() for batch in run.evaluator.calibration])


def _with_timing(outcome: Outcome, timing: Timing | None) -> Outcome:
    if timing is None:
        return outcome
    source = "measured" if timing.reliable else "unreliable"
    return replace(outcome, latency=timing.best, latency_source=source)
