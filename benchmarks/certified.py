"""How many answers of a small classifier are certain, trained as usual and trained for it: handwritten digits.

    python benchmarks/certified.py          # about seven minutes on one thread; goes on after a kill
    python benchmarks/certified.py table    # the table of docs/verify.md from the record
    python benchmarks/certified.py small    # a few steps, nothing written

The 1797 digits of scikit-learn, 8 × 8 pixels from 0 to 1. A row of pixels is a token; one block of attention and a
feed-forward part, without normalisation, since bounds through it grow most. Every pixel may move by the radius. Of the
same pictures it is counted how many answers are right and

    certain by intervals ≤ certain by linear bounds ≤ (what holds, which nobody knows) ≤ withstand an attack

where the attack is gradient ascent on the loss, which may miss. Certified training has the loss
``k · usual + (1 - k) · worst of the box``, its radius rising from 0 and k falling from 1 to one half, as in
arXiv:1810.12715.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from marked import markdown, rewritten
from torch import Tensor, nn
from torch.nn import functional as F

from dynattn import verify
from dynattn.lab.machine import describe, machine
from dynattn.lab.records import write_json
from dynattn.methods import parse
from dynattn.nn import Attention

RECORD = Path(__file__).parent / "results" / "certified.json"
PAGE = Path(__file__).parent.parent / "docs" / "verify.md"
START, END = "<!-- written by benchmarks/certified.py -->", "<!-- end -->"
SIDE, CLASSES, WIDTH, HEADS, MLP = 8, 10, 16, 2, 32
TEST = 397  # pictures that are not trained on
PICTURES = 50  # of those, certified and attacked
METHODS = ("dense", "nm-1-2")
TRAININGS = ("usual", "certified")
SEEDS = 3
RADII = (0.01, 0.02, 0.05, 0.1)
RADIUS = 0.05  # of certified training, in the end
STEPS, BATCH = 600, 100
STILL, GROWN = 0.2, 0.7  # shares of the steps: before, nothing moves; from then on, all of it
ATTACK = 30  # steps


class Case(NamedTuple):
    """What is trained, and how."""

    method: str
    training: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.method}, {self.training}, {self.seed}"


class Digits(NamedTuple):
    """Pictures (count, 8, 8), and which digit each shows."""

    pictures: Tensor
    labels: Tensor


class Body(nn.Module):
    """Everything but the last layer."""

    def __init__(self, method: str) -> None:
        super().__init__()
        self.pixels = nn.Identity()
        self.rows = nn.Linear(SIDE, WIDTH)
        self.places = nn.Parameter(torch.randn(SIDE, WIDTH) / 4)
        self.attention = Attention(WIDTH, HEADS, method=parse(method))
        self.feed = nn.Sequential(nn.Linear(WIDTH, MLP), nn.ReLU(), nn.Linear(MLP, WIDTH))

    def forward(self, pictures: Tensor) -> Tensor:
        """(batch, 8 · width)."""
        x = self.rows(self.pixels(pictures)) + self.places
        x = x + self.attention(x)
        return (x + self.feed(x)).flatten(1)


class Classifier(nn.Module):
    """The classifier."""

    def __init__(self, method: str) -> None:
        super().__init__()
        self.body, self.head = Body(method), nn.Linear(SIDE * WIDTH, CLASSES)

    def forward(self, pictures: Tensor) -> Tensor:
        """(batch, 10) logits."""
        return self.head(self.body(pictures))


def digits() -> tuple[Digits, Digits]:
    """To train on, and to test."""
    from sklearn.datasets import load_digits

    found: Any = load_digits()
    order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(0))
    pictures = torch.as_tensor(found.images, dtype=torch.float32)[order] / 16
    labels = torch.as_tensor(found.target, dtype=torch.int64)[order]
    return Digits(pictures[TEST:], labels[TEST:]), Digits(pictures[:TEST], labels[:TEST])


def trained(case: Case, data: Digits, steps: int) -> Classifier:
    """A classifier from a seed."""
    torch.manual_seed(case.seed)
    model = Classifier(case.method).eval()  # nothing in it differs in training
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for step in range(steps):
        chosen = torch.randint(len(data.labels), (BATCH,))
        pictures, labels = data.pictures[chosen], data.labels[chosen]
        loss = F.cross_entropy(model(pictures), labels)
        share = min(max((step / steps - STILL) / (GROWN - STILL), 0.0), 1.0)
        if case.training == "certified" and share:
            worst = verify.worst_loss(
                model, pictures, at=model.body.pixels, head=model.head, labels=labels, radius=share * RADIUS
            )
            loss = (1 - share / 2) * loss + share / 2 * worst
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
    return model


@torch.no_grad()
def certain(model: Classifier, data: Digits, radius: float, linear: bool) -> Tensor:
    """(count,) bool: whether the answer is the right one, whatever moves by the radius."""
    hidden = verify.bounds(model.body, data.pictures, at=model.body.pixels, radius=radius, linear=linear)
    return (verify.margins(hidden, model.head, data.labels) > 0).all(-1)


def withstand(model: Classifier, data: Digits, radius: float) -> Tensor:
    """(count,) bool: whether the answer is right, and stays so along the attack."""
    moved = data.pictures + radius * (2 * torch.rand_like(data.pictures) - 1)
    right = model(data.pictures).argmax(-1) == data.labels
    for _ in range(ATTACK):
        moved = moved.detach().requires_grad_()
        logits = model(moved)
        right &= logits.argmax(-1) == data.labels
        (slope,) = torch.autograd.grad(F.cross_entropy(logits, data.labels, reduction="sum"), moved)
        step = moved + radius / 5 * slope.sign()
        moved = torch.maximum(torch.minimum(step, data.pictures + radius), data.pictures - radius)
    return right & (model(moved).argmax(-1) == data.labels)


def measure(case: Case, steps: int, pictures: int) -> dict[str, Any]:
    """A row of the record."""
    train, test = digits()
    model = trained(case, train, steps)
    right = float((model(test.pictures).argmax(-1) == test.labels).double().mean())
    model = model.double()
    some = Digits(test.pictures[:pictures].double(), test.labels[:pictures])
    # A picture at a time: every number that moves in a call is a symbol, and those of other pictures are of no use.
    each = [Digits(*(part[i : i + 1] for part in some)) for i in range(pictures)]
    shares: dict[str, list[float]] = {"intervals": [], "linear": [], "attack": []}
    for radius in RADII:
        by_lines = torch.cat([certain(model, one, radius, linear=True) for one in each])
        shares["linear"].append(float(by_lines.double().mean()))
        shares["intervals"].append(float(certain(model, some, radius, linear=False).double().mean()))
        shares["attack"].append(float(withstand(model, some, radius).double().mean()))
    return {**case._asdict(), "accuracy": right, **shares}


def cases() -> list[Case]:
    """All of the record."""
    return [Case(*each) for each in ((m, t, s) for s in range(SEEDS) for m in METHODS for t in TRAININGS)]


def record(every: list[Case], steps: int, pictures: int) -> None:
    """Measure what the record lacks, and write it after each case."""
    torch.set_num_threads(1)
    found = json.loads(RECORD.read_text()) if RECORD.exists() else {
        "machine": machine(), "steps": steps, "pictures": pictures, "radii": RADII, "trained_for": RADIUS, "cases": []
    }  # fmt: skip
    done = {Case(*(row[name] for name in Case._fields)) for row in found["cases"]}
    for case in every:
        if case not in done:
            found["cases"].append(measure(case, steps, pictures))
            write_json(RECORD, found)
            print(case.name, flush=True)


def table() -> str:
    """The record in Markdown: means over the seeds, a row for each method and training."""
    if not RECORD.exists():
        return "Not recorded yet."
    found = json.loads(RECORD.read_text())
    rows = []
    for method, training in dict.fromkeys((row["method"], row["training"]) for row in found["cases"]):
        own = [row for row in found["cases"] if (row["method"], row["training"]) == (method, training)]
        mean = lambda part, own=own: [sum(each) / len(own) for each in zip(*(row[part] for row in own), strict=True)]  # noqa: E731
        shares = zip(mean("intervals"), mean("linear"), mean("attack"), strict=True)
        cells = [" / ".join(f"{share:.0%}" for share in part) for part in shares]
        accuracy = sum(row["accuracy"] for row in own) / len(own)
        rows.append([f"`{method}`", training, f"{accuracy:.1%}", *cells])
    columns = ["attention", "training", "right", *(f"radius {radius:g}" for radius in found["radii"])]
    said = (
        f"{describe(found['machine'])}; {len({row['seed'] for row in found['cases']})} seeds, {found['pictures']} "
        f"pictures; certified training for a radius of {found['trained_for']:g}. In each cell: certain by intervals / "
        "certain by linear bounds / withstand the attack."
    )
    return f"{said}\n\n{markdown(columns, rows)}"


if __name__ == "__main__":
    if sys.argv[1:] == ["table"]:
        PAGE.write_text(rewritten(PAGE.read_text(), START, table(), END, "certified"))
    elif sys.argv[1:] == ["small"]:
        for one in cases()[:2]:
            print(measure(one, 20, 3))
    else:
        record(cases(), STEPS, PICTURES)
