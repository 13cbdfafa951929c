"""Train additive codebooks: LSQ, and LSQ++'s two stochastic relaxations of it.

An outer iteration fits the codebooks to the codes and then searches for better codes. Relaxed, the fit is
disturbed and what it leads to always accepted; the noise cools to nothing, T(i) = (1 - i / I)^p:

* SR-C ("data") fits the codebooks to X + T std(X) N(0, 1), std by dimension;
* SR-D ("codebooks") fits to X and adds T std(C) / M N(0, 1) to every entry, std of all entries by dimension.

Faiss's LocalSearchQuantizer differs: only SR-D, with the std of the data, random codes as the start, a fixed
order of the codebooks in ICM, and no fit after the last search.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from amc.codecs.encoding import LocalSearch, encode, squared_errors
from amc.codecs.fitting import RIDGE, fit_codebooks
from amc.codecs.starts import StartName, start
from amc.errors import UserError

Relaxation = Literal["none", "data", "codebooks"]
MOST_ENTRIES = 256


@dataclass(frozen=True)
class Recipe:
    """How codebooks are trained; the defaults are the paper's 64 bits, 7 codes and a byte for the norm.

    Attributes:
        codebooks: M, codes a vector.
        entries: K, a power of two up to 256.
        iterations: I, fits of the codebooks, each followed by a search for codes.
        relaxation: none is LSQ, data is SR-C, codebooks is SR-D.
        begin: where training starts; random codes are Faiss's, a chain the authors'.
        search: effort of the local search in every iteration.
        power: p of the cooling.
        ridge: weight of the codebooks' squares in a fit.
        seed: of everything that is drawn.
    """

    codebooks: int = 7
    entries: int = 256
    iterations: int = 25
    relaxation: Relaxation = "codebooks"
    begin: StartName = "random"
    search: LocalSearch = field(default_factory=LocalSearch)
    power: float = 0.5
    ridge: float = RIDGE
    seed: int = 0


@dataclass(frozen=True)
class Trained:
    """What training leaves.

    Attributes:
        codebooks: float32 [M, K, d], fitted to the codes without any noise.
        codes: of the training vectors, int64 [n, M].
        errors: mean squared error of the training vectors after each iteration, with the codebooks that the
            codes were searched for, and at last with those returned.
    """

    codebooks: Tensor
    codes: Tensor
    errors: tuple[float, ...]


def train(
    vectors: Tensor, recipe: Recipe | None = None, on_iteration: Callable[[int], None] = lambda _: None
) -> Trained:
    """Train codebooks for vectors.

    Args:
        vectors: [n, d], at least as many as a codebook has entries.
        recipe: how.
        on_iteration: told the number of every finished iteration, from 1.

    Raises:
        UserError: the vectors or the recipe cannot be used.
    """
    recipe = recipe or Recipe()
    vectors = checked(vectors, recipe)
    generator = torch.Generator().manual_seed(recipe.seed)
    begin = start(vectors, recipe.begin, recipe.codebooks, recipe.entries, generator)
    turned, codes, errors = vectors @ begin.rotation, begin.codes, []
    for i in range(1, recipe.iterations + 1):
        books = fit_relaxed(turned, codes, recipe, temperature(i, recipe), generator)
        codes = encode(turned, books, codes, recipe.search, generator)
        errors.append(float(squared_errors(turned, codes, books).mean()))
        on_iteration(i)
    books = fit_codebooks(turned, codes, recipe.entries, recipe.ridge) @ begin.rotation.T
    errors.append(float(squared_errors(vectors, codes, books).mean()))
    return Trained(books, codes, tuple(errors))


def temperature(iteration: int, recipe: Recipe) -> float:
    """T of an iteration from 1 to I; zero in the last one."""
    return float((1 - iteration / recipe.iterations) ** recipe.power)


def fit_relaxed(
    vectors: Tensor, codes: Tensor, recipe: Recipe, heat: float, generator: torch.Generator
) -> Tensor:
    """Codebooks [M, K, d] for codes, disturbed as the recipe says."""
    if recipe.relaxation == "data":
        noise = torch.randn(vectors.shape, generator=generator)
        vectors = vectors + heat * vectors.std(dim=0) * noise
    books = fit_codebooks(vectors, codes, recipe.entries, recipe.ridge)
    if recipe.relaxation == "codebooks":
        spread = books.flatten(0, 1).std(dim=0) / recipe.codebooks
        books = books + heat * spread * torch.randn(books.shape, generator=generator)
    return books


def checked(vectors: Tensor, recipe: Recipe) -> Tensor:
    """The vectors as float32.

    Raises:
        UserError: the vectors or the recipe cannot be used.
    """
    if recipe.entries not in [2**bits for bits in range(1, 9)] or recipe.codebooks < 1:
        raise UserError(
            f"Additive codes need at least 1 codebook and 2, 4, 8, ... or {MOST_ENTRIES} entries, not "
            f"{recipe.codebooks} and {recipe.entries}."
        )
    if min(recipe.iterations, recipe.search.rounds, recipe.search.sweeps) < 1:
        raise UserError("Iterations, rounds and sweeps of additive codes must be at least 1.")
    if vectors.ndim != 2 or len(vectors) < recipe.entries:
        raise UserError(
            f"Codebooks of {recipe.entries} entries need as many vectors [n, d], not {list(vectors.shape)}."
        )
    if not bool(torch.isfinite(vectors).all()):
        raise UserError("The vectors hold NaN or infinite numbers.")
    if recipe.begin != "random" and vectors.shape[1] < recipe.codebooks:
        raise UserError(
            f"The start {recipe.begin!r} needs a dimension for each of {recipe.codebooks} codebooks; the "
            f"vectors have {vectors.shape[1]}."
        )
    return vectors.detach().float()
