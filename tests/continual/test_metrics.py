"""The matrix's metrics beside Avalanche's own, on one run."""

import numpy as np
import pytest
import torch
from continual.toys import mlp, stream

from tunnel_lightning.continual.compat import avalanche
from tunnel_lightning.runs.forgetting import (
    average_accuracy,
    backward_transfer,
    forgetting_since_learnt,
    forward_transfer,
)


def test_average_accuracy_forgetting_and_backward_transfer_are_avalanches():
    avalanche()
    from avalanche.evaluation.metrics import accuracy_metrics, bwt_metrics, forgetting_metrics
    from avalanche.training import Naive
    from avalanche.training.plugins import EvaluationPlugin

    split = stream(tasks=3, class_order=[0, 1, 2, 3, 4, 5])
    network = mlp(split)
    evaluation = EvaluationPlugin(
        accuracy_metrics(experience=True, stream=True),
        forgetting_metrics(experience=True, stream=True),
        bwt_metrics(stream=True),
        loggers=[],
    )
    strategy = Naive(
        model=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
        train_mb_size=8,
        train_epochs=6,
        evaluator=evaluation,
    )
    theirs, matrix = [], []
    for experience in split.benchmark.train_stream:
        strategy.train(experience)
        found = strategy.eval(split.benchmark.test_stream)
        theirs.append({key.partition("/")[0]: value for key, value in found.items() if "Stream" in key})
        matrix.append([found[f"Top1_Acc_Exp/eval_phase/test_stream/Task000/Exp{i:03d}"] for i in range(3)])
    counts = [len(each.dataset) for each in split.benchmark.test_stream]
    assert np.ptp(matrix) > 0.5, "something was learnt and something forgotten"
    last = theirs[-1]
    assert average_accuracy(matrix, weights=counts)[-1] == pytest.approx(last["Top1_Acc_Stream"], abs=1e-6)
    assert forgetting_since_learnt(matrix)[-1] == pytest.approx(last["StreamForgetting"], abs=1e-6)
    assert backward_transfer(matrix)[-1] == pytest.approx(last["StreamBWT"], abs=1e-6)
    # One head, nothing done against forgetting: only the last task is known (van de Ven & Tolias, 2019).
    assert average_accuracy(matrix)[-1] == pytest.approx(matrix[-1][-1] / 3, abs=0.02)


def test_forward_transfer_is_avalanches():
    avalanche()
    from avalanche.evaluation.metrics import accuracy_metrics, forward_transfer_metrics
    from avalanche.training import Naive
    from avalanche.training.plugins import EvaluationPlugin

    split = stream("domain_incremental", tasks=3, class_order=[0, 1, 2, 3, 4, 5])
    network = mlp(split)
    evaluation = EvaluationPlugin(
        accuracy_metrics(experience=True), forward_transfer_metrics(experience=True, stream=True), loggers=[]
    )
    strategy = Naive(
        model=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
        train_mb_size=8,
        train_epochs=6,
        eval_every=0,
        evaluator=evaluation,
    )
    tests = list(split.benchmark.test_stream)

    def accuracies(found):
        return [found[f"Top1_Acc_Exp/eval_phase/test_stream/Task000/Exp{i:03d}"] for i in range(3)]

    matrix = [accuracies(strategy.eval(tests))]
    for experience in split.benchmark.train_stream:
        strategy.train(experience, eval_streams=[split.benchmark.test_stream])
        found = strategy.eval(tests)
        matrix.append(accuracies(found))
    theirs = [value for key, value in found.items() if "StreamForwardTransfer" in key]
    assert abs(theirs[-1]) > 0.01
    assert forward_transfer(matrix)[-1] == pytest.approx(theirs[-1], abs=1e-6)
