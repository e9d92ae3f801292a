"""Tasks of lm-eval's: a tiny one, described in a file, whose data lies beside it."""

from __future__ import annotations

import json
import sys

import pytest

pytest.importorskip("transformers")

from dynattn.lab.models import load
from dynattn.lab.tune import harness, own
from dynattn.lab.tune.plan import Counts

COUNTS = Counts(search=1, search_second=1, prove=1, candidates=4)
TASK = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "the moon {{{{question}}}}"
doc_to_choice: ["river", "stone"]
doc_to_target: answer
metric_list:
  - metric: acc
"""


def test_where_it_is_not_installed_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    harness._load.cache_clear()
    with pytest.raises(ImportError, match=r"--task hellaswag .* pip install lm_eval; or .* module:function"):
        own.found("hellaswag")


@pytest.fixture
def described(tmp_path, monkeypatch):
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    data = tmp_path / "data.json"
    data.write_text("\n".join(json.dumps({"question": "walks " * (i % 7 + 1), "answer": i % 2}) for i in range(40)))
    path = tmp_path / "moon.yaml"
    path.write_text(TASK.format(name="moon_river", data=data))
    return path


def test_documents_are_dealt_to_the_parts_and_scored(described, tiny_decoder):
    pretrained = load(str(tiny_decoder))
    make = own.found(str(described))
    with pytest.raises(ValueError, match="marks where a text begins or ends"):
        make(pretrained, 0)
    pretrained.processor.eos_token = "[PAD]"
    dealt = [set(make(pretrained, part).items) for part in range(3)]
    assert [len(each) for each in dealt] == [8, 16, 16]
    assert set.union(*dealt) == set(range(40))
    exam = own.exam(make, pretrained, 1, COUNTS)
    assert (exam.items, exam.entries) == (8, 1)
    assert exam.of == "score"
    scores = exam.outcome(pretrained, "sdpa", lambda: None).scores
    assert scores is not None
    assert set(scores) <= {0.0, 1.0}
    assert "lm-eval's moon_river" in exam.data.summary
    ids = exam.inputs(0)["input_ids"]
    assert ids.shape[1] == exam.data.length


def test_a_name_that_it_does_not_know_is_refused():
    pytest.importorskip("lm_eval")
    with pytest.raises(ValueError, match="it knows no 'no_such_task'"):
        own.found("no_such_task")


@pytest.mark.parametrize("text", [None, "dataset_path: json\n"])
def test_a_file_that_names_no_task_is_refused(text, tmp_path):
    pytest.importorskip("lm_eval")
    path = tmp_path / "task.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=r"task's file must name it|must be a file that can be read"):
        own.found(str(path))
