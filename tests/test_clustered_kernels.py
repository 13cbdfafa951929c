"""Kernels from a codebook: clustering, the convolution that rebuilds them, what it stores."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amc.decomposition.clustered_conv import (
    SEARCH_ITERATIONS,
    ClusteredConv2d,
    ClusteredKernels,
    Codebook,
    cluster_layers,
    clustered,
    storage_bytes,
)
from amc.decomposition.clustered_kernels import (
    POSES,
    cluster_kernels,
    normalised,
    pose_permutations,
    posed,
)
from amc.decomposition.operator import legal_amounts
from amc.errors import UserError
from amc.export import check_export, export_onnx
from amc.export.tflite import export_tflite
from amc.network import trace
from amc.slicing import clone_module


def random_kernels(count: int = 500, side: int = 3) -> Tensor:
    return torch.randn(count, side, side, generator=torch.Generator().manual_seed(0))


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU()),
        *(nn.Conv2d(12, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)),
    ).eval()


def test_the_eight_poses_are_different_and_closed():
    poses = {tuple(row.tolist()) for row in pose_permutations(3, 8)}
    assert len(poses) == 8
    for count in (2, 4, 8):
        rows = pose_permutations(3, count)
        known = {tuple(row.tolist()) for row in rows}
        assert {tuple(a[b].tolist()) for a in rows for b in rows} == known


def test_turning_back_undoes_a_pose():
    """Each is its own inverse but the quarter turns, which undo each other (the paper's order)."""
    rows = pose_permutations(3, 8).tolist()
    inverse = [rows.index(torch.tensor(row).argsort().tolist()) for row in rows]
    assert inverse == [0, 1, 2, 3, 7, 5, 6, 4]


def test_posed_centroids_are_where_the_index_says():
    kernels = random_kernels(5)
    table = posed(kernels.flatten(1), pose_permutations(3, 8)).reshape(8, 5, 3, 3)
    for t, pose in enumerate(POSES):
        assert torch.equal(table[t], pose(kernels))


@pytest.mark.parametrize("poses", [1, 2, 4, 8])
def test_the_cost_never_rises(poses: int):
    costs = cluster_kernels(random_kernels(), 8, poses).costs
    assert len(costs) > 3
    assert all(later <= earlier * (1 + 1e-5) for earlier, later in pairwise(costs))


def test_with_one_pose_it_is_plain_k_means():
    kernels = random_kernels(200)
    found = cluster_kernels(kernels, 6, poses=1)
    points = normalised(kernels)[0]
    nearest = torch.cdist(points, found.centroids.flatten(1)).argmin(dim=1)
    assert torch.equal(nearest, found.index)
    for label in range(6):
        mean = points[found.index == label].mean(dim=0)
        assert torch.allclose(mean, found.centroids[label].flatten(), atol=1e-5)


def test_with_as_many_centroids_as_distinct_kernels_nothing_is_lost():
    kernels = random_kernels(7)
    repeated = torch.cat([kernels, -2 * kernels, 0.5 * kernels])
    found = cluster_kernels(repeated, 7, poses=1)
    assert torch.allclose(found.kernels(1), repeated, atol=1e-5)


def test_one_centroid_serves_all_poses_of_a_kernel():
    kernel = random_kernels(1)[0]
    turned = torch.stack([scale * pose(kernel) for scale, pose in zip(range(1, 9), POSES, strict=True)])
    assert torch.allclose(cluster_kernels(turned, 1, poses=8).kernels(8), turned, atol=1e-5)
    assert not torch.allclose(cluster_kernels(turned, 1, poses=4).kernels(4), turned, atol=1e-2)


def test_more_poses_lower_the_cost_of_equally_many_centroids():
    costs = [cluster_kernels(random_kernels(2000), 16, poses).costs[-1] for poses in (1, 2, 4, 8)]
    assert costs == sorted(costs, reverse=True)


def test_centroids_are_sorted_by_frequency():
    found = cluster_kernels(random_kernels(), 8, poses=4)
    counts = torch.bincount(found.index % 8, minlength=8)
    assert counts.tolist() == sorted(counts.tolist(), reverse=True)


def test_refitted_scales_are_never_worse():
    kernels = random_kernels(300)
    found = cluster_kernels(kernels, 8)
    table = posed(found.centroids.flatten(1), pose_permutations(3, 8))[found.index]
    plain = normalised(kernels)[1][:, None] * table
    refitted = found.kernels(8).flatten(1)
    error, before = ((kernels.flatten(1) - k).square().sum() for k in (refitted, plain))
    assert error < before


def test_a_centre_of_zero_counts_as_positive():
    kernels = random_kernels(40)
    kernels[:20, 1, 1] = 0.0
    points, scale = normalised(kernels)
    assert (scale[:20] > 0).all()
    assert torch.allclose(scale[:, None] * points, kernels.flatten(1), atol=1e-6)
    assert cluster_kernels(kernels, 4).kernels(8).isfinite().all()


def test_kernels_of_zeros_stay_zero_and_move_no_centroid():
    kernels = random_kernels(40)
    with_zeros = torch.cat([kernels, torch.zeros(60, 3, 3)])
    found, alone = cluster_kernels(with_zeros, 4), cluster_kernels(kernels, 4)
    assert found.kernels(8)[40:].abs().max() == 0
    assert torch.allclose(found.kernels(8)[:40], alone.kernels(8), atol=1e-6)


def test_a_layer_of_zeros_can_be_clustered():
    found = cluster_kernels(torch.zeros(10, 3, 3), 4)
    assert found.kernels(8).abs().max() == 0


def test_an_empty_cluster_keeps_its_centroid():
    """Two distinct kernels leave two of four centroids without members."""
    kernels = random_kernels(2).repeat(20, 1, 1)
    found = cluster_kernels(kernels, 4, poses=1)
    assert len(found.index.unique()) == 2
    assert found.centroids.isfinite().all() and len(found.centroids) == 4
    assert torch.allclose(found.kernels(1), kernels, atol=1e-5)


def test_less_kernels_than_centroids_give_a_smaller_codebook():
    assert len(cluster_kernels(random_kernels(5), 64).centroids) == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(4, 3, 3), 0), "at least 1 centroid"),
        ((torch.zeros(4, 3, 3), 2, 3), "1, 2, 4 or 8"),
        ((torch.zeros(4, 1, 3), 2), "square"),
    ],
)
def test_what_cannot_be_clustered_is_refused(arguments: tuple, message: str):
    with pytest.raises(UserError, match=message):
        cluster_kernels(*arguments)


