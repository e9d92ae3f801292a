"""What the documentation shows runs word for word, on tiny models in place of pretrained ones; its links hold."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from dynattn.pruning import Predictors

ROOT = Path(__file__).parents[1]
SIZES: dict[str, Any] = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}


def _tensors() -> dict[str, Any]:
    query, key, value = (torch.randn(2, 4, 32, 16, requires_grad=True) for _ in range(3))
    return {"query": query, "key": key, "value": value}


def _encoder(layers: int = 4) -> dict[str, Any]:
    config = AutoConfig.for_model("bert", vocab_size=60, num_hidden_layers=layers, **SIZES)
    inputs = {"input_ids": torch.arange(24).reshape(2, 12)}
    model = AutoModel.from_config(config).eval()
    loss: Callable[[Any], torch.Tensor] = lambda batch: model(**batch).last_hidden_state.square().mean()  # noqa: E731
    return {"model": model, "inputs": inputs, "batches": [inputs], "loss": loss}


def _classifier() -> dict[str, Any]:
    config = AutoConfig.for_model("bert", vocab_size=60, num_hidden_layers=2, **SIZES)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    given = _encoder()
    return {**_tensors(), **given, "model": model, "labels": torch.tensor([0, 1])}


def _tagger() -> dict[str, Any]:
    batches = [{**_encoder()["inputs"], "labels": torch.tensor([0, 1])}] * 2
    return {"model": _classifier()["model"], "batches": batches}


def _decoder() -> dict[str, Any]:
    config = AutoConfig.for_model("llama", vocab_size=60, num_hidden_layers=2, num_key_value_heads=2, **SIZES)
    prompt = {"input_ids": torch.arange(10).unsqueeze(0), "max_new_tokens": 2}
    inputs = {"input_ids": torch.arange(24).reshape(2, 12)}
    model = AutoModelForCausalLM.from_config(config).eval()
    return {"model": model, "prompt": prompt, "inputs": inputs, "batches": [inputs]}


def _vision() -> dict[str, Any]:
    Predictors(32).save(Path("predictors"))
    config = AutoConfig.for_model("vit", image_size=28, patch_size=7, num_hidden_layers=12, **SIZES)
    pixels = torch.randn(2, 3, 28, 28)
    return {"model": AutoModel.from_config(config).eval(), "pixel_values": pixels, "batches": [pixels]}


GIVEN: dict[str, Callable[[], dict[str, Any]]] = {
    "README.md": _encoder,
    "docs/account.md": _encoder,
    "docs/attention.md": dict,
    "docs/decode.md": _decoder,
    "docs/dropping-blocks.md": _tensors,
    "docs/integrations/diffusers.md": dict,
    "docs/integrations/onnx.md": dict,
    "docs/integrations/timm.md": dict,
    "docs/integrations/torch.md": dict,
    "docs/integrations/transformers.md": _encoder,
    "docs/kernels/cpu-linear.md": dict,
    "docs/methods/README.md": _encoder,
    "docs/methods/activations.md": _encoder,
    "docs/methods/blockbound.md": _tensors,
    "docs/methods/blockskip.md": _tensors,
    "docs/methods/blocktopk.md": _tensors,
    "docs/methods/clustered.md": _tensors,
    "docs/methods/dsa.md": _classifier,
    "docs/methods/dynamicvit.md": _vision,
    "docs/methods/efficient.md": _tensors,
    "docs/methods/fixed.md": _tensors,
    "docs/methods/ftp.md": _decoder,
    "docs/methods/gated.md": dict,
    "docs/methods/ltp.md": _encoder,
    "docs/methods/mass.md": _tensors,
    "docs/methods/nm.md": _tensors,
    "docs/methods/ponet.md": dict,
    "docs/methods/random.md": _tensors,
    "docs/methods/removed.md": _encoder,
    "docs/methods/scatterbrain.md": _tensors,
    "docs/methods/sparse-training.md": _tagger,
    "docs/methods/spatten.md": _encoder,
    "docs/methods/threshold.md": _tensors,
    "docs/methods/topk.md": _tensors,
    "docs/methods/verticalslash.md": _tensors,
    "docs/methods/weights.md": _encoder,
    "docs/methods/window.md": _tensors,
    "docs/training.md": _tensors,
    "docs/varlen.md": dict,
    "docs/verify.md": dict,
}
"""Pages, and what they leave to the reader: a model, its inputs, tensors."""
IMPORTED = (
    "CONTRIBUTING.md", "docs/compare.md", "docs/finetune.md", "docs/frontier.md", "docs/inspect.md",
    "docs/integrations/sentence-transformers.md", "docs/lra.md", "docs/tune.md",
)  # fmt: skip
"""Pages whose blocks need a model that a package carries, a training or a class of the reader's: they import."""
NEEDS = {
    "docs/integrations/diffusers.md": "diffusers",
    "docs/integrations/onnx.md": "onnxruntime",
    "docs/integrations/sentence-transformers.md": "sentence_transformers",
    "docs/integrations/timm.md": "timm",
}
PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").rglob("*.md"))
)
KERNELS = sorted(
    str(path.relative_to(ROOT))
    for path in (ROOT / "src" / "dynattn" / "kernels").rglob("*")
    if path.suffix in (".cpp", ".h", ".hpp", ".cu", ".cuh")
)
SOURCE = re.compile(r"(?<![\w/.<-])([\w-]+(?:/[\w-]+)*\.(?:py|h|hpp|cpp|cu|cuh))\b")
FOREIGN = ("torch/", "python/", "transformers/models/")  # files of other projects
TODAY = [page for page in PAGES if page != "CHANGELOG.md"]  # the changelog tells of what was
OTHERS = {
    "--check", "--pythonpath", "--cpu", "--nproc-per-node", "--num_processes", "--dry-run", "--model", "--model_args",
    "--tasks", "--attn",
}  # fmt: skip
"""Options of other programs: ruff, pyright, accelerate, torchrun, a script of benchmarks/cuda, lm_eval."""


