"""What the page of the search results says of the comparisons: who wins where, and which goals are met."""

from collections.abc import Sequence

from scripts.results_page import labelled
from scripts.results_runner import Row
from scripts.search_comparison import Difference, Setting
from scripts.search_rows import FIXED, HEADLINE, Spec

UNTUNED_GOAL, TUNED_GOAL = 0.020, 0.004
"""Of ResNet-56 at half of the MACs: accuracy that may be lost."""
PAPER = {"un-tuned": -0.027, "fine-tuned": -0.009}
"""What AMC lost there (He et al., ECCV 2018)."""
RIVALS = ("random", "bayes", "evolution", "balanced", "uniform", "shallow", "deep")


def winner(setting: Setting) -> str:
    """Who has the best mean on the reward split, who ties with it, and who is behind."""
    ranked = sorted(setting.searchers, key=setting.mean, reverse=True)
    best = ranked[0]
    said = {name: against(setting, best, name) for name in ranked[1:]}
    ties = [text for name, (tie, text) in said.items() if tie]
    behind = [text for name, (tie, text) in said.items() if not tie]
    parts = [f"**{best}** has the best mean ({setting.mean(best):.2%})"]
    parts += [f"tied with it: {', '.join(ties)}"] if ties else []
    parts += [f"behind it: {', '.join(behind)}"] if behind else []
    return f"* {setting.caption}: {'; '.join(parts)}."


def against(setting: Setting, best: str, other: str) -> tuple[bool, str]:
    """Whether two searchers tie, and by how much the first is better."""
    found = setting.difference(best, other) or flipped(setting.difference(other, best))
    if found is None:
        return False, f"{other} (no seed in common)"
    return setting.is_tie(found), f"{other} by {found}"


def flipped(difference: Difference | None) -> Difference | None:
    """The difference seen from the other side."""
    return difference and Difference(-difference.mean, difference.error, difference.pairs)


def differences(setting: Setting) -> list[list[str]]:
    """Table lines: DDPG against every other searcher here, on both splits."""
    rows = []
    for rival in RIVALS:
        reward = setting.difference("ddpg", rival)
        test = setting.difference("ddpg", rival, "test_untuned")
        if reward and test:
            verdict = "tie" if setting.is_tie(reward) else "better" if reward.mean > 0 else "**worse**"
            rows.append([setting.caption, rival, str(reward.pairs), str(reward), str(test), verdict])
    return rows


def search_goal(settings: Sequence[Setting]) -> list[str]:
    """DDPG above random everywhere, and not below Bayesian optimization."""
    said = []
    for setting in settings:
        above, level = (setting.difference("ddpg", rival) for rival in ("random", "bayes"))
        said += (
            [f"on {setting.title} DDPG is not above random ({above})"] if above and above.mean <= 0 else []
        )
        if level and level.mean < 0:
            tie = ", a tie" if setting.is_tie(level) else ""
            said.append(f"on {setting.title} DDPG is below bayes ({level}{tie})")
    judged = [s for s in settings if s.difference("ddpg", "random") and s.difference("ddpg", "bayes")]
    if said:
        return [f"**Goal missed** (DDPG's mean above random's and not below bayes'): {'; '.join(said)}."]
    if not judged:
        return ["Whether DDPG is above random and not below bayes is not decided yet."]
    open_ = [setting.title for setting in settings if setting not in judged]
    where = f"on {len(judged)} of {len(settings)} settings searched"
    rest = f"; not decided yet: {'; '.join(open_)}" if open_ else ""
    return [f"DDPG's mean is above random's and not below bayes' {where}{rest}."]


def anchors(rows: Sequence[Row]) -> list[str]:
    """ResNet-56 at half of the MACs: points lost on the test split, against the goal and the paper."""
    network, budget, searcher = HEADLINE
    lines = []
    for name, limit, (made, lost) in (
        ("un-tuned", UNTUNED_GOAL, untuned_losses(rows)),
        ("fine-tuned", TUNED_GOAL, tuned_losses(rows)),
    ):
        if not lost:
            lines.append(f"* {network}, {name}: not measured yet (goal {-100 * limit:+.1f}).")
            continue
        mean = round(sum(lost) / len(lost), 6)
        verdict = "goal met" if mean >= -limit else "**goal missed**"
        over = f"mean of {len(lost)} seeds" if len(lost) > 1 else "one seed"
        lines.append(
            f"* {network} at {float(budget):.0%}, {searcher}, {labelled(name, made)}: {100 * mean:+.2f} "
            f"points ({over}); goal {-100 * limit:+.1f}, the paper {100 * PAPER[name]:+.1f}: {verdict}."
        )
    return ["\n".join(lines)]


def untuned_losses(rows: Sequence[Row]) -> tuple[list[Row], list[float]]:
    """The headline's searches, and the test accuracy that each one's network lost, negative."""
    made = [row for row in rows if is_headline(row, "table")]
    return made, [row["best"][-1]["test_untuned"] - row["original_test"] for row in made]


def tuned_losses(rows: Sequence[Row]) -> tuple[list[Row], list[float]]:
    """The longest fine-tuning of the headline's network, and the test accuracy still lost, negative."""
    tuned = [row for row in rows if is_headline(row, "headline") or is_headline(row, "tuned")]
    longest = max((row["epochs"] for row in tuned), default=0)
    made = [row for row in tuned if row["epochs"] == longest]
    return made, [row["test_tuned"] - row["original_test"] for row in made]


def is_headline(row: Row, part: str) -> bool:
    """Whether a row of this part is about the headline's network, budget and searcher."""
    network, budget, searcher = HEADLINE
    wanted = {"part": part, "network": network, "budget": budget, "searcher": searcher}
    return "variant" not in row and all(row.get(key) == value for key, value in wanted.items())


def unmeasured(specs: Sequence[Spec]) -> list[str]:
    """Missing rows as list lines; those that differ in the seed only share one."""
    seeds: dict[str, list[str]] = {}
    for spec in specs:
        fields = [spec.part, spec.network, spec.budget, spec.searcher, spec.variant]
        name = "/".join(field for field in fields if field)
        seeds.setdefault(name, []).extend([spec.seed] if spec.seed and spec.searcher not in FIXED else [])
    return [
        f"* `{name}`" + (f": seed{'s' if len(found) > 1 else ''} {', '.join(found)}" if found else "")
        for name, found in seeds.items()
    ]
