"""Documents a second of a sentence encoder on texts of mixed lengths: padded by SDPA, and without padding by dynattn.

    python benchmarks/sentence_transformers_batches.py                     # two minutes; needs an idle machine
    python benchmarks/sentence_transformers_batches.py float32 bfloat16    # both, where the processor has bfloat16
    python benchmarks/sentence_transformers_batches.py table               # the page's table from the record

The record is benchmarks/results/sentence-transformers.json, the page docs/integrations/sentence-transformers.md.

all-MiniLM-L6-v2 by sentence-transformers' own ``encode``, which sorts texts by length, 32 at a time. The texts are the
first 64 news articles of the Lee corpus, which gensim carries. Quality: the first sentence of each article has to find
the rest of it among all; the reciprocal of its rank, up to 10, differences paired by article with 95% bootstrap
intervals.
"""

from __future__ import annotations

import copy
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gensim.test.utils import datapath
from marked import markdown, rewritten
from sentence_transformers import SentenceTransformer

from dynattn.integrations.sentence_transformers import unpad
from dynattn.lab.data.packages import folder
from dynattn.lab.machine import describe, machine
from dynattn.lab.models import minilm
from dynattn.lab.records import write_json
from dynattn.lab.statistics import interval
from dynattn.lab.timing import LEAST_ROUNDS, interleaved

RECORD = Path(__file__).parent / "results" / "sentence-transformers.json"
PAGE = Path(__file__).parent.parent / "docs" / "integrations" / "sentence-transformers.md"
START, END = "<!-- written by benchmarks/sentence_transformers_batches.py -->", "<!-- end -->"
BASELINE = "sdpa, padded"
METHODS = ("dense", "nm-1-2", "nm-1-2-x16")
ARTICLES = 64
SECONDS = 25.0
MOST = 10  # a query that ranks its article lower has found nothing


def corpus() -> list[tuple[str, str]]:
    """The first sentence of each article, and the rest."""
    articles = Path(datapath("lee_background.cor")).read_text(encoding="utf-8").splitlines()[:ARTICLES]
    parts = (article.partition(". ") for article in articles)
    return [(first, rest) for first, _, rest in parts if rest]


def reciprocal_ranks(model: SentenceTransformer, texts: list[tuple[str, str]]) -> np.ndarray:
    """The score of each query: 1 over the rank of its article, 0 beyond ``MOST``."""
    queries, rests = (
        torch.nn.functional.normalize(model.encode(list(side), convert_to_tensor=True).float(), dim=-1)
        for side in zip(*texts, strict=True)
    )
    scores = queries @ rests.T
    ranks = (scores > scores.diagonal()[:, None]).sum(-1) + 1
    return (1 / ranks).where(ranks <= MOST, 0.0).double().numpy()


def measure(dtypes: list[str]) -> None:
    """Time and judge every method in each of these dtypes."""
    torch.set_num_threads(int(machine()["cores"]))
    texts, cases = corpus(), []
    documents = [rest for _, rest in texts]
    for dtype in dtypes:
        path = str(folder(*minilm.PACKAGE) / "model")
        padded = SentenceTransformer(path, device="cpu", model_kwargs={"dtype": getattr(torch, dtype)})
        models = {BASELINE: padded}
        for name in METHODS:
            models[name] = copy.deepcopy(padded)
            unpad(models[name], name)
        scores = {name: reciprocal_ranks(model, texts) for name, model in models.items()}
        encode = {name: partial(model.encode, documents, convert_to_tensor=True) for name, model in models.items()}
        own = encode[BASELINE]().double()
        off = {
            name: float(((run().double() - own).norm(dim=-1) / own.norm(dim=-1)).max()) for name, run in encode.items()
        }
        timings = interleaved(encode, seconds=SECONDS, least=LEAST_ROUNDS, min_sample=None)
        rows = {
            name: {
                "documents_per_second": len(documents) / timing.median,
                "speedup": vars(timing.speedup(timings[BASELINE])),
                "off": off[name],
                "mrr": float(scores[name].mean()),
                "difference": vars(interval(scores[name] - scores[BASELINE])),
            }
            for name, timing in timings.items()
        }
        cases.append({"dtype": dtype, "rows": rows})
    write_json(RECORD, {"machine": machine(), "documents": len(documents), "cases": cases})


def with_table(page: str) -> str:
    """The page with the table in its place.

    Raises:
        ValueError: the page has no place for it.
    """
    found = json.loads(RECORD.read_text())
    columns = ["", "documents a second", "speed-up", "embeddings off by at most", "MRR@10", "difference"]
    rows = [
        [f"{case['dtype']}: {name}", *_cells(row, name == BASELINE)]
        for case in found["cases"]
        for name, row in case["rows"].items()
    ]
    return rewritten(
        page, START, f"{describe(found['machine'])}:\n\n{markdown(columns, rows)}", END, "sentence-transformers"
    )


def _cells(row: dict[str, Any], baseline: bool) -> list[str]:
    cells = [f"{row['documents_per_second']:.0f}", f"{row['speedup']['median']:.2f}×"]
    lost = row["difference"]
    compared = ["", f"{row['mrr']:.3f}", ""]
    if not baseline:
        compared = [
            f"{row['off']:.0e}", f"{row['mrr']:.3f}", f"{lost['mean']:+.3f} [{lost['low']:+.3f}, {lost['high']:+.3f}]"
        ]  # fmt: skip
    return cells + compared


if __name__ == "__main__":
    if sys.argv[1:] == ["table"]:
        PAGE.write_text(with_table(PAGE.read_text()))
    else:
        measure(sys.argv[1:] or ["float32"])
