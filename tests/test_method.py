"""Inference of stored runs: what a worker measures at the end, and exported networks."""

import json
import unittest.mock
from datetime import UTC, datetime

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from bnviz import checkpoint, export, inference, jobs, onnx_file, queue
from bnviz.accuracies import Accuracies, Inference
from bnviz.config import RunConfig
from bnviz.evaluation import predict
from bnviz.onnx_file import ExportError
from bnviz.processes import true_status
from bnviz.reporter import Reporter
from bnviz.status import State
from bnviz.store import Run, StoreError, open_run
from bnviz.trainer import Trainer
from bnviz.training import proceed
from bnviz.ui.inference import network_file
from bnviz.worker import carry_out, run_here

from .conftest import small
from .test_lab import alive, open_script, recorded, texts

MEASURED = Inference(
    step=50_000,
    batches=200,
    batch_size=60,
    test_batch_size=60,
    examples=10_000,
    examples_alone=1_000,
    batch_statistics=Accuracies(in_batches=0.975, alone=0.1),
    moving_averages=Accuracies(in_batches=0.98, alone=0.98),
    population_statistics=Accuracies(in_batches=0.981, alone=0.982),
    not_folded="<b>because</b>",
)
QUICK = {"training__steps": 60, "trace__records": 0, "training__evaluations": 1}


@pytest.mark.parametrize("kind", ["batch", "none"])
def test_a_complete_run_with_statistics_of_the_batch_is_measured(root, digits, kind):
    run = run_here(small(**QUICK, model__normalization=kind), root, train_on=digits)
    assert run.status.state is State.COMPLETED
    found = run.inference()
    assert (found is not None) == (kind == "batch")
    if found:
        assert found.step == 60
        assert found.moving_averages.in_batches == run.status.test_accuracy


@pytest.mark.parametrize(
    ("ask", "state"), [(jobs.cancel, State.CANCELLED), (jobs.pause, State.PAUSED)]
)
def test_a_run_that_is_stopped_while_it_is_measured_goes_on_there(root, digits, ask, state):
    config = small(**QUICK)
    expected = run_here(config, root, train_on=digits)
    original = inference.population_statistics
    with queue.locked(root):
        run = Run(jobs.create(config, root, "stopped").directory)

    def asked_meanwhile(model, batches):
        ask(run)
        return original(model, batches)

    with unittest.mock.patch.object(inference, "population_statistics", asked_meanwhile):
        carry_out([Reporter(run)], digits)
    assert (true_status(run).state, run.status.step) == (state, 60)
    assert run.inference() is None
    metrics = run.metrics()
    with unittest.mock.patch.object(queue, "advance"):  # it would start a worker of its own
        jobs.resume(run)
    carry_out([Reporter(run)], digits)
    assert run.status.state is State.COMPLETED
    assert run.inference() == expected.inference()
    assert Run(run.paths.directory).metrics().equals(metrics)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff", b"[" * 100_000])
def test_a_damaged_measurement_is_named(root, digits, content):
    run = run_here(small(**QUICK | {"training__steps": 1}), root, train_on=digits)
    run.paths.inference.write_bytes(content)
    with pytest.raises(StoreError, match=r"inference\.json is damaged; start the run again"):
        run.inference()


# Networks as files


def session(content):
    return onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])


def test_the_network_that_the_page_exports_has_the_accuracy_of_the_table(root, mnist):
    config = small(**QUICK, model__nonlinearity="relu")
    run = run_here(config, root, train_on=mnist)
    content = network_file(run)
    exported = session(content)
    [given], [returned] = exported.get_inputs(), exported.get_outputs()
    assert (given.name, given.shape) == ("images", ["batch", 1, 28, 28])
    assert (returned.name, returned.shape) == ("logits", ["batch", 10])
    images, labels = mnist.test_images.numpy(), mnist.test_labels.numpy()
    [logits] = exported.run(None, {"images": images})
    measured = run.inference()
    assert (logits.argmax(1) == labels).mean() == pytest.approx(measured.folded.alone, abs=2e-4)
    [alone] = exported.run(None, {"images": images[:1]})
    np.testing.assert_allclose(alone, logits[:1], atol=1e-4)
    origin = json.loads(exported.get_modelmeta().custom_metadata_map["bnviz"])
    assert RunConfig.parse(origin["runs"][run.run_id]) == run.config
    assert set(origin["versions"]) >= {"bnviz", "torch"}
    assert datetime.fromisoformat(origin["exported_at"]) <= datetime.now(UTC)
    assert "200 minibatches (Algorithm 2), folded into the weights" in origin["inference"]
    assert {node.op_type for node in onnx.load_from_string(content).graph.node} == {
        *("Reshape", "Gemm", "Relu")
    }


