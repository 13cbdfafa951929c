"""Which networks of timm and torchvision can be compressed: each is traced, halved, exported and compared."""

import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

if not __package__:  # started as a file: Python then looks in scripts/ and not in the folder above it
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from torch import Tensor, nn

from amc.compress import ChannelPruning, apply
from amc.costs.budget import check_reachable, parse_budget
from amc.costs.symbolic import original_table, symbolic_costs
from amc.errors import UserError
from amc.export import check_export, export_onnx, export_tflite
from amc.groups import COMPRESSIBLE
from amc.knobs import WidthKnob
from amc.models import build_model
from amc.network import Network, trace
from amc.policy import CompressionPolicy
from amc.pruning.importance import rank_channels
from amc.reference import complete_uniformly
from amc.slicing import mask_group
from amc.space import Space
from scripts.architectures_page import write_architectures
from scripts.cli import run as run_script
from scripts.results_runner import Row, RowOptions, Rows, Runner

BUDGET = "macs=0.5"
CLASSES, SIDE, IMAGES = 10, 64, 4
TIMM = (
    *("resnet18", "resnet26d", "resnetv2_18", "resnext26ts", "seresnet18", "skresnet18"),
    *("res2net50_14w_8s", "regnetx_002", "regnety_002", "mobilenetv2_100", "mobilenetv3_small_100"),
    *("mobilenetv4_conv_small", "efficientnet_b0", "efficientnet_lite0", "mnasnet_small", "fbnetc_100"),
    *("tf_mixnet_s", "hardcorenas_a", "lcnet_050", "tinynet_e", "rexnet_100", "ghostnet_100", "vgg11_bn"),
    *("densenet121", "dla34", "hrnet_w18_small", "repvgg_a0", "mobileone_s0", "fastvit_t8", "darknet53"),
    *("cspresnet50", "cspdarknet53", "xception41", "inception_v3", "convnext_atto", "edgenext_xx_small"),
    *("nfnet_l0", "dpn48b", "selecsls42b"),
)
TORCHVISION = ("squeezenet1_1", "shufflenet_v2_x0_5", "googlenet", "mobilenet_v3_small")
SIDES = {"inception_v3": 96, "torchvision:googlenet": 96}
"""Pixels where 64 are too few for a network."""


@dataclass(frozen=True)
class Architectures(RowOptions):
    """Options; rows that the output already has are made again only with --again."""

    only: str = "*"
    """Make the rows whose names match this shell pattern, as in 'timm:resnet*'."""
    out: Path = Path("docs/results/architectures.json")
    """Figures file; every finished row is written at once, and the page beside it."""
    threads: int = 1
    """CPU threads."""


@dataclass(frozen=True)
class Spec:
    """One row: an architecture by the name that `--model` takes."""

    model: str

    @property
    def name(self) -> str:
        """The row's key."""
        return self.model

    @property
    def side(self) -> int:
        """Height and width of its images."""
        return SIDES.get(self.model.removeprefix("timm:"), SIDE)

    def to_json(self) -> dict[str, Any]:
        """The fields."""
        return {**asdict(self), "side": self.side}


def main(options: Architectures) -> None:
    """Make the missing rows of the table of architectures; may be cut anywhere and repeated."""
    torch.set_num_threads(options.threads)
    runner = Runner[Spec](
        options.out,
        key=lambda spec: spec.name,
        make=measured,
        about=lambda spec: {"command": f"python -m scripts.architectures --only '{spec.name}'"},
        summary=summary,
        prepare=list,
    )
    runner.run(runner.chosen(plan(), options.only), options)
    if not options.list:
        write_architectures(options.out, runner.rows(), [spec.name for spec in plan()])


def plan() -> list[Spec]:
    """Every row."""
    return [*(Spec(f"timm:{name}") for name in TIMM), *(Spec(f"torchvision:{name}") for name in TORCHVISION)]


def summary(rows: Rows) -> dict[str, Any]:
    """How many of the rows are networks that were halved."""
    return {"compressed": sum("refused" not in row for row in rows.values())}


