"""Compare recipes for fine-tuning, with dense attention alone and on articles that ``dynattn finetune`` trains on.

python benchmarks/finetune_recipe.py FOLDER        # a minute each on two idle cores; a stopped one is resumed

Neither the held-out items of ``dynattn finetune`` nor any sparse attention has a part in the choice.
"""

from __future__ import annotations

import sys
from pathlib import Path

from dynattn.evals.models import load
from dynattn.evals.tasks import Retrieval
from dynattn.evals.tasks.texts import wikipedia
from dynattn.evals.training import Job
from dynattn.evals.training.finetune import RECIPES
from dynattn.evals.training.pairs import Pairs
from dynattn.evals.training.run import run

RATES = (3e-6, 1e-5, 3e-5, 1e-4)
EVERY = 10  # of the articles to train on, each tenth is judged on


def main(folder: Path) -> None:
    """A line for each learning rate: MRR@10 on the way, from no training on."""
    pretrained, recipe = load("minilm"), RECIPES[Retrieval.name]
    task = Retrieval(items=recipe.items, tokens=recipe.tokens)
    passages = task.prepare(pretrained).payload[0]
    held_out = {passage.label.rpartition(" ")[0] for passage in passages}
    rest = [text for text in wikipedia() if text.title not in held_out]
    texts = (*rest[::EVERY], *(text for i, text in enumerate(rest) if i % EVERY))  # items come from the first ones
    judge = Retrieval(items=48, tokens=recipe.tokens, texts=texts)
    for rate in RATES:
        experiment = Pairs(pretrained, judge)
        start = experiment.evaluate(experiment.model("sdpa").eval(), lambda: None).mean()
        job = Job("sdpa", 0, recipe.steps, recipe.batch, rate, evaluate_every=8, save_every=4)
        found = run(job, experiment, folder / f"rate{rate:g}", lambda title, steps: lambda: None)
        curve = ", ".join(f"{point.value:.4f}" for point in found.curve)
        print(f"learning rate {rate:g}: {start:.4f} without training, then {curve}", flush=True)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
