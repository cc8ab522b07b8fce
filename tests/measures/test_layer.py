"""The ready measures: rows, standard errors, undefined values."""

import math

import numpy as np
import pytest
import torch

from tunnel_lightning.measures import (
    COLLAPSE,
    RANKS,
    VARIANCES,
    Accuracy,
    LinearHead,
    MomentMeasures,
    ProbeAccuracy,
)


def values(measure) -> dict[tuple[str, str], float]:
    return {(value.measure, value.variant): value.value for value in measure.compute()}


def test_all_rows_and_their_numbers() -> None:
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((400, 6)) @ rng.standard_normal((6, 40)) + 1).astype(np.float32)
    measure = MomentMeasures(40, 3)
    measure.update(torch.from_numpy(x), torch.from_numpy(rng.integers(3, size=400)))
    found = values(measure)
    assert set(found) == {
        ("rank_cov", "rtol=1e-3"),
        ("rank_cov", "rtol=torch"),
        ("effective_rank", "cov"),
        ("stable_rank", "cov"),
        ("participation_ratio", "cov"),
        ("rankme", "raw"),
        *((name, variant) for name in VARIANCES for variant in ("l2", "raw")),
    }
    assert found["rank_cov", "rtol=1e-3"] == found["rank_cov", "rtol=torch"] == 6
    shares = np.linalg.eigvalsh(np.cov(x.T.astype(np.float64))).clip(1e-12)
    shares /= shares.sum()
    assert found["effective_rank", "cov"] == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-4)
    # The features have rank 7 (with the mean): 33 unused dimensions must not count.
    p = np.linalg.svd(x.astype(np.float64), compute_uv=False)
    p = p / p.sum() + 1e-7
    assert found["rankme", "raw"] == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-3)
    assert all(value.n == 400 and math.isnan(value.se) for value in measure.compute())


def test_which() -> None:
    measure = MomentMeasures(3, 2, which=["variance_ratio", "rank_cov"])
    measure.update(torch.eye(3), torch.tensor([0, 1, 1]))
    assert {name for name, _ in values(measure)} == {"variance_ratio", "rank_cov"}
    measure = MomentMeasures(3, 2, which=[*COLLAPSE, "pc1_fraction"])
    measure.update(torch.eye(3), torch.tensor([0, 1, 1]))
    assert {name for name, _ in values(measure)} == {*COLLAPSE, "pc1_fraction"}
    with pytest.raises(ValueError, match="no measure \\['rank'\\]"):
        MomentMeasures(3, 2, which=["rank"])


@pytest.mark.parametrize(
    "x",
    [torch.zeros(0, 3), torch.ones(1, 3), torch.ones(5, 3), torch.full((5, 3), torch.nan)],
    ids=["none", "one", "constant", "nan"],
)
def test_undefined_rows_are_there_and_nan(x: torch.Tensor) -> None:
    measure = MomentMeasures(3, 2)
    measure.update(x, torch.zeros(len(x), dtype=torch.long))
    found = values(measure)
    assert {name for name, _ in found} == {*RANKS, *VARIANCES}
    assert all(math.isnan(value) for value in found.values())


def test_one_dimension_and_one_class() -> None:
    measure = MomentMeasures(1, 1)
    measure.update(torch.tensor([[1.0], [2.0], [4.0]]), torch.zeros(3, dtype=torch.long))
    found = values(measure)
    assert found["rank_cov", "rtol=1e-3"] == found["rank_cov", "rtol=torch"] == 1
    assert found["effective_rank", "cov"] == found["participation_ratio", "cov"] == pytest.approx(1)
    assert math.isnan(found["variance_inter", "raw"])
    assert found["variance_intra", "raw"] == pytest.approx(np.var([1.0, 2.0, 4.0]))


def test_accuracy_and_binomial_error() -> None:
    accuracy = Accuracy("network")
    scores = torch.eye(3)[[0, 1, 2, 2]]
    accuracy.update(scores, torch.tensor([0, 1, 2, 0]))
    other = Accuracy("network")
    other.update(scores[:1], torch.tensor([2]))
    accuracy.merge(other)
    (value,) = accuracy.compute()
    assert value[:3] == ("accuracy", "network", 0.6)
    assert value.se == pytest.approx(math.sqrt(0.6 * 0.4 / 5))
    assert value.n == 5
    assert math.isnan(Accuracy("network").compute()[0].value)


