"""The command as a whole, on tiny models with random weights: a file that another process loads, and refusals."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("rich")
pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

import transformers

from dynattn.integrations.transformers import assign, load
from dynattn.lab.figures import BASELINE, Spread
from dynattn.lab.terminal import console
from dynattn.lab.tune import run as stages
from dynattn.lab.tune.assignment import methods
from dynattn.lab.tune.begin import begin, given
from dynattn.lab.tune.command import run
from dynattn.lab.tune.exams import FEWEST
from dynattn.lab.tune.layers import Clocked
from dynattn.lab.tune.plan import MOST, Counts, Plan
from dynattn.lab.tune.results import Raced, Tuning
from dynattn.lab.tune.search import Measured
from dynattn.lab.tune.settings import Settings

LENGTH = 64
LOADED = """
import sys, torch, transformers
from dynattn.integrations.transformers import load
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()
load(model, sys.argv[2])
with torch.inference_mode():
    torch.save(model(torch.arange(64)[None] % 60).logits, sys.argv[3])
"""


@pytest.fixture
def fast(monkeypatch):
    """See :func:`make_fast`."""
    make_fast(monkeypatch)


def make_fast(monkeypatch):
    """A machine on which sparse attention pays, whatever this one is: half of a forward is attention."""

    def clocked(pretrained, inputs):
        from dynattn.integrations.transformers import attention_modules

        names = attention_modules(pretrained.model)
        return Clocked(0.01, dict.fromkeys(names, 0.005 / len(names)))

    def clock(pretrained, inputs, names, seconds, advance):
        config, modules = pretrained.model.config, clocked(pretrained, inputs).modules
        call = 0.005 / len(modules)
        costs = {"dense": call, **dict.fromkeys(names[:3], call / 2)}
        return [dict.fromkeys(modules, 0), [costs], [0.0], [config.num_attention_heads]]

    def plan(seconds, entry, share, second, shorter=0, forward=None):
        return Plan(Counts(search=2, search_second=1, prove=20, candidates=6), 2, 0.1, 3)

    # The models are random: what they lose is told all the same.
    monkeypatch.setattr("dynattn.lab.tune.exams.Exam.says_nothing", lambda *_: False)
    even = Spread(median=1.3, q1=1.2, q3=1.4)
    monkeypatch.setattr(stages, "clocked", clocked)
    monkeypatch.setattr("dynattn.lab.tune.begin.clocked", clocked)
    monkeypatch.setattr("dynattn.lab.tune.begin.plan", plan)
    monkeypatch.setattr("dynattn.lab.tune.parts.MOST", MOST._replace(prove=32))  # hiding numbers takes time
    monkeypatch.setattr("dynattn.lab.tune.begin.costs", lambda *_: {})  # linear layers that leave something out do not
    monkeypatch.setattr(stages, "clock_candidates", clock)
    monkeypatch.setattr(
        stages, "race", lambda *_: Raced(dense=even, tuned=even, speedup=even, rounds=3, disturbed=None)
    )


def make_sdpa_slow(monkeypatch):
    """Dense attention of this library takes two thirds of the time of PyTorch's."""
    timed = stages.clock_candidates

    def clock(*given):
        shapes, (costs,), *more = timed(*given)
        return [shapes, [{**costs, BASELINE: 1.5 * costs["dense"]}], *more]

    monkeypatch.setattr(stages, "clock_candidates", clock)


def _settings(model: Path, own: Path, **given) -> Settings:
    return Settings(str(model), **{"texts": own, "length": LENGTH, "max_loss": 0.2, "minutes": 1000, **given})


def _tuned(settings: Settings, output: Path, workers: int = 1) -> tuple[Tuning, str]:
    screen = io.StringIO()
    found = run(settings, output, console(screen), workers)
    assert isinstance(found, Tuning)
    return found, screen.getvalue()


@pytest.fixture(scope="module")
def undisturbed(tiny_decoder, many_texts, tmp_path_factory) -> tuple[Tuning, str, Path]:
    """What a run from the first stage to the last finds, what it says, and the folder that it writes to."""
    output = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        make_fast(patch)
        return *_tuned(_settings(tiny_decoder, many_texts), output), output


