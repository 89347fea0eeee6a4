"""Every reducer with the losses over triplets and quadruplets, and with those of one number, against the oracles."""

import pytest
import torch
from accuracy import assert_accurate
from cases import SLOW_NUMBA, backend_params, embeddings, listed_pairs, unbalanced_labels, value_and_grads
from pytorch_metric_learning import reducers as peer_reducers
from term_cases import CASES, OVER_TRIPLETS, PARAMS, build, oracle
from term_truth import LOOPS, check, known, sets, shapes
from test_reducers import REDUCERS, Largest
from test_term_oracles import all_triplets, some_triplets

from metric_kernels import losses, reducers

QUADRUPLETS = ["QuadrupletMarginLoss", "QuadrupletLoss"]
REDUCED = [case for case in CASES if case.values[0] in [*OVER_TRIPLETS, *QUADRUPLETS, "FastAPLoss"]]
PLAIN = [pytest.param(name, PARAMS[name], id=name) for name in [*OVER_TRIPLETS, *QUADRUPLETS, "FastAPLoss"]]
LISTED = [case for case in CASES if case.values[0] in ["TripletMarginLoss", "MarginLoss", "FastAPLoss"]]
NUMBERS = ["QuadrupletLogSumExpLoss", "HistogramLoss", "DynamicSoftMarginLoss"]
OF_ANCHORS = ["per_anchor", "class_weighted"]
# Ours, and what the oracles call it.
KINDS = {
    **{kind: known for kind, known in REDUCERS.items() if known[0] is not reducers.ThresholdReducer},
    **{
        kind: (lambda low=low, high=high: reducers.ThresholdReducer(low, high), ("threshold", low, high))
        for kind, low, high in [
            ("low", 0.4, None),
            ("high", None, 1.3),
            ("low_high", 0.4, 1.3),
            ("zeros_inside", -1.0, 1.3),
            ("nothing_inside", 100.0, None),
        ]
    },
}
X, LABELS = embeddings(14), unbalanced_labels(14)


def compare(name, params, shape, kind, dtype=torch.float64, indices=None, **options):
    make, key = KINDS[kind]
    if kind == "divisor" and name == "MarginLoss":  # which brings one
        key = None
    listed = {} if indices is None else {"indices_tuple": indices}
    exact = known(oracle, name, {**params, **listed, "reducer": key}, None, shape, dtype)
    value = check(build(name, params, reducer=make(), **options), dtype, shape, exact, indices=indices)
    if not params.get("learn_beta"):  # the penalty of one beta is reduced by nothing
        assert (value == 0) == (kind == "nothing_inside")


def reducible(cases):
    """With every reducer that the loss takes."""
    return [
        pytest.param(*case.values, kind, id=f"{case.id}-{kind}")
        for case in cases
        for kind in KINDS
        if case.values[0] not in QUADRUPLETS or kind not in OF_ANCHORS
    ]


@pytest.mark.parametrize("backend", SLOW_NUMBA)
@pytest.mark.parametrize("name, params, shape, kind", reducible(shapes(REDUCED, LOOPS)))
def test_all(name, params, shape, kind, backend):
    compare(name, params, shape, kind, backend=backend)


@pytest.mark.parametrize("backend", backend_params("native", "numba"))
@pytest.mark.parametrize("name, params, shape, kind", reducible(shapes(PLAIN, LOOPS[:1])))
def test_float32(name, params, shape, kind, backend):
    compare(name, params, shape, kind, torch.float32, backend=backend)


@pytest.mark.parametrize("listed", [some_triplets, listed_pairs], ids=["triplets", "pairs"])
@pytest.mark.parametrize("name, params, shape, kind", reducible(shapes(LISTED, LOOPS)))
def test_listed(name, params, shape, kind, listed):
    _, labels, _, ref_labels = sets(torch.float64, *shape)
    compare(name, params, shape, kind, indices=listed(labels, ref_labels))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in OF_ANCHORS])