def test_probe_accuracy_and_loss() -> None:
    head = LinearHead(torch.tensor([[1.0, 0.0], [0.0, 1.0]]).double(), torch.tensor([0.5, 0.0]).double())
    probe = ProbeAccuracy(head, "online", loss=True)
    x, y = torch.tensor([[1.0, 2.0], [3.0, 1.0]]), torch.tensor([1, 1])
    with torch.autocast("cpu", torch.bfloat16):
        probe.update(x, y)
    found = values(probe)
    assert found["probe_accuracy", "online"] == 0.5
    scores = x.double() @ head.weight.T + head.bias
    expected = -torch.log_softmax(scores, 1)[[0, 1], [1, 1]].mean().item()
    assert found["probe_loss", "online"] == pytest.approx(expected, rel=1e-12)


def test_scores_that_are_not_finite_are_no_accuracy() -> None:
    probe = ProbeAccuracy(LinearHead(torch.full((2, 2), torch.nan), torch.zeros(2)), "ridge", loss=True)
    probe.update(torch.ones(4, 2), torch.zeros(4, dtype=torch.long))
    assert all(math.isnan(value.value) and math.isnan(value.se) for value in probe.compute())


def test_spectrum_and_first_component() -> None:
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((300, 20)) * np.geomspace(1, 0.01, 20) + 3).astype(np.float32)
    y = torch.zeros(300, dtype=torch.long)
    measure = MomentMeasures(20, 1, which=["pc1_fraction"])
    measure.update(torch.from_numpy(x[:200]), y[:200])
    measure.compute()
    other = MomentMeasures(20, 1)
    other.update(torch.from_numpy(x[200:]), y[200:])
    measure.merge(other)  # what was known before is forgotten
    expected = np.linalg.eigvalsh(np.cov(x.T.astype(np.float64)))[::-1]
    spectrum = measure.spectrum
    assert spectrum is not None
    assert spectrum.dtype == torch.float64
    np.testing.assert_allclose(spectrum, expected, rtol=1e-4)
    assert values(measure) == {("pc1_fraction", "cov"): pytest.approx(expected[0] / expected.sum(), rel=1e-6)}


def test_the_spectrum_is_computed_once_and_only_where_needed(monkeypatch) -> None:
    import tunnel_lightning.measures.layer as layer

    calls = []
    monkeypatch.setattr(layer, "eigenvalues", lambda matrix: calls.append(1) or torch.linalg.eigvalsh(matrix))
    x, y = torch.randn(30, 4, generator=torch.Generator().manual_seed(0)), torch.arange(30) % 3
    measure = MomentMeasures(4, 3, which=["variance_ratio", "nc1"])
    measure.update(x, y)
    measure.compute()
    assert measure.spectrum is None
    assert not calls
    measure = MomentMeasures(4, 3, which=["rank_cov", "pc1_fraction"])
    measure.update(x, y)
    assert measure.compute() == measure.compute()
    assert len(measure.spectrum) == 4
    assert len(calls) == 1


def test_labels_matter_only_to_measures_of_classes() -> None:
    measure = MomentMeasures(3, 2, which=["rank_cov"])
    measure.update(torch.eye(3), torch.tensor([0, 1, 7]))
    assert values(measure)["rank_cov", "rtol=1e-3"] == 2
    for name in (*VARIANCES, *COLLAPSE):
        measure = MomentMeasures(3, 2, which=[name])
        measure.update(torch.eye(3), torch.tensor([0, 1, 7]))
        with pytest.raises(ValueError, match="1 of 3 labels are not in"):
            measure.compute()


def test_accuracy_of_a_head_by_another_name() -> None:
    probe = ProbeAccuracy(LinearHead(torch.eye(2), torch.zeros(2)), "fit means", measure="ncm_accuracy")
    probe.update(torch.eye(2), torch.tensor([0, 0]))
    assert values(probe) == {("ncm_accuracy", "fit means"): 0.5}


def test_rankme_of_few_samples() -> None:
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)) + 1
    measure = MomentMeasures(4, 1, which=["rankme"])
    measure.update(x, torch.zeros(5, dtype=torch.long))
    p = np.linalg.svd(x.double().numpy(), compute_uv=False)
    p = p / p.sum() + 1e-7
    assert values(measure)["rankme", "raw"] == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-6)