@pytest.mark.usefixtures("forked_python")
def test_a_faster_model_is_written_and_another_process_loads_it(undisturbed, tiny_decoder, tmp_path):
    found, said, output = undisturbed
    assert found.verdict == "faster"
    assert found.tries[-1].holds
    assert {lost.task for lost in found.tries[-1].lost} == {"perplexity", "keys"}
    assert found.rival is not None
    assert found.rival.tuned == found.tries[-1].lost[0].loss
    assert "best single method for all heads" in said
    folder = output / f"tune-{tiny_decoder.name}"
    file = folder / "model.dynattn.json"
    assert f"model   {file}" in said
    assert (folder / "tune.html").read_text().startswith("<!doctype html>")
    assert Tuning.model_validate(json.loads((folder / "tune.json").read_text())) == found
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_decoder).eval()
    what = load(model, file)
    assert what.methods == methods(found.heads)
    assert what.lengths == (LENGTH, LENGTH)
    proved = [each for each in what.evidence if each.what.startswith("relative loss")]
    assert len(proved) == 2
    assert all(each.high is not None and each.high <= each.details["limit"] for each in proved)
    subprocess.run([sys.executable, "-c", LOADED, tiny_decoder, file, tmp_path / "logits.pt"], check=True)
    other = transformers.AutoModelForCausalLM.from_pretrained(tiny_decoder).eval()
    assign(other, methods(found.heads), phase="prefill")
    with torch.inference_mode():
        expected = other(torch.arange(64)[None] % 60).logits
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), expected)


def test_a_run_that_was_killed_goes_on_where_it_was(fast, tiny_decoder, many_texts, tmp_path, monkeypatch):
    settings = _settings(tiny_decoder, many_texts)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stages, "race", killed)
        with pytest.raises(KeyboardInterrupt):
            _tuned(settings, tmp_path)
    with monkeypatch.context() as patch:  # neither search nor proof runs again
        patch.setattr("dynattn.lab.tune.sensitivity.look", killed)
        patch.setattr("dynattn.lab.tune.prove.Scorer.own", killed)
        found, _ = _tuned(settings, tmp_path)
    assert found.verdict == "faster"


def test_a_run_that_goes_on_proves_what_was_chosen_before(fast, tiny_decoder, many_texts, tmp_path, monkeypatch):
    """Even where more time finds something faster: the first choice was tried on these texts already."""
    settings = _settings(tiny_decoder, many_texts, max_loss=0.9)
    first, _ = _tuned(settings, tmp_path)

    sought = stages.Search.run

    def another(search, *given):
        sought(search, *given)
        return replace(search.measured[0], point=search.choices.most)

    monkeypatch.setattr(stages.Search, "run", another)
    monkeypatch.setattr(stages.Run, "_in_time", lambda *_: True)
    second, _ = _tuned(settings, tmp_path)
    assert first.verdict == second.verdict == "faster"
    assert second.heads == first.heads
    assert [each.lost for each in second.tries] == [each.lost for each in first.tries]
    assert [each for each in second.considered if each.name == "measured"] == [
        each for each in first.considered if each.name == "measured"
    ]
    kept = json.loads((tmp_path / f"tune-{tiny_decoder.name}" / "stages.json").read_text())["found"]
    assert [name for name in kept if name.startswith("race")] == [f"race None {sorted(methods(first.heads).items())}"]


def test_what_another_version_of_the_code_left_is_not_taken_up(
    fast, undisturbed, tiny_decoder, many_texts, tmp_path, monkeypatch
):
    settings = _settings(tiny_decoder, many_texts)
    first, said, output = undisturbed
    assert "begun anew" not in said
    shutil.copytree(output, tmp_path, dirs_exist_ok=True)
    stages_file = tmp_path / f"tune-{tiny_decoder.name}" / "stages.json"
    there = json.loads(stages_file.read_text())
    for name in there["found"]:
        if name.startswith("measured"):  # other items, as an earlier version had them
            there["found"][name] = [[3.0] * 5, [3.0] * 2]
    stages_file.write_text(json.dumps(there))
    monkeypatch.setattr("dynattn.lab.tune.command.fingerprint", lambda: "another")
    second, said = _tuned(settings, tmp_path)
    assert "another version of the code: it is begun anew" in said
    assert second.heads == first.heads
    _, said = _tuned(settings, tmp_path)
    assert "going on with" in said