def test_listed_quadruplets(kind):
    compare("QuadrupletLoss", PARAMS["QuadrupletLoss"], LOOPS[0], kind, indices=tuple(torch.randint(14, (4, 30))))


@pytest.mark.parametrize("kind", OF_ANCHORS)
@pytest.mark.parametrize("name", QUADRUPLETS)
def test_quadruplets_have_no_anchor(name, kind):
    with pytest.raises(
        ValueError, match="reducer: expected a mean or a sum .* no anchor .*, got (PerAnchor|ClassWeighted)Reducer"
    ):
        getattr(losses, name)(reducer=KINDS[kind][0]())(X, LABELS)


@pytest.mark.parametrize("reducer", [reducers.DoNothingReducer(), Largest()], ids=["nothing", "largest"])
@pytest.mark.parametrize("name", QUADRUPLETS)
def test_quadruplets_are_too_many_to_list(name, reducer):
    with pytest.raises(ValueError, match="reducer: expected a mean or a sum"):
        getattr(losses, name)(reducer=reducer)(X, LABELS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NUMBERS)
def test_one_number_is_left_as_it_is(name, kind):
    expected = getattr(losses, name)()(X, LABELS)
    assert torch.equal(getattr(losses, name)(reducer=KINDS[kind][0]())(X, LABELS), expected)
    assert torch.equal(getattr(losses, name)(reducer=Largest())(X, LABELS), expected)
    info = getattr(losses, name)(reducer=reducers.DoNothingReducer())(X, LABELS)["loss"]
    assert torch.equal(info["losses"], expected) and info["indices"] is None and info["reduction_type"] == "already_reduced"


PARTS = {
    "QuadrupletLoss": ("triplet_loss", "quadruplet_loss"),
    "MarginLoss": ("margin_loss", "beta_reg_loss"),
}


@pytest.mark.parametrize("name", PARTS)
def test_a_reducer_for_each_part(name):
    """The sum of what each part is with its own reducer, another part being away."""
    first, second = PARTS[name]
    params = {"learn_beta": True, "nu": 0.3, "num_classes": 9} if name == "MarginLoss" else {}
    away = reducers.ThresholdReducer(low=100.0)

    def value(**parts):
        return getattr(losses, name)(**params, reducer=reducers.MultipleReducers(parts, away))(X, LABELS)

    one, other = reducers.SumReducer(), reducers.ThresholdReducer(0.2, 0.9)
    torch.testing.assert_close(value(**{first: one, second: other}), value(**{first: one}) + value(**{second: other}))
    assert value(**{first: one}) > 0 and value(**{second: other}) > 0


class MeanOfTheSquares(peer_reducers.BaseReducer):
    """One of the user, in the way of the peer."""

    def element_reduction(self, losses, *_):
        return losses.square().mean()

    triplet_reduction = element_reduction


@pytest.mark.parametrize("params", [{}, {"swap": True}, {"smooth_loss": True}, {"squared": True}], ids=str)
def test_a_reducer_in_the_way_of_the_peer(params):
    x, labels = X[:9], LABELS[:9]
    a, p, n = torch.tensor(all_triplets(labels)).unbind(1)

    def exact(x):
        each = [
            oracle("TripletMarginLoss", x, labels, indices_tuple=triplet, reducer="sum", **params)
            for triplet in zip(a[:, None], p[:, None], n[:, None], strict=True)
        ]
        return torch.stack(each).square().mean()

    loss = losses.TripletMarginLoss(**params, reducer=MeanOfTheSquares())
    actual, expected = value_and_grads(lambda x: loss(x, labels), x), value_and_grads(exact, x)
    assert_accurate(actual[0], expected[0])
    assert_accurate(actual[1][0], expected[1][0])


@pytest.mark.parametrize("name, params, shape, kind", reducible(shapes(REDUCED, LOOPS[:1])))
def test_nan_reaches_the_loss(name, params, shape, kind):
    x, labels, *_ = sets(torch.float64, *shape)
    x[0, 0] = torch.nan
    assert build(name, params, reducer=KINDS[kind][0]())(x, labels).isnan()
