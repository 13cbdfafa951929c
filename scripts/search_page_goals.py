"""Sections of the page of the search results on the paper's other goals: fewest parameters and weights."""

from collections.abc import Sequence

from scripts.results_page import NOTHING, markdown_table
from scripts.results_runner import Row
from scripts.search_page_measured import command

PAPER_REMOVED = 0.6
"""Share of the parameters that AMC removed from a ResNet-50 on CIFAR-10 without loss (ECCV 2018)."""
SEEN = "The weights have seen the images of the reward split: drops on it say little about new images."


def smallest(rows: Sequence[Row]) -> list[str]:
    """The smallest networks within a drop, by the reward that led to them."""
    title = "## The smallest network within a drop"
    made = [row for row in rows if row["part"] == "smallest"]
    if not made:
        return [title, NOTHING]
    said = (
        f"`--goal cost --minimize params --max-drop {made[0]['max_drop']:g}`: the fewest parameters among "
        "the policies whose score on the reward split, before any fine-tuning, is within the drop. `default` "
        "and `paper` (-error x log parameters) are what the agent is paid. Shortened to "
        f"{made[0]['evaluations']} evaluations and {made[0]['epochs']} epochs of fine-tuning."
    )
    headings = ["network, reward", "parameters left", "MACs left", "reward split", "points", "within"]
    headings += ["test un-tuned", "points", "test fine-tuned", "points"]
    table = markdown_table(headings, [smallest_line(row) for row in made])
    anchor = (
        f"The paper's anchor is a ResNet-50 with {PAPER_REMOVED:.0%} of its parameters removed at no loss on "
        "the test split. Here:"
    )
    goals = "\n".join(smallest_goal(row) for row in made)
    seen = [SEEN] if any(row["seen"] for row in made) else []
    return [title, said, *seen, table, anchor, goals, command("smallest/*")]


def smallest_line(row: Row) -> list[str]:
    """One search."""
    return [
        f"{row['network']}, {row['variant']}",
        f"{row['kept']['params']:.1%}",
        f"{row['kept']['macs']:.1%}",
        *scored(row["reward_accuracy"], row["original_reward"]),
        "yes" if row["feasible"] else "**no**",
        *scored(row["test_untuned"], row["original_test"]),
        *scored(row["test_tuned"], row["original_test"]),
    ]


def smallest_goal(row: Row) -> str:
    """One search against the anchor."""
    removed, gained = 1.0 - row["kept"]["params"], row["test_tuned"] - row["original_test"]
    met = "met" if removed >= PAPER_REMOVED and gained >= 0 else "**missed**"
    return (
        f"* {row['network']}, {row['variant']}: {removed:.1%} removed, {100 * gained:+.2f} points after "
        f"fine-tuning: {met}."
    )


def sparse(rows: Sequence[Row]) -> list[str]:
    """Fine-grained pruning, stage by stage."""
    title = "## Fine-grained pruning"
    made = [row for row in rows if row["part"] == "fine-grained"]
    if not made:
        return [title, NOTHING]
    parts = [
        title,
        "`--budget nonzeros=...` lets the agent choose the density of every layer; "
        "`scripts.prune_iteratively` goes there in the paper's stages. **No CPU target here runs the result "
        "any faster**: its zeros are single weights, and only a packed file is smaller.",
    ]
    for row in made:
        parts += [
            f"### {row['network']}, {row['kept']['nonzeros']:.1%} of the weights",
            f"{row['evaluations']} evaluations of {row['searcher']}, {row['epochs']} epoch(s) a stage. "
            f"{sparse_goal(row)}",
            markdown_table(["", "reward split", "test", "points"], sparse_lines(row)),
        ]
    return [*parts, command("fine-grained/*")]


def sparse_lines(row: Row) -> list[list[str]]:
    """The original, the densities without any training, and each stage after its own."""
    untuned = ["found, un-tuned", f"{row['reward_accuracy']:.2%}"]
    return [
        ["original", f"{row['original_reward']:.2%}", f"{row['original_test']:.2%}", ""],
        ["one density for all layers, un-tuned", "", *scored(row["test_uniform"], row["original_test"])],
        [*untuned, *scored(row["test_untuned"], row["original_test"])],
        *(
            [name, f"{score['reward']:.2%}", *scored(score["test"], row["original_test"])]
            for name, score in row["stages"].items()
        ),
    ]


def sparse_goal(row: Row) -> str:
    """The last stage against the paper's claim."""
    gained = row["test_tuned"] - row["original_test"]
    met = "met" if gained >= 0 else "**missed**"
    return f"The paper's claim for a ResNet-50 is no loss at 20 %; here {100 * gained:+.2f} points: {met}."


def scored(accuracy: float, original: float) -> list[str]:
    """An accuracy and by how many points it differs from the original's."""
    return [f"{accuracy:.2%}", f"{100 * (accuracy - original):+.2f}"]
