"""Which of timm's models attend by dynattn: the smallest model of every family, with random weights.

    python benchmarks/timm_models.py                  # all families, and the table of docs/integrations/timm.md
    python benchmarks/timm_models.py beit swin_transformer    # some, and nothing is written

Outputs with ``dense`` are compared with the model's own; attention is watched by its operators, so that none is missed.
"""

from __future__ import annotations

import sys
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.attention_watch import watching
from dynattn.integrations import timm as dynattn_timm
from dynattn.integrations.transformers import Coverage

PAGE = Path(__file__).parents[1] / "docs/integrations/timm.md"
START, END = "<!-- models: start -->", "<!-- models: end -->"
SMALL = ("test", "atto", "femto", "pico", "nano", "xxs", "xxt", "tiny", "xs", "small", "t0", "b0", "s12", "50", "s")
LARGEST = 170_000_000
"""Parameters of a model that is still built."""
SAID = {
    "exact": "all attention modules take part, and outputs are the model's own",
    "in part": "outputs are the model's own; a warning names modules that keep attention of their own",
    "refused": "an error says that its attention modules keep attention of their own",
    "no attention": "an error says that it does not attend",
    "other outputs": "outputs differ",
    "silent": "attention that is not dynattn's, and that nothing names",
    "not run": "no model of it was built or ran",
}


def _rank(name: str) -> int:
    return next((i for i, word in enumerate(SMALL) if word in name), len(SMALL))


def _model(family: str) -> tuple[nn.Module, Tensor]:
    """The smallest model of a family, by its name, and an image of its size."""
    import timm  # pyright: ignore[reportMissingImports]

    names = sorted(timm.list_models(module=family), key=lambda name: (_rank(name), len(name)))
    for name in names[:6]:
        with torch.device("meta"):
            size = sum(one.numel() for one in timm.create_model(name, pretrained=False).parameters())
        if size <= LARGEST:
            torch.manual_seed(0)
            model = timm.create_model(name, pretrained=False).eval()
            return model, torch.randn(1, *model.pretrained_cfg["input_size"])  # type: ignore[index]
    raise ValueError(f"the smallest has {size // 1_000_000} million parameters")


def _differ(found: Any, expected: Any) -> bool:
    pairs = zip(found, expected, strict=True) if isinstance(found, (tuple, list)) else ((found, expected),)
    return any((one - other).abs().max() > 1e-4 * other.abs().max().clamp(min=1e-3) for one, other in pairs)


@torch.no_grad()
def judge(family: str) -> tuple[str, str]:
    """What becomes of a family, and the modules that it is about."""
    try:
        model, images = _model(family)
        expected = model(images)
    except Exception as error:
        return "not run", f"{type(error).__name__}: {str(error)[:80]}"
    try:
        with dynattn_timm.apply(model, "dense") as parts, watching(model, parts) as watch:
            found = model(images)
    except ValueError as error:
        named = str(error)
        with watching(model, Coverage((), (), (), ())) as watch:
            model(images)
        missed = [kinds[-1] for kinds in watch.attending if not any(kind in named for kind in kinds)]
        if missed:
            return "silent", ", ".join(sorted(set(missed)))
        return ("no attention", "") if "do not attend" in named else ("refused", named.split("(")[1].split(")")[0])
    own = {part.kind for part in parts.own}
    missed = {kinds[-1] for kinds in watch.attending if not own & set(kinds)}
    missed |= {type(module).__name__ for module in watch.ran - watch.called}
    if missed:
        return "silent", ", ".join(sorted(missed))
    if _differ(found, expected):
        return "other outputs", ""
    return ("in part", ", ".join(sorted(own))) if own else ("exact", "")


def table(judged: dict[str, tuple[str, str]]) -> str:
    """What becomes of the families, in Markdown."""
    import timm  # pyright: ignore[reportMissingImports]

    by: dict[str, list[str]] = defaultdict(list)
    for family, (what, about) in judged.items():
        by[what].append(f"{family} ({about})" if about else family)
    lines = [f"timm {timm.__version__}, torch {torch.__version__.split('+')[0]}, {len(judged)} families:", ""]
    lines += ["|  | families | of `timm.models` |", "| --- | --- | --- |"]
    lines += [f"| **{what}**: {SAID[what]} | {len(by[what])} | {', '.join(by[what])} |" for what in SAID if by[what]]
    return "\n".join(lines)


def main() -> None:
    """Judge the families that are named, or all of them and write the table."""
    import timm  # pyright: ignore[reportMissingImports]

    warnings.simplefilter("ignore")
    asked = sys.argv[1:]
    judged: dict[str, tuple[str, str]] = {}
    for family in asked or sorted(timm.list_modules()):
        judged[family] = judge(family)
        print(family, *judged[family], flush=True)
    if not asked:
        page = PAGE.read_text(encoding="utf-8")
        before, after = page.split(START)[0], page.split(END)[1]
        PAGE.write_text(f"{before}{START}\n\n{table(judged)}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