def _blocks(page: str) -> list[str]:
    """Its blocks of Python."""
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.S | re.M)


def test_every_page_that_shows_code_is_tried() -> None:
    assert {page for page in PAGES if _blocks(page)} == {*GIVEN, *IMPORTED}


@pytest.mark.parametrize("page", IMPORTED)
def test_imports_of_a_page(page: str) -> None:
    """Of a page whose blocks are not run."""
    pytest.importorskip(NEEDS.get(page, "plotly"))
    for block in _blocks(page):
        for node in ast.parse(block).body:
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                exec(ast.unparse(node), {})


@pytest.mark.parametrize("page", GIVEN)
def test_page(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its blocks of Python, in their order, in one namespace."""
    if page in NEEDS:
        pytest.importorskip(NEEDS[page], reason=f"needs {NEEDS[page]}")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names = GIVEN[page]()
    for number, block in enumerate(_blocks(page)):
        exec(compile(block, f"{page}, block {number}", "exec"), names)


def _anchors(page: Path) -> set[str]:
    """The headings of a page as GitHub addresses them."""
    headings = re.findall(r"^#+ +(.*)$", page.read_text(encoding="utf-8"), re.M)
    plain = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading) for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    """To a file of the repository, and to a heading of it where one is named."""
    for link in re.findall(r"\]\(([^)\s]+)\)", (ROOT / page).read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), f"{page} links to {link}"
        assert not anchor or anchor in _anchors(target), f"{page} links to {link}"


@pytest.fixture(scope="module")
def sources() -> list[str]:
    """Every source file, with a slash in front, so that the end of a path can be looked for."""
    folders = ("src", "tests", "benchmarks", "docs", "examples")
    return [f"/{path.relative_to(ROOT)}" for folder in folders for path in (ROOT / folder).rglob("*.*")]


@pytest.mark.parametrize("page", [*TODAY, *KERNELS])
def test_source_files_that_are_named_are_there(page: str, sources: list[str]) -> None:
    """In pages, and in the comments of kernels."""
    text = (ROOT / page).read_text(encoding="utf-8")
    if not page.endswith(".md"):
        text = "\n".join(re.findall(r"//(.*)", text))
    named = {name for name in SOURCE.findall(text) if not name.startswith(FOREIGN)}
    lost = [name for name in sorted(named) if not any(source.endswith(f"/{name}") for source in sources)]
    assert not lost, f"{page} names files that are not there: {lost}"


def test_the_map_names_every_room() -> None:
    """Folders and modules of the package, and nothing that is not there."""
    guide = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = guide[guide.index("| in `src/dynattn/`") :].split("\n\n")[0]
    named = {name.rstrip("/") for name in re.findall(r"`([\w/]+/|\w+\.py)`", table)} - {"src/dynattn"}
    package = ROOT / "src" / "dynattn"
    rooms = {path.name for path in package.iterdir() if path.is_dir() and any(path.rglob("*.py"))}
    modules = {path.name for path in package.glob("*.py")} - {"__init__.py", "__main__.py", "version.py"}
    assert named == rooms | modules


def _resolves(name: str) -> bool:
    """Whether a dotted name is a module, or something that a module or a class of it has."""
    found: Any = importlib.import_module("dynattn")
    path = "dynattn"
    for part in name.split(".")[1:]:
        path += f".{part}"
        if not hasattr(found, part) and part not in getattr(found, "__annotations__", {}):
            try:
                importlib.import_module(path)
            except ImportError:
                return False
        found = getattr(found, part, None)
    return True


@pytest.mark.parametrize("page", TODAY)
def test_names_of_the_package_are_there(page: str) -> None:
    """``dynattn.explain``, ``dynattn.integrations.transformers.register`` and their like."""
    text = (ROOT / page).read_text(encoding="utf-8")
    lost = [name for name in sorted(set(re.findall(r"(?<![\w./:-])dynattn(?:\.\w+)+", text))) if not _resolves(name)]
    assert not lost, f"{page} names what is not there: {lost}"


@pytest.fixture(scope="module")
def options() -> dict[str, set[str]]:
    """The options of each command."""
    main = pytest.importorskip("typer.main")
    from dynattn.cli import app

    return {
        name: {"--help", *(option for one in command.params for option in (*one.opts, *one.secondary_opts))}
        for name, command in main.get_command(app).commands.items()
    }


@pytest.mark.parametrize("page", TODAY)
def test_options_of_the_commands_are_there(page: str, options: dict[str, set[str]]) -> None:
    """Behind a command its own; elsewhere those of any command, or of another program."""
    text = (ROOT / page).read_text(encoding="utf-8").replace("\\\n", " ")
    option = r"(?<![\w-])--[a-z][\w-]*"
    lost = set(re.findall(option, text)) - OTHERS - set().union(*options.values())
    for command, rest in re.findall(r"\bdynattn (\w+)([^\n`#|;]*)", text):
        own = options.get(command, OTHERS)
        lost |= set(re.findall(option, rest)) - (own | OTHERS if command == "run" else own)
    assert not lost, f"{page} has options that are not there: {sorted(lost)}"
