"""Explore schedules on a GPU: many trainings at once, as one batch of matrix products.

    python experiments/adaptive/many.py settings.json <group> out.jsonl [seconds]

A group of settings.json is {"arch": {...}, "models": [{...}, ...]}: the models share the
architecture and the batch size (`ARCH`) and differ in what a line of `MODEL` says.
Parameters are stacked, one slice per model, and so are batches, schedules and optimizers;
a wide GPU then trains sixty models of 0.6 M parameters in the time of a few. Data, model,
removal, schedule and optimizer are those of `experiment=mult3x3_cpu`, written once more
for a stack of models; this is for exploration, and what wins is run with the package.

out.jsonl: the settings, then every `every` steps each model's removed tokens, accuracy
without any CoT on 512 held-out problems (teacher-forced, which is then the same as
greedy), running loss, and thousands of tokens seen.
"""

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ARCH: dict[str, Any] = {
    "digits": 3, "layers": 3, "width": 128, "heads": 8, "batch": 64, "act": "gelu", "qknorm": 0, "rope": 0, "init": 0.02,
    "tie": 1, "ns": 5, "steps": 9000, "side": "right", "keep": 1, "every": 250,
}  # fmt: skip
# gate .. minstay: of the adaptive schedule, jump: to a later level that passes; stay: steps per token of an open loop
# instead; s0: tokens gone at the start; look, direct: shares of examples with a uniform and with the whole removal;
# zeros .. zeros_until: share of problems with more zeros, and where it ends; zmode: their density of zeros is random.
MODEL: dict[str, float] = {
    "gate": 0.95, "lam": 2.0, "memory": 10, "minstay": 20, "jump": 1, "stay": 0, "s0": 0, "most": 999, "look": 0.0,
    "direct": 0.0, "zeros": 0.6, "zeros_until": 1, "zmode": 0, "lr": 1e-3, "mlr": 2e-3, "mom": 0.95, "b2": 0.999,
    "wd": 0.0, "warm": 100, "decay": 3000, "seed": 0,
}  # fmt: skip
WORDS = 17  # 0-9, then * + ( ) #### <eos> and one to spare
TIMES, PLUS, OPEN, CLOSE, MARK, EOS = range(10, 16)