KILLED = """
import os, signal, sys
import test_command as own
from dynattn.lab.tune.store import Store

put = Store.put
def until(self, name, found):
    put(self, name, found)
    if name.startswith("proof dense 0 perplexity 3"):
        os.kill(os.getpid(), signal.SIGKILL)
Store.put = until
with own.pytest.MonkeyPatch.context() as patch:
    own.make_fast(patch)
    own._tuned(own._settings(own.Path(sys.argv[1]), own.Path(sys.argv[2])), own.Path(sys.argv[3]))
"""


@pytest.mark.usefixtures("forked_python")
def test_a_run_that_was_ended_by_kill_9_goes_on_and_finds_the_same(
    fast, undisturbed, tiny_decoder, many_texts, tmp_path
):
    settings, here = _settings(tiny_decoder, many_texts), Path(__file__)
    there = f"import sys; sys.path.insert(0, {str(here.parent)!r})"
    folders = [str(each) for each in (tiny_decoder, many_texts, tmp_path)]
    ended = subprocess.run([sys.executable, "-c", f"{there}\n{KILLED}", *folders], check=False, capture_output=True)
    assert ended.returncode == -9, ended.stderr.decode()
    stages_file = tmp_path / f"tune-{tiny_decoder.name}" / "stages.json"
    before = json.loads(stages_file.read_text())["found"]
    assert any(name.startswith("proof dense 0 perplexity 3") for name in before)
    found, _ = _tuned(settings, tmp_path)
    after = json.loads(stages_file.read_text())["found"]
    assert {name: after[name] for name in before} == before
    assert len(after) > len(before)
    whole, _, _ = undisturbed
    assert (found.verdict, found.heads, found.tries) == (whole.verdict, whole.heads, whole.tries)


@pytest.mark.usefixtures("forked_python")
@pytest.mark.slow
def test_workers_find_what_one_process_finds(fast, undisturbed, tiny_decoder, many_texts, tmp_path, monkeypatch):
    settings = _settings(tiny_decoder, many_texts)
    alone, _, _ = undisturbed
    for name in (
        "sensitivity.look",
        "prove.Scorer.own",
        "prove.Scorer.dense",
    ):  # of this process; workers have their own
        monkeypatch.setattr(f"dynattn.lab.tune.{name}", None)
    together, _ = _tuned(settings, tmp_path, workers=2)
    assert together.verdict == alone.verdict == "faster"
    assert together.heads == alone.heads
    assert [lost.items for lost in together.tries[-1].lost] == [lost.items for lost in alone.tries[-1].lost]
    for ours, theirs in zip(together.tries[-1].lost, alone.tries[-1].lost, strict=True):
        assert ours.tuned == pytest.approx(theirs.tuned, abs=1e-5)


def test_workers_are_refused_where_there_is_nothing_for_them(tiny_decoder, many_texts, tmp_path):
    with pytest.raises(ValueError, match="--workers and --ray are of the prefill phase"):
        run(_settings(tiny_decoder, many_texts, phase="decode"), tmp_path, console(io.StringIO()), workers=2)


def test_where_ray_is_missing_this_is_said_before_the_work(tiny_decoder, many_texts, tmp_path, monkeypatch):
    monkeypatch.setattr("dynattn.lab.tune.command.find_spec", lambda _: None)
    monkeypatch.setattr("dynattn.lab.tune.command.load", None)
    with pytest.raises(ImportError, match="--ray needs Ray: pip install"):
        run(_settings(tiny_decoder, many_texts), tmp_path, console(io.StringIO()), ray=True)


def test_where_attention_takes_no_time_the_search_is_not_begun(fast, tiny_decoder, many_texts, tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "clocked", lambda *_: Clocked(1.0, {"m": 0.01}))
    monkeypatch.setattr(stages, "clock_candidates", None)
    folder = tmp_path / f"tune-{tiny_decoder.name}"
    folder.mkdir()
    (folder / "model.dynattn.json").write_text("of a run before")
    found, said = _tuned(_settings(tiny_decoder, many_texts), tmp_path)
    assert found.verdict == "dense"
    assert "keep dense attention: attention takes 1.0% of a forward" in said
    assert not (folder / "model.dynattn.json").exists()
    assert "keep dense attention" in (folder / "tune.html").read_text()