SMALL_CNN = {"model__kind": "cnn", "model__channels": [3], "model__hidden": [4]}


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"model__normalization": "layer", **SMALL_CNN}, "as trained"),
        (
            {"model__normalization": "whitening", "model__bn_placement": "after", **SMALL_CNN},
            "not folded: conv1 is normalized after its nonlinearity",
        ),
    ],
)
def test_a_network_that_cannot_be_folded_is_exported_as_it_infers(
    digits, monkeypatch, model, words
):
    trainer = Trainer(small(**QUICK, **model), digits)
    for _ in proceed(trainer):
        pass
    monkeypatch.setattr(onnx_file, "Trainer", lambda config: Trainer(config, digits))
    content = onnx_file.to_onnx(trainer.config, trainer.state(), {"source": "test"})
    [found] = session(content).run(None, {"images": digits.test_images.numpy()})
    network, how = trainer.model, "as trained"
    if words != how:
        batches = [digits.train_images[trainer.batches[60 + i]] for i in range(10)]
        statistics = inference.population_statistics(trainer.model, batches)
        network = inference.with_population(trainer.model, statistics)
    expected = predict(network, digits.test_images)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-3)
    metadata = onnx.load_from_string(content).metadata_props
    assert words in json.loads({p.key: p.value for p in metadata}["bnviz"])["inference"]

    with torch.no_grad():
        network.output.bias[3] += 1
    with pytest.raises(ExportError, match="computes other logits than the network"):
        onnx_file._compare(content, network, digits.test_images[:8])


def test_what_cannot_be_exported_says_why(root, digits, monkeypatch):
    run = run_here(small(**QUICK), root, train_on=digits)
    state = checkpoint.load(run.paths.checkpoint)
    monkeypatch.setattr(onnx_file, "Trainer", lambda config: Trainer(config, digits))
    with pytest.raises(ExportError, match=r"it was 0\.9900: the data set"):
        onnx_file.to_onnx(run.config, state, {}, measured=0.99)
    other = run.config.replace({"model.hidden": [5]})
    for config, damaged in (
        (other, state),
        (run.config, {**state, "step": -(10**9)}),
        (run.config, {**state, "model": [1]}),
        (run.config, {"step": 1}),
    ):
        with pytest.raises(ExportError, match="the checkpoint does not fit the configuration"):
            onnx_file.to_onnx(config, damaged, {})
    run.paths.checkpoint.unlink()
    with pytest.raises(StoreError, match="has no checkpoint yet"):
        export.export([run], root, ["model"], ["csv"])
    run.paths.checkpoint.write_bytes(b"damaged")
    with pytest.raises(StoreError, match=r"cannot export .* cannot read checkpoint\.pt"):
        export.network(run)
    run.paths.directory.rename(root / "elsewhere")
    with pytest.raises(StoreError, match="there is no run"):
        network_file(run)


# The page


@pytest.fixture
def page(root):
    def load(run_id):
        return open_script("from bnviz.ui import method_page; method_page.page()", of=run_id)

    return load


def test_the_page_shows_what_was_measured_and_says_what_it_means(page, root):
    run = open_run(root / recorded(root, 1, "batch"))
    run.paths.inference.write_text(MEASURED.model_dump_json())
    app = page(run.run_id)
    table = app.dataframe[0].value
    assert list(table["in_batches"][:3]) == [0.975, 0.98, 0.981]
    assert list(table["alone"][:3]) == [0.1, 0.98, 0.982]
    assert list(table["examples"][:3]) == [10_000] * 3
    assert table.iloc[3].isna().sum() == 4  # not folded
    said = texts(app.markdown).replace("\\", "")
    assert "97.5% of the test examples right, and 10.0% where each comes alone" in said
    assert "the first 1,000 of them" in said
    assert "It is not folded: <b>because</b>." in said
    assert "<b>" not in texts(app.markdown)
    assert "over 200 minibatches of 60" in said

    whole = {"folded": MEASURED.population_statistics, "logit_difference": 2.5e-6}
    run.paths.inference.write_text(MEASURED.model_copy(update=whole).model_dump_json())
    app.run()
    assert list(app.dataframe[0].value["alone"]) == [0.1, 0.98, 0.982, 0.982]
    assert "differs by at most 2.5e-06 in a logit" in texts(app.markdown)


@pytest.mark.parametrize(
    ("kind", "state", "sentence"),
    [
        ("none", State.COMPLETED, "normalizes nothing by the statistics of a batch"),
        ("batch", State.RUNNING, "measured when the run ends"),
        ("batch", State.COMPLETED, "Start it again with the same settings"),
        ("batch", State.PAUSED, "Resume it"),
        ("batch", State.DIVERGED, "This run diverged"),
    ],
)
def test_without_a_measurement_the_page_says_what_to_do(page, root, kind, state, sentence):
    process = alive() if state is State.RUNNING else {}
    app = page(recorded(root, 1, kind, state, **process))
    assert sentence in texts(app.info)
    assert not app.dataframe
    button = app.main.get("download_button")[0]
    assert button.proto.label == "Download the network (ONNX)"
    assert button.proto.disabled  # there is no checkpoint


def test_the_page_names_a_damaged_measurement(page, root):
    run = open_run(root / recorded(root, 1, "batch"))
    run.paths.inference.write_text('{"step": 1}')
    app = page(run.run_id)
    assert "inference.json is damaged" in texts(app.error).replace("\\", "")