class Many:
    """A group in training; E models."""

    def __init__(self, arch: dict[str, Any], models: list[dict[str, float]], out: Path) -> None:
        self.arch = {**ARCH, **arch}
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.settings = [{**MODEL, "zeros_end": m.get("zeros", MODEL["zeros"]), **m} for m in models]
        self.of = {
            key: torch.tensor([float(m[key]) for m in self.settings], device=self.device) for key in self.settings[0]
        }
        self.file = out.open("w")
        self.say(arch=self.arch, models=self.settings)
        digits = self.arch["digits"]
        self.count = len(models)
        self.prompt, self.answer = 2 * digits + 2, 2 * digits + 3
        rows, sums = range(digits), range(1, digits - 1)
        self.cot = sum(digits + 1 + i for i in rows) + digits - 1 + sum(digits + 3 + i for i in sums)
        self.total = self.prompt + self.cot + self.answer
        self.held_out, self.validation = self._split(digits)
        self._parameters()
        self.step, self.width_now, self.started = 0, self.total, time.time()
        self.now, self.since = self.of["s0"].clone(), torch.zeros(self.count, device=self.device)
        self.right = torch.zeros(self.count, self.cot + 1, device=self.device)
        self.targets = torch.zeros_like(self.right)
        self.gone_at = torch.full_like(self.since, -1)
        self.seen = torch.zeros(self.count, device=self.device, dtype=torch.double)
        self.loss = torch.zeros_like(self.since)

    def say(self, **record: Any) -> None:
        print(json.dumps(record), file=self.file, flush=True)

    def _split(self, digits: int) -> tuple[Tensor, Tensor]:
        """Which pairs are held out, in either order; and 512 of them."""
        low, high = 10 ** (digits - 1), 10**digits
        pairs = torch.randint(low, high, (1500, 2), generator=torch.Generator().manual_seed(7))
        held_out = torch.zeros(high * high, dtype=torch.bool)
        held_out[pairs[:, 0] * high + pairs[:, 1]] = True
        held_out[pairs[:, 1] * high + pairs[:, 0]] = True
        return held_out.to(self.device), pairs[:512].to(self.device)

    def _parameters(self) -> None:
        """GPT-2's initialisation; `flat` holds all that AdamW updates, `matrices` what Muon does."""
        arch, count = self.arch, self.count
        width, layers = arch["width"], arch["layers"]
        generator = torch.Generator().manual_seed(int(self.settings[0]["seed"]))

        def normal(*shape: int, std: float = arch["init"]) -> Tensor:
            return torch.randn(count, *shape, generator=generator) * std

        into_residual = arch["init"] / math.sqrt(2 * layers)
        matrices = {
            "qkv": normal(layers, width, 3 * width),
            "proj": normal(layers, width, width, std=into_residual),
            "fc": normal(layers, width, 4 * width),
            "out": normal(layers, 4 * width, width, std=into_residual),
        }
        rest = {"wte": normal(WORDS, width), "wpe": normal(self.total, width)}
        if not arch["tie"]:
            rest["head"] = normal(WORDS, width)
        sizes = {
            "1w": width,
            "1b": width,
            "2w": width,
            "2b": width,
            "bq": 3 * width,
            "bp": width,
            "bf": 4 * width,
            "bo": width,
        }
        for layer in range(layers):
            rest |= {f"{name}{layer}": torch.full((count, n), float("w" in name)) for name, n in sizes.items()}
        rest |= {"fw": torch.ones(count, width), "fb": torch.zeros(count, width)}
        self.shapes = {name: value.shape[1:] for name, value in rest.items()}
        self.flat = torch.cat([v.flatten(1) for v in rest.values()], 1).to(self.device).requires_grad_()
        self.matrices = {name: value.to(self.device).requires_grad_() for name, value in matrices.items()}
        self.momentum = {name: torch.zeros_like(value) for name, value in self.matrices.items()}
        self.first, self.second = torch.zeros_like(self.flat), torch.zeros_like(self.flat)

    # Data

    def problems(self) -> tuple[Tensor, Tensor, Tensor]:
        """Operands [E, batch] each, and whether the pair may be trained on."""
        digits, shape = self.arch["digits"], (self.count, self.arch["batch"])
        x = torch.randint(0, 10, (*shape, 2, digits), device=self.device)
        x[..., -1] = torch.randint(1, 10, (*shape, 2), device=self.device)
        done = (self.step / self.of["zeros_until"]).clamp(0, 1)
        share = self.of["zeros"] + (self.of["zeros_end"] - self.of["zeros"]) * done
        random = torch.rand(*shape, 1, 1, device=self.device)
        density = torch.where(self.each("zmode", 4) > 0, random, torch.full_like(random, 0.5))
        zero = torch.rand(*shape, 1, 1, device=self.device) < share[:, None, None, None]
        zero = zero & (torch.rand(x.shape, device=self.device) < density)
        zero[..., -1] = False
        numbers = (x.masked_fill(zero, 0) * 10 ** torch.arange(digits, device=self.device)).sum(-1)
        a, b = numbers.unbind(-1)
        return a, b, ~self.held_out[a * 10**digits + b]

    def each(self, key: str, dims: int = 1) -> Tensor:
        """A setting of every model, [E, 1, ...]."""
        return self.of[key].view(-1, *[1] * (dims - 1))

    def encode(self, a: Tensor, b: Tensor) -> Tensor:
        """The tokens of whole examples, [..., total]."""
        digits = self.arch["digits"]

        def number(value: Tensor, width: int) -> Tensor:
            return torch.stack([(value // 10**i) % 10 for i in range(width)], -1)

        def word(token: int) -> Tensor:
            return torch.full((*a.shape, 1), token, device=self.device)

        out = [number(a, digits), word(TIMES), number(b, digits), word(EOS)]
        total = torch.zeros_like(a)
        for i in range(digits):
            row = a * ((b // 10**i) % 10) * 10**i
            total = total + row
            out += ([word(PLUS)] if i else []) + [number(row, digits + 1 + i)]
            if 0 < i < digits - 1:
                out += [word(OPEN), number(total, digits + 1 + i), word(CLOSE)]
        return torch.cat([*out, word(EOS), word(MARK), number(a * b, 2 * digits), word(EOS)], -1)

    def remove(self, tokens: Tensor, k: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Tokens, positions, what is a target and what is there, [E, batch, width], with k [E, batch] tokens gone."""
        column = torch.arange(width, device=self.device).expand(*k.shape, width)
        left = self.cot - k if self.arch["side"] == "right" else torch.zeros_like(k)
        source = torch.where(column < self.prompt + left[..., None], column, column + k[..., None])
        there = source < self.total
        source = source.clamp(max=self.total - 1)
        position = source if self.arch["keep"] else column
        return tokens.gather(-1, source), position, there & (column >= self.prompt), there

    # Model

    def logits(self, tokens: Tensor, position: Tensor) -> Tensor:
        """[E, batch, width, words], as GPT-2 computes them."""
        arch, (count, batch, width) = self.arch, tokens.shape
        size, heads = arch["width"], arch["heads"]
        parts = self.flat.split([math.prod(shape) for shape in self.shapes.values()], 1)
        p = {name: part.reshape(count, *self.shapes[name]) for name, part in zip(self.shapes, parts, strict=True)}
        layer_matrices = {name: value.unbind(1) for name, value in self.matrices.items()}

        def norm(x: Tensor, name: str) -> Tensor:
            return torch.addcmul(
                p[f"{name[0]}b{name[1:]}"][:, None], F.layer_norm(x, (size,)), p[f"{name[0]}w{name[1:]}"][:, None]
            )

        def linear(x: Tensor, matrix: str, bias: str, layer: int) -> Tensor:
            return torch.baddbmm(p[f"{bias}{layer}"][:, None], x, layer_matrices[matrix][layer])

        x = p["wte"].gather(1, tokens.reshape(count, -1, 1).expand(-1, -1, size))
        if not arch["rope"]:
            x = x + p["wpe"].gather(1, position.reshape(count, -1, 1).expand(-1, -1, size))
        for layer in range(arch["layers"]):
            qkv = linear(norm(x, f"1{layer}"), "qkv", "bq", layer)
            q, k, v = qkv.view(count * batch, width, 3, heads, size // heads).permute(2, 0, 3, 1, 4)
            if arch["qknorm"]:
                q, k = F.rms_norm(q, q.shape[-1:]), F.rms_norm(k, k.shape[-1:])
            if arch["rope"]:
                q, k = rotated(q, position.reshape(-1, 1, width)), rotated(k, position.reshape(-1, 1, width))
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(count, -1, size)
            x = x + linear(y, "proj", "bp", layer)
            h = linear(norm(x, f"2{layer}"), "fc", "bf", layer)
            h = F.gelu(h, approximate="tanh") if arch["act"] == "gelu" else F.relu(h).square()
            x = x + linear(h, "out", "bo", layer)
        out = norm(x, "f") @ (p["wte"] if arch["tie"] else p["head"]).mT
        return out.view(count, batch, width, -1)

    # Training

    def train_step(self) -> None:
        if self.step % 20 == 0:  # s never falls: an old width is never too small
            self.width_now = self.total - int(self.now.min())
        a, b, allowed = self.problems()
        shape = a.shape
        offset = torch.floor(-torch.log1p(-torch.rand(shape, device=self.device)) / self.each("lam", 2)).clamp(
            max=self.cot
        )
        ahead = torch.floor(torch.rand(shape, device=self.device) * (self.cot - self.now)[:, None]) + 1
        offset = torch.where(torch.rand(shape, device=self.device) < self.each("look", 2), ahead, offset)
        all_of_it = torch.full_like(offset, self.cot)
        offset = torch.where(torch.rand(shape, device=self.device) < self.each("direct", 2), all_of_it, offset)
        k = (self.now[:, None] + offset).clamp(max=self.cot).long()
        tokens, position, target, there = self.remove(self.encode(a, b), k, self.width_now)
        logits, label = self.logits(tokens, position)[:, :, :-1], tokens[:, :, 1:]
        mask = target[:, :, 1:] & allowed[..., None]
        losses = F.cross_entropy(logits.flatten(0, 2), label.flatten(), reduction="none").view(label.shape) * mask
        loss = losses.sum((1, 2)) / mask.sum((1, 2))
        loss.sum().backward()
        with torch.no_grad():
            self.loss.lerp_(loss, 0.02)
            self.seen += there.sum((1, 2)).double()
            right = ((logits.argmax(-1) == label) & mask).sum(-1).float()
            self.update()
            self.follow_schedule(k, right, mask.sum(-1).float())
        self.step += 1

    def update(self) -> None:
        """Clip each model's gradient to norm 1; AdamW for the vectors and embeddings, Muon for the matrices."""
        leaves = [self.flat, *self.matrices.values()]
        squares = [leaf.grad.flatten(1).square().sum(1) for leaf in leaves if leaf.grad is not None]
        clip = 1 / torch.stack(squares).sum(0).sqrt().clamp(min=1.0)
        step = self.step + 1
        factor = (step / self.of["warm"]).clamp(max=1) * ((self.arch["steps"] - self.step) / self.of["decay"]).clamp(
            0, 1
        )
        assert self.flat.grad is not None
        gradient, b2 = self.flat.grad * clip[:, None], self.each("b2", 2)
        self.first.lerp_(gradient, 0.1)
        self.second.mul_(b2).add_((1 - b2) * gradient.square())
        scale = (self.second / (1 - b2**step)).sqrt() + 1e-8
        self.flat.sub_((self.of["lr"] * factor)[:, None] * self.first / (1 - 0.9**step) / scale)
        self.flat.grad = None
        momentum, lr = self.each("mom", 4), (self.of["mlr"] * factor)[:, None, None, None]
        for name, matrix in self.matrices.items():
            assert matrix.grad is not None
            gradient, buffer = matrix.grad * clip[:, None, None, None], self.momentum[name]
            buffer.mul_(momentum).add_((1 - momentum) * gradient)
            move = orthogonal((gradient + (buffer - gradient) * momentum).flatten(0, 1), self.arch["ns"]).view(
                matrix.shape
            )
            matrix.mul_(1 - lr * self.each("wd", 4)).sub_(lr * 0.2 * math.sqrt(max(matrix.shape[-2:])) * move)
            matrix.grad = None

    def follow_schedule(self, k: Tensor, right: Tensor, targets: Tensor) -> None:
        """`stepwise_pl.schedules.Adaptive` for every model, or an open loop where `stay` is set."""
        fade = (1 - 1 / self.of["memory"])[:, None]
        self.right.mul_(fade).scatter_add_(1, k, right)
        self.targets.mul_(fade).scatter_add_(1, k, targets)
        accuracy = torch.where(
            self.targets >= 300, self.right / self.targets.clamp(min=1), torch.zeros_like(self.right)
        )
        stayed, most = self.step + 1 - self.since, self.of["most"].clamp(max=self.cot)
        level = torch.arange(self.cot + 1, device=self.device)[None]
        passes = (accuracy >= self.each("gate", 2)) & (level > self.now[:, None]) & (level <= most[:, None])
        ahead = torch.where(passes, level, torch.zeros_like(level)).amax(1).float() * self.of["jump"]
        here = accuracy.gather(1, self.now[:, None].long())[:, 0] >= self.of["gate"]
        following = torch.where(ahead > 0, ahead, torch.where(here, self.now + 1, self.now))
        following = torch.where((self.now < most) & (stayed >= self.of["minstay"]), following, self.now)
        linear = torch.minimum(torch.floor((self.step + 1) / self.of["stay"].clamp(min=1)), most)
        following = torch.where(self.of["stay"] > 0, linear, following)
        moved, step = following != self.now, torch.full_like(self.since, self.step + 1)
        self.since = torch.where(moved, step, self.since)
        self.gone_at = torch.where(moved & (following >= self.cot), step, self.gone_at)
        self.now = following

    @torch.no_grad()
    def accuracy(self) -> Tensor:
        """Whole answers right without any CoT, [E]."""
        tokens = self.encode(*self.validation.unbind(-1)).expand(self.count, -1, -1)
        right = []
        for some in tokens.split(128, 1):
            k = torch.full(some.shape[:2], self.cot, device=self.device)
            read, position, target, _ = self.remove(some, k, self.total - self.cot)
            hit = self.logits(read, position)[:, :, :-1].argmax(-1) == read[:, :, 1:]
            right.append((hit | ~target[:, :, 1:]).all(-1).float())
        return torch.cat(right, 1).mean(1)

    def run(self, seconds: float) -> None:
        while self.step < self.arch["steps"] and time.time() - self.started < seconds:
            self.train_step()
            if self.step % self.arch["every"] == 0:
                self.say(
                    step=self.step, seconds=round(time.time() - self.started, 1), removed=self.now.int().tolist(),
                    accuracy=[round(x, 4) for x in self.accuracy().tolist()], gone=self.gone_at.int().tolist(),
                    loss=[round(x, 4) for x in self.loss.tolist()], ktokens=[int(x / 1000) for x in self.seen.tolist()],
                )  # fmt: skip


def rotated(x: Tensor, position: Tensor) -> Tensor:
    """Rotary position embedding with base 100, for short texts."""
    half = x.shape[-1] // 2
    angle = position[..., None] / 100.0 ** (torch.arange(half, device=x.device) / half)
    cos, sin = torch.cat([angle, angle], -1).cos(), torch.cat([angle, angle], -1).sin()
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin


def orthogonal(matrices: Tensor, steps: int) -> Tensor:
    """As in stepwise_pl/training/optimizers.py."""
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-30)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x.mT if tall else x


if __name__ == "__main__":
    torch.backends.cuda.matmul.allow_tf32 = True
    group = json.loads(Path(sys.argv[1]).read_text())[sys.argv[2]]
    Many(group["arch"], group["models"], Path(sys.argv[3])).run(float(sys.argv[4]) if len(sys.argv) > 4 else math.inf)