def test_dense_attention_that_the_search_finds_best_is_not_put_to_a_proof(
    fast, tiny_decoder, many_texts, tmp_path, monkeypatch
):
    def best(self):
        return replace(self.measured[0], point=self.choices.point(0))

    make_sdpa_slow(monkeypatch)
    monkeypatch.setattr(stages.Search, "best", best)
    monkeypatch.setattr(stages, "prove", None)
    found, said = _tuned(_settings(tiny_decoder, many_texts), tmp_path)
    assert (found.exact, found.verdict, found.tries) == (True, "faster", [])
    assert "Of sparse attention: nothing that was measured and gains anything is foreseen to keep the limit" in said


def test_where_nothing_is_proved_dense_attention_of_the_faster_kernel_is_what_is_written(
    fast, tiny_decoder, many_texts, tmp_path, monkeypatch
):
    prove = stages.prove

    def unproved(*given):
        found = prove(*given)
        return found.model_copy(update={"lost": [its.model_copy(update={"proved": False}) for its in found.lost]})

    make_sdpa_slow(monkeypatch)
    monkeypatch.setattr(stages, "prove", unproved)
    found, said = _tuned(_settings(tiny_decoder, many_texts), tmp_path)
    assert found.exact
    assert found.verdict == "faster"
    assert {name for heads in found.heads.values() for name in heads} == {"dense"}
    assert "which loses nothing. Of sparse attention: that the loss of perplexity stays below" in said
    folder = tmp_path / f"tune-{tiny_decoder.name}"
    assert "None of these is what is written" in (folder / "tune.html").read_text()
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_decoder).eval()
    ids = torch.arange(LENGTH)[None] % 60
    with torch.no_grad():
        expected = model(ids).logits
        what = load(model, folder / "model.dynattn.json")
        torch.testing.assert_close(model(ids).logits, expected)
    assert [each.what for each in what.evidence] == ["speed-up of the whole model over SDPA"]


def test_where_data_is_too_few_for_any_claim_this_is_the_result(fast, tiny_decoder, many_texts, tmp_path, monkeypatch):
    """As with the ten recordings that packages carry: nothing is searched for, and the page says why."""
    monkeypatch.setattr(
        "dynattn.lab.tune.command.begin", lambda *given: replace(begin(*given), few="there are 7, and 15 are needed")
    )
    monkeypatch.setattr(stages, "Search", None)
    settings = _settings(tiny_decoder, many_texts)
    found, said = _tuned(settings, tmp_path / "no faster")
    assert found.verdict == "dense"
    assert "keep dense attention: there are 7, and 15 are needed" in said
    assert "there are 7" in (tmp_path / "no faster" / f"tune-{tiny_decoder.name}" / "tune.html").read_text()

    make_sdpa_slow(monkeypatch)
    found, said = _tuned(settings, tmp_path / "faster")
    assert (found.verdict, found.exact, found.tries) == ("faster", True, [])
    assert "which loses nothing. Of sparse attention: there are 7, and 15 are needed" in said


def test_an_encoder_may_be_given_fewer_tokens_and_the_file_does_so(
    fast, tiny_encoder, many_texts, tmp_path, monkeypatch
):
    even = {None: 1.1, "random-tokens-0.4": 1.7}

    def race(pretrained, heads, inputs, rounds, whole=None):
        speed = even.get(whole, 1.3)
        return Raced(**dict.fromkeys(("dense", "tuned", "speedup"), Spread(median=speed, q1=speed, q3=speed)),
                     rounds=3, disturbed=None)  # fmt: skip

    monkeypatch.setattr(stages, "race", race)
    monkeypatch.setattr(Measured, "keeps", property(lambda each: each.whole != "random-tokens-0.3"))
    found, said = _tuned(_settings(tiny_encoder, many_texts, max_loss=0.9, length=32), tmp_path)
    assert found.verdict == "faster"
    assert found.pruning == "random-tokens-0.4"
    assert found.tries[-1].pruning == found.pruning
    assert found.speed is not None
    assert found.speed.speedup.median == 1.7
    assert {str(each.pruning).rsplit("-", 1)[0] for each in found.whole_model} == {"spatten", "ltp", "random-tokens"}
    assert "random-tokens-0.4 takes tokens out" in said
    folder = tmp_path / f"tune-{tiny_encoder.name}"
    assert "What fewer tokens would lose" in (folder / "tune.html").read_text()
    model = transformers.AutoModel.from_pretrained(tiny_encoder).eval()
    load(model, folder / "model.dynattn.json")
    with torch.no_grad():
        states = model(torch.arange(32)[None] % 60).last_hidden_state
    assert 0 < (states == 0).all(-1).sum() < 32


