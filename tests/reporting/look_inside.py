"""Tables of a look inside a run, made up as such a look may find them: a modular sum of eight digits, each stage kept.

The model reads a token of the CoT where it predicts it, and at the end of the prompt once the token has left. The first token of the
CoT is the first digit of the prompt, so that each control reads it too, except for the shuffled labels.
"""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stepwise_pl.common.statistics import wilson
from stepwise_pl.runs.inside import (
    Ablation,
    Attention,
    Fourier,
    Grid,
    Lens,
    Patch,
    Probe,
    Row,
    Similarity,
    Swap,
    write_grids,
    write_rows,
)

TOKENS, LAYERS, SCORED = 8, 4, 500  # layer 0 is the sum of the embeddings
STAGES = range(TOKENS + 1)
PROMPT = [f"prompt {number}" for number in range(-TOKENS - 1, 0)]


def checkpoint(stage: int) -> tuple[str, int, int]:
    return f"removed-{stage}", stage, stage


def places(stage: int) -> list[str]:
    return [*PROMPT, *(f"cot {number}" for number in range(stage, TOKENS)), "answer 0"]


def read_at(place: str, token: int) -> bool:
    """Whether the token is what a place has read."""
    return place == f"cot {token}"


def model_reads(stage: int, token: int, layer: int, place: str) -> float:
    """The accuracy of a probe of the model."""
    ramp = (0.21, 0.35, 0.8, 0.97)[layer]
    if token == 0 or read_at(place, token):
        return 1.0
    predicts = places(stage)[places(stage).index(f"cot {token}") - 1] if token >= stage else "prompt -1"
    if place == predicts:
        return ramp
    return ramp - 0.15 if place == "prompt -1" and token <= stage + 1 and layer else 0.2


def probes(draw: random.Random) -> Iterator[Probe]:
    for stage in STAGES:
        for token in range(TOKENS):
            left = [number for number in range(stage, TOKENS) if number >= token]
            given_from = f"cot {min(left)}" if left else "answer 1"
            for source, layer, place, score in scores(stage, token):
                score = min(1.0, max(0.0, score + draw.uniform(-0.02, 0.02) * (score < 1)))
                right = round(score * SCORED)
                low, high = wilson(right / SCORED, SCORED)
                is_given = given_from in [*places(stage), "answer 1"] and place in after(stage, given_from)
                yield Probe(*checkpoint(stage), layer, place, f"cot {token}", "class", source, "linear" if place else "constant",
                            right / SCORED, low, high, 1 - right / SCORED, 2.3 * (1 - score), 2.32, 2000, SCORED, False, is_given)  # fmt: skip
        for source, score in (("trained", 0.4 + stage / 16), ("random", -0.1), ("raw", 0.12), ("shuffled", -0.05)):
            layer = -1 if source == "raw" else 3
            yield Probe(*checkpoint(stage), layer, "prompt -1", "running_sum 0", "number", source, "linear", score, score - 0.03,
                        score + 0.03, 2.5 * (1 - score), float("nan"), float("nan"), 2000, SCORED, True)  # fmt: skip


def after(stage: int, place: str) -> list[str]:
    """The places from one on."""
    here = places(stage)
    return here[here.index(place) :] if place in here else []


def scores(stage: int, token: int) -> Iterator[tuple[str, int, str, float]]:
    """Source, layer, place and accuracy."""
    yield "constant", -1, "", 0.21
    for place in places(stage):
        yield "raw", -1, place, 1.0 if token == 0 or read_at(place, token) else 0.22
        for layer in range(LAYERS):
            yield "trained", layer, place, model_reads(stage, token, layer, place)
            yield "random", layer, place, 1.0 if token == 0 or read_at(place, token) else 0.24
            yield "shuffled", layer, place, 0.2


def patches(draw: random.Random) -> Iterator[Patch]:
    for stage in STAGES:
        for changed in PROMPT[:-1]:
            for layer in range(LAYERS):
                for place in places(stage):
                    own = {0: 1.0, 1: 0.95, 2: 0.4, 3: 0.05}[layer] if place == changed else 0.0
                    end = {0: 0.0, 1: 0.1, 2: 0.6, 3: 0.95}[layer] if place == "prompt -1" else 0.0
                    moved = round(200 * min(1.0, max(0.0, own + end + draw.uniform(-0.02, 0.04)))) / 200
                    low, high = wilson(moved, 200)
                    yield Patch(
                        *checkpoint(stage), layer, place, changed, "answer 1", moved, low, high, 1 - moved, moved, 200
                    )


