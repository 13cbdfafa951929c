"""The scattering section of the operator page."""

from collections.abc import Sequence

from scripts.operator_rows import SCATTERED
from scripts.operator_scattering import RECIPES, SIZE_BUDGET, WIDTH
from scripts.results_page import Table, shown
from scripts.results_runner import Row


def scattering_section(rows: Sequence[Row]) -> tuple[dict[str, Table], list[str]]:
    """Both tables, and the section of the page."""
    pairs, agent = pair_table(rows), agent_table(rows)
    recipes = ", ".join(f"{recipe.epochs} epochs on {data}" for data, recipe in RECIPES.items())
    parts = [
        "## Scattering coefficients in the place of pixels",
        "The hybrid reads order-0 and order-1 coefficients; its twin has the same trunk behind learned "
        "strided convolutions. *Input ratio* is the numbers of the image over those of its coefficients, "
        "4^J / (1 + 8 J): at J = 2 the coefficients are 6 % *more* numbers than the image, at 32 pixels as "
        "at any other size, and compression starts at J = 3. MACs include the scattering stage, which runs "
        "as convolutions; a negative saving is a cost. *Commonest* is the share of the commonest class of "
        "the test split. All are shrunk, by the time of a training step on one core, so that a row "
        "takes less than 20 minutes: "
        f"{WIDTH:g} of the channels, {recipes}, one seed. `voc-crops` are the cells of BCCD, 64 pixels, "
        "three classes.",
        shown(pairs),
        f"The agent compresses a hybrid like any other network, here under {SIZE_BUDGET}: its stage keeps "
        "its MACs and takes nothing of a file.",
        shown(agent),
        "`python -m scripts.operator_results --only 'scattering/*' --data-root FOLDER --voc-root FOLDER` "
        'makes these rows; they need `pip install "amc-compress[scattering]"`.',
    ]
    return {"scattering": pairs, "scattering_agent": agent}, parts


def pair_table(rows: Sequence[Row]) -> Table:
    """One line a hybrid, beside its twin where that is there."""
    twins = {(row["network"], row["setting"]): row for row in rows if not row.get("arm")}
    table = []
    for (network, data), row in twins.items():
        if not network.startswith("scattering"):
            continue
        twin = twins.get((network.replace("scattering", "strided"), data))
        table.append(
            {
                "data": data,
                "pixels": row["side"],
                "J": int(network[-1]),
                "input ratio": f"{row['compression']:.2f}",
                "MMACs": mega(row["macs"]),
                "of them the stage": mega(row["stage_macs"]),
                "twin's MMACs": mega(twin["macs"]) if twin else "",
                "saved": f"{1 - row['macs'] / twin['macs']:.0%}" if twin else "",
                "accuracy": f"{row['test']:.2%}",
                "twin's accuracy": f"{twin['test']:.2%}" if twin else "",
                "commonest": f"{row['commonest']:.2%}",
            }
        )
    return table


def agent_table(rows: Sequence[Row]) -> Table:
    """One line a compressed hybrid."""
    return [
        {
            "data": row["setting"],
            "J": int(row["network"][-1]),
            "budget": row["budget"],
            "evaluations": row["evaluations"],
            "original": f"{row['test_original']:.2%}",
            "un-tuned": f"{row['test_untuned']:.2%}",
            "MACs": f"{row['macs_share']:.2%}",
            "size": f"{row['size_share']:.2%}",
        }
        for row in rows
        if row.get("arm") == SCATTERED
    ]


def mega(count: float) -> str:
    """Millions with two digits."""
    return f"{count / 1e6:.2f}"
