"""Regenerate the figures of the transfer results, row by row; may be cut at any moment and repeated."""

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

if not __package__:  # started as a file: Python then looks in scripts/ and not in the folder above it
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from agents.actor import load_actor
from agents.outcome import ACTOR
from agents.run import Run
from agents.source import load_source, prepare_device
from agents.transfer import Transfer
from amc.errors import UserError
from envs.problem import Problem, build_problem
from scripts import pretrain
from scripts.cli import run as run_script
from scripts.progress import SearchProgress
from scripts.results_runner import Rows, Runner
from scripts.results_runs import Figures, read_seconds, searched
from scripts.transfer_rows import (
    LEVEL_BUDGETS,
    SMALL,
    Group,
    Spec,
    TransferResults,
    check_apart,
    command,
    level_config,
    networks_of,
    plan,
    source,
    training_settings,
    transfer_config,
)
from scripts.transfer_verdicts import tables

SMALL_EPOCHS = 16


def main(options: TransferResults) -> None:
    """Make the missing rows of the transfer results, in order; may be cut anywhere and repeated."""
    rows = runner(options)
    rows.run(rows.chosen(plan(), options.only), options)


def runner(options: TransferResults) -> Runner[Spec]:
    """What makes and keeps the rows."""
    return Runner(
        options.out,
        key=lambda spec: spec.name,
        make=lambda spec: make_row(options, spec),
        about=lambda spec: {"command": command(spec)},
        summary=summary,
        prepare=lambda missing: prepare(options, missing),
    )


def prepare(options: TransferResults, missing: list[Spec]) -> list[Spec]:
    """The rows whose weights are here or can be made, with a sentence about the others; sets the threads.

    Raises:
        UserError: nothing can be made here, or the settings make no sense.
    """
    check_apart()
    if options.threads < 1:
        raise UserError("--threads must be at least 1.")
    torch.set_num_threads(options.threads)
    possible = []
    for spec in missing:
        needed = (spec.network, *(spec.group.training if spec.part == "transfer" else ()))
        absent = [name for name in needed if name not in SMALL and not options.weights(name).is_file()]
        if not absent:
            possible.append(spec)
        else:
            print(f"{spec.name} is skipped: there is no {options.weights(absent[0])}.", file=sys.stderr)
    if missing and not possible:
        raise UserError(f"None of the {len(missing)} missing rows can be made without weights.")
    return possible


def make_row(options: TransferResults, spec: Spec) -> Figures:
    """The figures of a row."""
    for network in networks_of(spec.group):
        train_small(options, network)
    if spec.part == "levels":
        return range_row(options, spec) if spec.how == "one" else single_row(options, spec)
    return unadapted_row(options, spec) if spec.evaluations == "0" else transfer_row(options, spec)


def train_small(options: TransferResults, network: str) -> None:
    """Train one of the small networks, unless an earlier call has."""
    about = source(options, network)
    assert about.weights is not None
    if network not in SMALL or about.weights.is_file():
        return
    pretrain.main(
        pretrain.Pretrain(
            about.model,
            about.data,
            side=about.side,
            epochs=SMALL_EPOCHS,
            threads=options.threads,
            device="cpu",
            out=about.weights,
            force=True,
        )
    )


def range_row(options: TransferResults, spec: Spec) -> Figures:
    """One agent on the whole range: the uniform, the best and the actor's policy at the compared budgets."""
    with searched(folder(options, spec), level_config(options, spec, "")) as run:
        levels = {each.case: {} for each in run.outcomes() if each.case}  # type: dict[str, dict[str, Any]]
        for each in run.outcomes():
            if each.case:
                levels[each.case][each.name] = scores(each.reward_score, each.test_score)
        return {"levels": levels, **spent(run), **originals(run)}


def single_row(options: TransferResults, spec: Spec) -> Figures:
    """An agent for each budget: the best policy of each."""
    levels: dict[str, dict[str, Any]] = {}
    total: Figures = {"evaluations": 0, "search_seconds": 0.0}
    for budget in LEVEL_BUDGETS:
        place = folder(options, spec) / budget
        with searched(place, level_config(options, spec, budget)) as run:
            told = {each.name: each for each in run.outcomes()}
            actor = load_actor(run)
            assert actor is not None
            policy = actor.policy(run.problem.walk())
            alone = run.evaluator([policy])[0].score, run.task.score(run.evaluator.compressed(policy), "test")
            levels[f"macs={budget}"] = {
                **{name: scores(each.reward_score, each.test_score) for name, each in told.items()},
                ACTOR: scores(*alone),
            }
            found = spent(run)
            total = {name: total[name] + found[name] for name in total}
            about = originals(run)
    return {"levels": levels, **total, "seconds": total["search_seconds"], **about}