@pytest.mark.parametrize("settings", [{"padding": 1}, {"stride": 2, "bias": False}, {"kernel_size": 5}])
def test_the_convolution_runs_the_kernels_that_were_found(settings: dict):
    conv = nn.Conv2d(6, 8, **{"kernel_size": 3, **settings})
    layer = ClusteredKernels().fit(conv, 4)
    found = cluster_kernels(conv.weight.flatten(0, 1), 4, iterations=SEARCH_ITERATIONS)
    side = conv.kernel_size[0]
    weight = (found.scale.half().float() / found.scale)[:, None, None] * found.kernels(8)
    x = torch.randn(2, 6, 9, 9)
    expected = F.conv2d(x, weight.reshape(8, 6, side, side), conv.bias, conv.stride, conv.padding)
    torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-5)


def test_add_then_convolve_equals_the_convolution():
    """The paper's other order: inputs of one centroid and pose are scaled and added before the kernel."""
    layer = ClusteredKernels().fit(nn.Conv2d(6, 3, 3, bias=False), 4)
    x = torch.randn(1, 6, 7, 7)
    table = posed(layer.codebook.centroids.flatten(1), layer.codebook.permutations).reshape(-1, 1, 1, 3, 3)
    scale = layer.scale.half().float()
    outputs = []
    for out in range(3):
        total = torch.zeros(1, 1, 5, 5)
        for index in layer.index[out].unique().tolist():
            mine = layer.index[out] == index
            added = (scale[out, mine][None, :, None, None] * x[:, mine]).sum(dim=1, keepdim=True)
            total = total + F.conv2d(added, table[index])
        outputs.append(total)
    torch.testing.assert_close(torch.cat(outputs, dim=1), layer(x), atol=1e-4, rtol=1e-4)


def test_gradients_are_sums_over_the_members():
    layer = ClusteredKernels().fit(nn.Conv2d(6, 8, 3), 4)
    weight = layer.weight.detach().requires_grad_()
    plain = F.conv2d(torch.ones(1, 6, 9, 9), weight).square().sum()
    layer(torch.ones(1, 6, 9, 9)).sub(layer.bias[:, None, None]).square().sum().backward()
    (gradient,) = torch.autograd.grad(plain, weight)
    rounded = layer.scale.detach().half().float()
    expected = torch.zeros(4, 9)
    back = layer.codebook.permutations.argsort(dim=1)
    for out in range(8):
        for inp in range(6):
            pose, label = divmod(int(layer.index[out, inp]), 4)
            expected[label] += rounded[out, inp] * gradient[out, inp].flatten()[back[pose]]
    torch.testing.assert_close(layer.codebook.centroids.grad.flatten(1), expected, atol=1e-2, rtol=1e-4)


def test_training_moves_centroids_and_scales_and_no_index():
    layer = ClusteredKernels().fit(nn.Conv2d(6, 8, 3), 4)
    target, x = torch.randn(2, 8, 7, 7), torch.randn(2, 6, 9, 9)
    index, centroids, scale = (
        t.detach().clone() for t in (layer.index, layer.codebook.centroids, layer.scale)
    )
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.05)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        losses.append((layer(x) - target).square().mean())
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    assert torch.equal(layer.index, index)
    assert not torch.equal(layer.codebook.centroids, centroids) and not torch.equal(layer.scale, scale)