def ablations(draw: random.Random) -> Iterator[Ablation]:
    for stage in STAGES:
        for token in range(TOKENS):
            for layer in range(1, LAYERS):
                for place in ("prompt -1", "answer 0"):
                    accuracy = (
                        0.98
                        - (0.7 if token < stage and place == "prompt -1" and layer == 2 else 0.0)
                        - draw.uniform(0, 0.02)
                    )
                    yield Ablation(
                        *checkpoint(stage), layer, place, f"cot {token}", 4, accuracy, 0.97, 0.95, 0.985, 0.99, SCORED
                    )


def swaps(draw: random.Random) -> Iterator[Swap]:
    for stage in STAGES:
        for number, changed in enumerate(PROMPT[:-1]):
            hole = stage == TOKENS and number < 2
            moved = 0.1 if hole else 0.99
            yield Swap(*checkpoint(stage), changed, "answer 1", moved - draw.uniform(0, 0.02), 1.0, moved, 0.97, 400)
            yield Swap(*checkpoint(stage), changed, "answer 2", 0.0, 0.0, 0.0, 1.0, 400)


def lens(draw: random.Random) -> Iterator[Lens]:
    for stage in STAGES:
        for token in range(TOKENS):
            for place in places(stage):
                for layer in range(LAYERS):
                    model = model_reads(stage, token, layer, place) if token and not read_at(place, token) else 0.2
                    for source, top in (("trained", model), ("random", 0.1)):
                        top = max(0.0, top - draw.uniform(0, 0.05))
                        yield Lens(
                            *checkpoint(stage), layer, place, f"cot {token}", source, top, 0.9 * top, SCORED, 0.2
                        )


def attention(draw: random.Random) -> Iterator[Attention]:
    for stage in STAGES:
        for layer in range(1, LAYERS):
            for head in range(4):
                for number, place in enumerate(places(stage)):
                    weights = [
                        draw.random() + 9 * (to == (number * (head + 1)) % (number + 1)) for to in range(number + 1)
                    ]
                    for to, weight in zip(places(stage), weights, strict=False):
                        yield Attention(*checkpoint(stage), layer, head, place, to, weight / sum(weights))


def fourier(draw: random.Random) -> Iterator[Fourier]:
    for stage in STAGES:
        for what in ("embedding", "prompt -1, layer 1", "prompt -1, layer 2", "prompt -1, layer 3"):
            for basis, fit in (("k 1", 0.9), ("k 2", 0.1)):
                fit += draw.uniform(0, 0.05)
                yield Fourier(*checkpoint(stage), what, 3, 5, fit, 0.5, 0.56, basis, 0.6)


def similarity(draw: random.Random) -> Iterator[Similarity]:
    for stage in STAGES:
        for place in ("prompt -1", "answer 0"):
            for layer in range(LAYERS):
                for other in STAGES:
                    yield Similarity(
                        *checkpoint(stage),
                        layer,
                        place,
                        f"stage {other}",
                        1 - 0.07 * layer * abs(stage - other) / 2,
                        SCORED,
                    )
                yield Similarity(*checkpoint(stage), layer, place, "random", 0.12 + draw.uniform(0, 0.05), SCORED)


def grids(draw: random.Random) -> Iterator[Grid]:
    for problem in range(3):
        digits = [draw.randrange(5) for _ in range(TOKENS)]
        cot = [str(sum(digits[: end + 1]) % 5) for end in range(TOKENS)]
        for stage in STAGES:
            read = [*map(str, digits), "||", *cot[stage:], "####"]
            following = [*read[1:], cot[-1]]
            below = [[draw.choice("01234") for _ in read] for _ in range(LAYERS - 1)]
            probabilities = [[round(draw.uniform(0.2, 0.3) + 0.2 * layer, 4) for _ in read] for layer in range(LAYERS)]
            yield Grid(*checkpoint(stage), problem, " ".join(map(str, digits)), " ".join(cot), cot[-1], list(range(LAYERS)), places(stage),
                       read, following, [*below, following], probabilities)  # fmt: skip


TABLES: dict[type[Row], Any] = {
    Probe: probes, Patch: patches, Ablation: ablations, Swap: swaps, Lens: lens, Attention: attention, Fourier: fourier,
    Similarity: similarity,
}  # fmt: skip


def write_tables(run: Path, seed: int = 0) -> None:
    """Write all tables into the folder of a run."""
    for kind, rows in TABLES.items():
        write_rows(run, list(rows(random.Random(seed))), kind)
    write_grids(run, list(grids(random.Random(seed))))