def test_linear_layers_may_leave_inputs_out_and_the_file_does_so_in_prompts(
    fast, tiny_decoder, many_texts, tmp_path, monkeypatch
):
    dense = {"q": 1.0, "o": 1.0, "gate": 2.0, "down": 2.0, "mlp": 4.0}
    seconds = {"dense": dense, "nmact-1-2": {**dense, "gate": 1.0, "mlp": 3.0}}

    def race(pretrained, heads, inputs, rounds, whole=None):
        speed = 1.1 if whole is None else 1.7
        return Raced(**dict.fromkeys(("dense", "tuned", "speedup"), Spread(median=speed, q1=speed, q3=speed)),
                     rounds=3, disturbed=None)  # fmt: skip

    monkeypatch.setattr("dynattn.lab.tune.parts.MOST", MOST._replace(prove=32))  # hiding numbers takes time
    monkeypatch.setattr("dynattn.lab.tune.begin.costs", lambda *_: seconds)
    monkeypatch.setattr(stages, "race", race)
    monkeypatch.setattr(stages, "clocked", lambda *_: Clocked(0.01, {"m": 0.0001}))  # attention alone is not worth it
    settings = _settings(tiny_decoder, many_texts, max_loss=0.9)
    found, said = _tuned(settings, tmp_path)
    assert found.verdict == "faster"
    assert (found.pruning, found.tries[-1].linears) == (None, found.linears)
    assert found.linears is not None
    assert found.linears.startswith("bysite(nmact-1-2=0.gate+0.up")
    assert "inputs are left out anew for each token: nmact-1-2 in" in said
    assert {each.linears is None for each in found.whole_model} == {False}
    folder = tmp_path / f"tune-{tiny_decoder.name}"
    page = (folder / "tune.html").read_text()
    assert "What linear layers that leave inputs out would lose" in page
    assert "What fewer tokens would lose" not in page
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_decoder).eval()
    ids = torch.arange(LENGTH)[None] % 60
    assign(model, methods(found.heads), phase="prefill")
    with torch.no_grad():
        before = [model(ids).logits, model(ids[:, :1]).logits]
        tuned = load(model, folder / "model.dynattn.json")
        after = [model(ids).logits, model(ids[:, :1]).logits]
    assert set(tuned.linears) == {"prefill"}
    assert not torch.allclose(before[0], after[0])
    torch.testing.assert_close(before[1], after[1])
    monkeypatch.setattr("dynattn.lab.tune.linears.prefill.family", None)  # a run that goes on does not look again
    again, _ = _tuned(settings, tmp_path)
    assert (again.linears, again.whole_model, again.tries) == (found.linears, found.whole_model, found.tries)


