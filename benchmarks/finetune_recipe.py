"""Compare learning rates for fine-tuning, with dense attention alone and on articles that it trains on.

python benchmarks/finetune_recipe.py restore FOLDER       # half a minute a rate on two idle cores; stopped, it goes on
python benchmarks/finetune_recipe.py retrieval FOLDER

Neither the held-out items of ``dynattn finetune`` nor any sparse attention has a part in the choice.
"""

from __future__ import annotations

import sys
from pathlib import Path

from dynattn.lab.finetune.finetune import RECIPES
from dynattn.lab.finetune.pairs import Pairs
from dynattn.lab.finetune.restore import Restore, split
from dynattn.lab.models import Pretrained, load
from dynattn.lab.tasks import Retrieval
from dynattn.lab.tasks.texts import Text, wikipedia
from dynattn.lab.training import Experiment, Job
from dynattn.lab.training.run import run

RATES = {Restore.task: (5e-4, 1e-3, 2e-3), Retrieval.name: (3e-6, 1e-5, 3e-5, 1e-4)}
STEPS = 24  # fewer than restore takes in the end, but enough to tell the rates apart
ITEMS = {Restore.task: 32, Retrieval.name: 48}
EVERY = 10  # of the articles to train on, retrieval is judged on every tenth


def experiment(name: str, pretrained: Pretrained) -> Experiment:
    """The training of ``dynattn finetune`` on its own training articles, some of them held out in turn."""
    recipe = RECIPES[name]
    if name == Restore.task:
        return Restore(pretrained, ITEMS[name], recipe.tokens, split(wikipedia())[1])
    return Pairs(pretrained, Retrieval(items=ITEMS[name], tokens=recipe.tokens, texts=_articles(pretrained)))


def _articles(pretrained: Pretrained) -> tuple[Text, ...]:
    """Those that retrieval trains on; its items come from the first ones."""
    recipe = RECIPES[Retrieval.name]
    passages = Retrieval(items=recipe.items, tokens=recipe.tokens).prepare(pretrained).payload[0]
    held_out = {passage.label.rpartition(" ")[0] for passage in passages}
    rest = [text for text in wikipedia() if text.title not in held_out]
    return (*rest[::EVERY], *(text for i, text in enumerate(rest) if i % EVERY))


def main(name: str, folder: Path) -> None:
    """A line for each learning rate: the score after training, and before where there is one."""
    recipe, trained = RECIPES[name], experiment(name, load("minilm"))
    if trained.pretrained:
        start = trained.evaluate(trained.model("sdpa").eval(), lambda: None).mean()
        print(f"without training: {start:.4f}")
    for rate in RATES[name]:
        job = Job("sdpa", 0, STEPS, recipe.batch, rate, evaluate_every=STEPS, save_every=6)
        found = run(job, trained, folder / name / f"rate{rate:g}", lambda title, steps: lambda: None)
        print(f"learning rate {rate:g}: {found.score:.4f}", flush=True)


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in RATES:
        sys.exit(__doc__)
    main(sys.argv[1], Path(sys.argv[2]))
