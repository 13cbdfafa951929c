"""TensorBoard curves of a search; the x axis counts evaluations, from 1."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from agents.figures import figure_image, keep_ratios, policy_figure
from agents.log import EvaluationLog, Row


class TensorBoardWriter:
    """A callback of `search` that draws each row.

    Everything drawn is in the evaluation log, so a resumed search draws the log from its first row and
    tells TensorBoard to forget the rest (`purge_step`): no step is there twice, and none is lost that the
    killed process had not flushed.

    Tags: `search/reward`, `search/score`, `search/best_reward`, `costs/<name>`, `agent/sigma`,
    `agent/critic_loss`, `agent/actor_loss`, `keep_ratio/<point>` (`width/<point>` without original widths),
    `weight_bits/<point>`, `activation_bits/<point>`, `density/<point>`; `search/layers_left_out` where
    residual blocks may go, whose layers then have a `keep_ratio` of 0; the best policy as image and text
    `best_policy`, the settings as text `configuration`. Where budgets are drawn from a range, curves of the
    best so far are those of each level: `best_reward/<level>` and `best_score/<level>`.
    """

    def __init__(
        self,
        folder: Path,
        log: EvaluationLog,
        configuration: Mapping[str, Any],
        original_widths: Mapping[str, int] | None = None,
    ):
        """Open the events of a run.

        Args:
            folder: where the event files go.
            log: rows that exist already are drawn at once.
            configuration: setting names to values, for the table and the hyper-parameters.
            original_widths: output channels of the uncompressed layers by point.
        """
        self._configuration = configuration
        self._original_widths = original_widths
        self._writer = SummaryWriter(str(folder), purge_step=0 if log.rows else None)
        self._writer.add_text("configuration", _markdown_table(configuration), 0)
        for row in log.rows:
            self._scalars(row, log)
        best = log.best()
        if best is not None:
            self._best_policy(best)
        self._writer.flush()

    def __call__(self, row: Row, log: EvaluationLog) -> None:
        """Draw one new row."""
        self._scalars(row, log)
        if row.best_index == row.index:
            self._best_policy(row)
        self._writer.flush()

    def close(self, final: Mapping[str, float]) -> None:
        """Write the hyper-parameters with the final figures, and close the file.

        Args:
            final: names to numbers, such as the test accuracy of the best policy.
        """
        simple = (bool, int, float, str)
        settings = {k: v if isinstance(v, simple) else str(v) for k, v in self._configuration.items()}
        figures = {f"final/{name}": float(value) for name, value in final.items()}
        # `SummaryWriter.add_hparams` would open a second run in a folder of its own.
        for summary in hparams(settings, figures):
            self._writer._get_file_writer().add_summary(summary)
        for name, value in figures.items():
            self._writer.add_scalar(name, value, 0)
        self._writer.close()

    def _scalars(self, row: Row, log: EvaluationLog) -> None:
        curves = {
            "search/reward": row.reward,
            "search/score": row.score,
            **_best_curves(row, log),
            **{f"costs/{name}": value for name, value in row.costs.items()},
            **{f"agent/{name}": value for name, value in row.metrics.items()},
            **self._layer_curves(row),
        }
        if self._configuration.get("drop_blocks"):
            curves["search/layers_left_out"] = len(row.policy.removed)
        for tag, value in curves.items():
            self._writer.add_scalar(tag, value, row.index + 1)

    def _layer_curves(self, row: Row) -> dict[str, float]:
        curves: dict[str, float] = {
            f"{knob}/{decision.point}": value
            for decision in row.policy.decisions
            for knob, value in decision.values.items()
            if knob != "width" or self._original_widths is None
        }
        if self._original_widths is not None:
            ratios = keep_ratios(row.policy, self._original_widths)
            curves.update({f"keep_ratio/{point}": ratio for point, ratio in ratios.items()})
        return curves

    def _best_policy(self, row: Row) -> None:
        case = f"{row.case}, " if row.case else ""
        title = f"{case}evaluation {row.index + 1}: reward {row.reward:.3f}, score {row.score:.4f}"
        if row.policy.removed:
            title += f", {len(row.policy.removed)} layers left out"
        image = figure_image(policy_figure(row.policy, self._original_widths, title))
        self._writer.add_image("best_policy", image, row.index + 1, dataformats="HWC")
        text = json.dumps(row.policy.to_json(), indent=1)
        self._writer.add_text("best_policy", f"{title}\n\n```json\n{text}\n```", row.index + 1)


def _best_curves(row: Row, log: EvaluationLog) -> dict[str, float]:
    """The best so far, of the row's own level where there are several."""
    best = log.rows[row.best_index]
    if not row.case:
        return {"search/best_reward": best.reward}
    level = row.case.replace("=", "")  # TensorBoard's filter reads that sign
    return {f"best_reward/{level}": best.reward, f"best_score/{level}": best.score}


def _markdown_table(configuration: Mapping[str, Any]) -> str:
    rows = [f"| {name} | {str(value).replace('|', '/')} |" for name, value in configuration.items()]
    return "\n".join(["| setting | value |", "|---|---|", *rows])