def test_an_encoder_is_judged_by_retrieval(fast, tiny_encoder, many_texts, tmp_path):
    found, said = _tuned(_settings(tiny_encoder, many_texts, max_loss=0.9, length=32), tmp_path)
    assert found.kind == "encoder"
    assert [lost.task for lost in found.tries[0].lost] == ["retrieval"]
    assert found.tries[0].lost[0].items >= FEWEST
    assert "speaking of these alone" in found.tries[0].lost[0].data
    assert "retrieval" in said


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        ({"length": 4096}, "within the model's context: got 4096, .* takes 256"),
        ({"length": 256, "texts": None}, "hold at least"),
        ({"texts": Path("nowhere")}, "must be a file or a folder"),
        ({"minutes": 0.05, "length": 200}, "minutes must suffice"),
        ({"texts": None, "task": "nowhere:make"}, "must name a function that can be imported"),
        ({"texts": None, "task": "a..b:make"}, "must name a function that can be imported"),
        ({"texts": None, "task": "broken_task_of_a_test:make"}, "can be imported: .*: division by zero; .*PYTHONPATH"),
        ({"texts": None, "task": "json:dumps"}, "the model and of the part's number: .* is one of other arguments"),
        ({"texts": None, "task": "os:name"}, "the model and of the part's number: .* is a str"),
        ({"task": "os:getcwd"}, "brings its own data"),
    ],
)
def test_what_cannot_be_is_refused_before_the_work(given, rule, tiny_decoder, texts, tmp_path, monkeypatch):
    if given.get("texts", 0) is None and "task" not in given:
        short = tmp_path / "short"
        short.mkdir()
        (short / "a.txt").write_text("moon river stone " * 200)
        given = {**given, "texts": short}
    (tmp_path / "broken_task_of_a_test.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("dynattn.lab.tune.begin.clocked", lambda *_: Clocked(60.0, {"m": 20.0}))
    monkeypatch.setattr(stages, "clocked", None)
    with pytest.raises(ValueError, match=rule):
        _tuned(_settings(tiny_decoder, texts, **given), tmp_path)


def test_a_dense_model_that_guesses_is_refused(fast, tiny_decoder, many_texts, tmp_path, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr("dynattn.lab.tune.begin.plan", lambda *_, **__: Plan(Counts(8, 1, 20, 6), 2, 0.1, 3))
    monkeypatch.setattr(stages, "LEAST_GAIN", 1.0)
    monkeypatch.setattr(stages, "clock_candidates", None)  # before the search
    with pytest.raises(ValueError, match=r"better than guesses: .* perplexity is 4\.1\d+, and 4\.159 is a guess's"):
        _tuned(_settings(tiny_decoder, many_texts), tmp_path)


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_texts_of_unknown_words_are_refused(kind, fast, tiny_encoder, tiny_decoder, tmp_path):
    lines = (
        "Quantum zebras flux over hidden plasma fields of many cold worlds, again and again. " * 60 + f"Number {i}."
        for i in range(40)
    )
    (tmp_path / "other.txt").write_text("\n".join(lines))
    model = tiny_encoder if kind == "encoder" else tiny_decoder
    with pytest.raises(ValueError, match=r"the tokenizer must know the texts: .* unknown tokens"):
        _tuned(_settings(model, tmp_path / "other.txt", length=32), tmp_path)


def test_a_run_of_another_text_of_the_task_begins_anew(fast, tiny_decoder, many_texts, tmp_path, monkeypatch):
    keys = []
    monkeypatch.setattr(
        "dynattn.lab.tune.command.Store", lambda path, key: keys.append(key) or SimpleNamespace(told=None)
    )
    monkeypatch.setattr("dynattn.lab.tune.command.begin", None)
    monkeypatch.syspath_prepend(str(tmp_path))
    for text in ("first", "second", "second"):
        (tmp_path / "own_task_of_a_test.py").write_text(f"def make(model, part):\n    return '{text}'\n")
        with pytest.raises(TypeError):
            _tuned(_settings(tiny_decoder, many_texts, texts=None, task="own_task_of_a_test:make"), tmp_path)
    assert keys[0] != keys[1] == keys[2]


def test_copies_of_a_text_count_once(tiny_decoder, many_texts, tmp_path):
    first = (many_texts / "0.txt").read_text()
    for number in range(30):
        (tmp_path / f"{number}.txt").write_text(first + "\n" * number)
    (tmp_path / "other.md").write_text((many_texts / "1.txt").read_text())
    assert len(given(_settings(tiny_decoder, tmp_path)) or ()) == 2


def test_what_is_refused_leaves_no_folder(tiny_decoder, tmp_path):
    with pytest.raises(ValueError, match="must be a file or a folder"):
        _tuned(_settings(tiny_decoder, tmp_path / "nowhere"), tmp_path / "reports")
    assert not (tmp_path / "reports" / f"tune-{tiny_decoder.name}").exists()


def test_another_run_in_the_same_folder_is_refused(tiny_decoder, texts, tmp_path):
    from dynattn.lab.records import alone

    with alone(tmp_path / f"tune-{tiny_decoder.name}"), pytest.raises(ValueError, match="one command at a time"):
        _tuned(_settings(tiny_decoder, texts), tmp_path)


def test_a_folder_that_cannot_be_written_is_noticed_before_the_work(tiny_decoder, texts, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="another --output"):
        _tuned(_settings(tiny_decoder, texts), tmp_path / "file")