def test_layers_share_a_codebook_also_in_a_copy():
    model = net()
    codebook = cluster_layers(model, ["3", "6"], 16)
    assert (
        len(list(model.parameters())) == len(list(net().parameters())) + 1
    )  # two weights, two scales, one book
    copy = clone_module(model)
    assert copy.get_submodule("3").codebook is copy.get_submodule("6").codebook is not codebook


@pytest.mark.parametrize(
    ("centroids", "poses", "ratio"),
    [(256, 1, 12.0), (128, 2, 12.0), (64, 4, 12.0), (32, 8, 12.0), (512, 1, 11.52), (1024, 1, 11.08)],
)
def test_ratios_are_those_of_the_paper(centroids: int, poses: int, ratio: float):
    """For a network so large that the codebook does not count."""
    stored = storage_bytes(10**8, 9, centroids, poses)
    assert 4 * 9 * 10**8 / stored == pytest.approx(ratio, abs=0.005)


def stored_bytes(layer: ClusteredConv2d) -> int:
    return sum(part.numel() * part.element_size() for part in layer.packed().values())


def test_a_layer_stores_what_the_formula_says():
    model = net()
    cluster_layers(model, ["3"], 16)
    layer = model.get_submodule("3")
    assert isinstance(layer, ClusteredConv2d)
    assert stored_bytes(layer) == storage_bytes(12 * 16, 9, 16, 8)
    assert storage_bytes(448, 9, 16, 8) == 448 * 7 // 8 + 2 * 448 + 4 * 9 * 16


def test_an_unpacked_layer_gives_the_same_outputs_bit_for_bit():
    model, other = net(), net()
    for each in (model, other):
        cluster_layers(each, ["6"], 32, poses=2)
    layer, empty = model.get_submodule("6"), other.get_submodule("6")
    assert isinstance(layer, ClusteredConv2d) and isinstance(empty, ClusteredConv2d)
    empty.index.zero_()
    for parameter in (empty.scale, empty.codebook.centroids):
        nn.init.ones_(parameter)
    x = torch.randn(4, 3, 12, 12)
    assert not torch.equal(other(x), model(x))
    empty.unpack(layer.packed())
    assert torch.equal(other(x), model(x))
    with pytest.raises(ValueError, match="beyond its codebook"):
        layer.codebook.centroids.data = layer.codebook.centroids.data[:3]
        layer.unpack(empty.packed())


@pytest.mark.parametrize(
    "module",
    [nn.Linear(4, 4), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 4, (1, 3))],
    ids=["linear", "1x1", "depthwise", "1x3"],
)
def test_a_layer_that_cannot_be_clustered_offers_nothing(module: nn.Module):
    assert legal_amounts(ClusteredKernels(), module) == ()


def test_the_operator_costs_what_its_layer_stores():
    operator, conv = ClusteredKernels(), nn.Conv2d(12, 16, 3, padding=1)
    layer = trace(nn.Sequential(conv, nn.ReLU()), torch.zeros(1, 12, 8, 8)).layers[0]
    amounts = legal_amounts(operator, conv)
    sizes = [operator.cost(layer, amount, 12, 16).size for amount in amounts]
    assert sizes == sorted(sizes) and sizes[-1] < 4 * layer.weights and len(sizes) >= 4
    for amount in (8, 512):  # more centroids than kernels: as many as kernels
        fitted = operator.fit(conv, amount)
        cost = operator.cost(layer, amount, 12, 16)
        assert isinstance(fitted, ClusteredConv2d) and fitted.bias is not None
        assert cost.size == stored_bytes(fitted) + 4 * len(fitted.bias)
        assert cost.params == sum(p.numel() for p in fitted.parameters())
        assert cost.macs == layer.macs
    assert operator.lowers == {"size"}


def test_the_exported_file_holds_whole_kernels(tmp_path: Path):
    x = torch.randn(8, 3, 12, 12)
    model = trace(net(), x[:1]).copy()
    model.get_submodule("4").running_mean.normal_()
    cluster_layers(model, ["3", "6"], 16)
    exported = export_onnx(model, x, tmp_path / "model.onnx")
    assert exported.exporter == "amc"
    for figures in check_export(exported.path, model, x).values():
        assert figures.relative_error < 1e-4


def test_the_tflite_file_holds_whole_kernels(tmp_path: Path):
    pytest.importorskip("ai_edge_litert.interpreter")
    x = torch.randn(8, 3, 12, 12)
    model = trace(net(), x[:1]).copy()
    cluster_layers(model, ["3", "6"], 16)
    path = export_tflite(model, x, tmp_path / "model.tflite").path
    (figures,) = check_export(path, model, x).values()
    assert figures.relative_error < 1e-4


def test_a_scale_too_large_for_half_precision_is_refused():
    conv = nn.Conv2d(2, 2, 3)
    book = Codebook(torch.ones(1, 3, 3), 1)
    layer = clustered(conv, book, torch.zeros(2, 2), torch.full((2, 2), 1e6))
    assert isinstance(layer, ClusteredConv2d)
    with pytest.raises(UserError, match="16 bits"):
        layer.packed()