def measured(spec: Spec) -> Row:
    """The figures of a row; a network that cannot be halved gives the reason in the place of figures."""
    torch.manual_seed(0)
    model = with_lively_norms(build_model(spec.model, CLASSES))
    try:
        network = trace(model, torch.randn(1, 3, spec.side, spec.side))
    except UserError as error:
        return {"refused": str(error)}
    found = described(network)
    try:
        return {**found, **compressed(network)}
    except UserError as error:
        return {**found, "refused": str(error)}


def with_lively_norms(model: nn.Module) -> nn.Module:
    """Batch norms as training leaves them: fresh ones hide what a wrong cut would break."""
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.running_mean = torch.empty_like(norm.bias).uniform_(-0.2, 0.2)
        norm.running_var = torch.empty_like(norm.bias).uniform_(0.5, 1.5)
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.bias, -0.2, 0.2)
    return model


def described(network: Network) -> Row:
    """What there is to decide, and what cannot be."""
    frozen = network.frozen_reasons()
    reasons = {name: why for name, why in frozen.items() if "network's output" not in why}
    return {
        "decision_points": len(network.layers),
        "channel_groups": len(network.groups),
        "frozen_groups": len(reasons),
        "frozen": reasons,
        "macs": network.macs,
    }


def compressed(network: Network) -> Row:
    """Half of the MACs by the uniform policy: what the network then costs, and whether its files are right.

    Raises:
        UserError: the budget cannot be kept, or the network cannot be exported.
    """
    space = Space(network, (WidthKnob(),))
    costs = symbolic_costs(space)
    original = {name: costs[name].of(original_table(network, space)) for name in ("macs", "params")}
    budget = parse_budget(BUDGET, costs, original)
    check_reachable([budget], space)
    table = complete_uniformly(space, space.empty(), [budget])
    policy = space.policy(table)
    pruning = ChannelPruning(rank_channels(network))
    model = apply(policy, network, [pruning]).eval()
    images = torch.randn(IMAGES, *network.example.shape[1:])
    found = {"macs_after": costs["macs"].of(table), "params": original["params"]}
    return {
        **found,
        "params_after": costs["params"].of(table),
        "macs_counted": counted_macs(model, images[:1]),
        "masked_error": masked_error(network, pruning, policy, model, images),
        **exported(model, images),
    }


def counted_macs(model: nn.Module, image: Tensor) -> int:
    """Multiply-accumulates of layers, counted while the network runs on one image."""
    counts: list[int] = []
    handles = [
        module.register_forward_hook(lambda m, _, y: counts.append(m.weight.numel() * _positions(m, y)))
        for module in model.modules()
        if type(module) in COMPRESSIBLE
    ]
    with torch.no_grad():
        model(image)
    for handle in handles:
        handle.remove()
    return sum(counts)


def _positions(module: nn.Module, output: Tensor) -> int:
    return output[0, 0].numel() if isinstance(module, nn.Conv2d) else output[0, ..., 0].numel()


@torch.no_grad()
def masked_error(
    network: Network, pruning: ChannelPruning, policy: CompressionPolicy, model: nn.Module, images: Tensor
) -> float:
    """How far the small network is from the whole one with the same channels silenced, relative."""
    masked = network.copy()
    kept = pruning.kept(network, policy)
    for group in (group for group in network.groups if group.name in kept):
        dropped = torch.ones(group.channels, dtype=torch.bool)
        dropped[kept[group.name]] = False
        mask_group(masked, group, dropped)
    expected = masked(images)
    return float((model(images) - expected).abs().max() / expected.abs().max())


def exported(model: Any, images: Tensor) -> Row:
    """The largest relative error of every runtime, or why there is no file for it."""
    found: Row = {}
    with tempfile.TemporaryDirectory() as folder:
        file = export_onnx(model, images[:1], Path(folder) / "model.onnx")
        found["exporter"] = "amc" if file.unsupported is None else f"torch ({file.unsupported})"
        errors = check_export(file.path, model, images)
        try:
            errors |= check_export(
                export_tflite(model, images[:1], Path(folder) / "model.tflite").path, model, images
            )
        except UserError as error:
            found["litert"] = str(error)
    return {**found, **{name: agreement.relative_error for name, agreement in errors.items()}}


if __name__ == "__main__":
    run_script(main)