def transfer_row(options: TransferResults, spec: Spec) -> Figures:
    """A search on a held-out network, from a trained agent or from scratch."""
    if spec.how == "adapted":
        trained_agent(options, spec.group, spec.seed)
    config = transfer_config(options, spec, training_folder(options, spec.group, spec.seed))
    with searched(folder(options, spec), config) as run:
        told = {each.name: each for each in run.outcomes()}
        best = told[run.algorithm]
        return {
            "uniform": scores(told["uniform"].reward_score, told["uniform"].test_score),
            "best": scores(best.reward_score, best.test_score),
            **spent(run),
            **originals(run),
        }


def unadapted_row(options: TransferResults, spec: Spec) -> Figures:
    """The trained actor's own policy on a held-out network; measured once, and nothing learned from it."""
    transfer = trained_agent(options, spec.group, spec.seed)
    actor = transfer.actor()
    config = transfer_config(options, spec, transfer.folder)
    with ExitStack() as stack:
        problem = opened(options, spec.network, config.problem, stack)
        walk = problem.walk()
        policies = {"uniform": problem.uniform_policy(), "best": actor.policy(walk)}
        found = {
            name: scores(
                problem.evaluator([policy])[0].score,
                problem.task.score(problem.evaluator.compressed(policy), "test"),
            )
            for name, policy in policies.items()
        }
        images = {f"{split}_images": len(problem.task.data.split(split)) for split in ("reward", "test")}
        return {**found, **images, "evaluations": 0, "original_reward": problem.original_score}


def trained_agent(options: TransferResults, group: Group, seed: str) -> Transfer:
    """The agent of a group's training networks: trained, continued, or as it is."""
    settings, agent, search = training_settings(group, seed)
    with ExitStack() as stack:
        for network in group.training:
            train_small(options, network)
        problems = {name: opened(options, name, settings, stack) for name in group.training}
        transfer = Transfer(training_folder(options, group, seed), problems, agent, search)
        if len(transfer.log) < search.evaluations:
            with SearchProgress(search.evaluations, transfer.log) as progress:
                ending = transfer.train((progress,)).ending
            if ending == "interrupted":
                raise KeyboardInterrupt("; repeat the command to go on")
        return transfer


def opened(options: TransferResults, network: str, settings: Any, stack: ExitStack) -> Problem:
    """A network as a problem that is closed with the stack."""
    about = source(options, network)
    device = prepare_device(about)
    problem = build_problem(*load_source(about), settings, device)
    stack.callback(problem.close)
    return problem


def scores(reward: float, test: float) -> dict[str, float]:
    """Both scores of a network."""
    return {"reward": reward, "test": test}


def spent(run: Run) -> Figures:
    """Evaluations and seconds of a search."""
    seconds = max(read_seconds(run.folder).values(), default=0.0)
    return {"evaluations": len(run.log), "search_seconds": seconds, "seconds": seconds}


def originals(run: Run) -> Figures:
    """What the scores are compared with."""
    original = run.outcomes()[0]
    return {
        "original_reward": original.reward_score,
        "original_test": original.test_score,
        "reward_images": len(run.task.data.reward),
        "test_images": len(run.task.data.test),
    }


def folder(options: TransferResults, spec: Spec) -> Path:
    """The run directory of a row, or the folder of its run directories."""
    return options.runs / spec.name.replace("/", "-")


def training_folder(options: TransferResults, group: Group, seed: str) -> Path:
    """Where the agent of several networks is trained."""
    return options.runs / f"trained-{group.data}-{seed}"


def summary(rows: Rows) -> dict[str, Any]:
    """One object a row, for those who draw and compare."""
    levels = [
        {
            **{name: row[name] for name in ("network", "how", "seed", "evaluations")},
            "level": level,
            "policy": policy,
            **found,
        }
        for row in rows.values()
        if row["part"] == "levels"
        for level, policies in row["levels"].items()
        for policy, found in policies.items()
    ]
    keys = ("network", "budget", "how", "evaluations", "seed")
    transfers = [
        {**{name: row[name] for name in keys}, "uniform": row["uniform"], "best": row["best"]}
        for row in rows.values()
        if row["part"] == "transfer"
    ]
    return {"levels": levels, "transfer": transfers, "tables": tables(rows)}


if __name__ == "__main__":
    torch.manual_seed(0)
    run_script(main)
