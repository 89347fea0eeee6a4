"""torch.compile, and the operators it sees: schemas, fakes, gradients."""

import pytest
import torch
from accuracy import assert_accurate
from cases import LOSSES, PARAMS, WITH_REF, embeddings, listed_pairs, unbalanced_labels, value_and_grads
from term_cases import CASES as TERM_CASES
from term_cases import build, takes_ref

from metric_kernels import distances, losses, reducers, row_extremes, tuples, use_workspace
from metric_kernels.batch import Batch
from metric_kernels.binned import PairHistogram
from metric_kernels.extremes import FORMULA
from metric_kernels.language import Op
from metric_kernels.metrics import METRICS, Dot, Euclidean
from metric_kernels.ordered import BatchAllTriplets
from metric_kernels.rowstats import Call, spelled


@pytest.fixture(autouse=True)
def _reset():
    torch._dynamo.reset()


def compiled(loss, **options):
    return torch.compile(loss, **{"fullgraph": True, "backend": "aot_eager", **options})


def assert_same(actual, expected):
    assert actual[0].dtype == expected[0].dtype
    assert_accurate(actual[0], expected[0])
    for grad, expected_grad in zip(actual[1], expected[1], strict=True):
        assert_accurate(grad, expected_grad)


@pytest.mark.parametrize("name", LOSSES)
def test_one_graph(name):
    x, labels, loss = embeddings(20), unbalanced_labels(20), getattr(losses, name)(**PARAMS[name])
    function = compiled(loss)
    assert_same(value_and_grads(lambda x: function(x, labels), x), value_and_grads(lambda x: loss(x, labels), x))


@pytest.mark.parametrize("name", WITH_REF)
def test_one_graph_with_a_reference_set(name):
    x, ref, labels, ref_labels = embeddings(20), embeddings(13, seed=1), unbalanced_labels(20), unbalanced_labels(13)
    loss = getattr(losses, name)()
    function = compiled(loss)
    assert_same(
        value_and_grads(lambda x, ref: function(x, labels, None, ref, ref_labels), x, ref),
        value_and_grads(lambda x, ref: loss(x, labels, None, ref, ref_labels), x, ref),
    )


def graph_of(params):
    """Swapped triplets and adaptive margins depend on numbers that a graph does not know."""
    return not params.get("swap") and not params.get("adaptive")


def graphs(cases):
    """Compiling takes seconds: one variant of each loss is enough for every run."""
    seen = set()
    for case in cases:
        name, params = case.values
        if graph_of(params):
            yield pytest.param(name, params, id=case.id, marks=[pytest.mark.slow] if name in seen else [])
            seen.add(name)


@pytest.mark.parametrize("name, params", list(graphs(TERM_CASES)))
def test_terms_in_one_graph(name, params):
    labels, loss, same = unbalanced_labels(20), build(name, params), build(name, params)
    function = compiled(loss)
    # Twice: the dynamic soft margin remembers the first batch.
    for seed in (0, 1):
        x = embeddings(20, seed=seed)
        assert_same(value_and_grads(lambda x: function(x, labels), x), value_and_grads(lambda x: same(x, labels), x))


@pytest.mark.parametrize("name, params", list(graphs(case for case in TERM_CASES if takes_ref(*case.values))))
def test_terms_in_one_graph_with_a_reference_set(name, params):
    x, ref, labels, ref_labels = embeddings(20), embeddings(13, seed=1), unbalanced_labels(20), unbalanced_labels(13)
    actual, expected = (
        value_and_grads(lambda x, ref, f=f: f(x, labels, None, ref, ref_labels), x, ref)
        for f in (compiled(build(name, params)), build(name, params))
    )
    assert_same(actual, expected)


LISTED = listed_pairs(unbalanced_labels(20))
# Calls whose size or course depends on numbers that a graph does not know: they are run with breaks in it.
BROKEN = {
    "swap": (losses.TripletMarginLoss(swap=True), None),
    "adaptive": (losses.QuadrupletLoss(adaptive=True), None),
    "joined": (losses.TripletMarginLoss(), LISTED),
    "window": (losses.MarginLoss(reducer=reducers.ThresholdReducer(0.1, 0.5)), None),
    "sampled": (losses.TripletMarginLoss(triplets_per_anchor=3), None),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_one_graph_cannot_hold(case):
    loss, indices = BROKEN[case]
    x, labels = embeddings(20), unbalanced_labels(20)
    with pytest.raises(Exception, match="(?i)data-dependent|Unsupported|fake tensor|skipped"):
        compiled(loss)(x, labels, indices)
    torch._dynamo.reset()
    results = []
    for function in (compiled(loss, fullgraph=False), loss):
        torch.manual_seed(0)
        results.append(value_and_grads(lambda x, f=function: f(x, labels, indices), x))
    assert_same(*results)


@pytest.mark.parametrize("name", ["HistogramLoss", "FastAPLoss", "DynamicSoftMarginLoss", "QuadrupletLogSumExpLoss"])
@pytest.mark.parametrize("indices", [LISTED, (LISTED[0], LISTED[1], LISTED[3])], ids=["pairs", "triplets"])
def test_lists_in_one_graph(name, indices):
    x, labels = embeddings(20), unbalanced_labels(20)
    function, loss = compiled(getattr(losses, name)()), getattr(losses, name)()
    assert_same(
        value_and_grads(lambda x: function(x, labels, indices), x), value_and_grads(lambda x: loss(x, labels, indices), x)
    )


# A few classes or none with two samples; some reducers leave losses out.
@pytest.mark.parametrize(
    "make", [unbalanced_labels, torch.arange, lambda size: torch.arange(size) // 2], ids=["few", "none", "pairs"]
)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"distance": distances.LpDistance()},
        {"reducer": reducers.ThresholdReducer(high=1.0)},
        {"reducer": reducers.PerAnchorReducer()},
        {"reducer": reducers.ClassWeightedReducer(torch.arange(20.0))},
    ],
    ids=["default", "euclidean", "threshold", "per_anchor", "class_weighted"],
)
def test_n_pairs(options, make):
    x, labels, loss = embeddings(20), make(20), losses.NPairsLoss(**options)
    function = compiled(loss)
    assert_same(value_and_grads(lambda x: function(x, labels), x), value_and_grads(lambda x: loss(x, labels), x))


@pytest.mark.parametrize("way", ["matrix", "rows"])
@pytest.mark.parametrize("kind", ["pairs", "triplets", "nothing"])
@pytest.mark.parametrize("name", LOSSES)
def test_listed(name, kind, way, monkeypatch):
    monkeypatch.setattr(tuples, "_as_matrix", lambda *_: way == "matrix")
    x, labels, loss = embeddings(20), unbalanced_labels(20), getattr(losses, name)(**PARAMS[name])
    indices = listed_pairs(labels)
    if kind == "triplets":
        indices = tuple(torch.tensor(i) for i in ([0, 0, 3, 0], [1, 2, 4, 1], [5, 5, 6, 5]))
    elif kind == "nothing":
        indices = 4 * (torch.empty(0, dtype=torch.int64),)
    function = compiled(loss)
    assert_same(
        value_and_grads(lambda x: function(x, labels, indices), x), value_and_grads(lambda x: loss(x, labels, indices), x)
    )


@pytest.mark.parametrize("name", WITH_REF)
def test_listed_with_a_reference_set(name):
    x, ref, labels, ref_labels = embeddings(20), embeddings(13, seed=1), unbalanced_labels(20), unbalanced_labels(13)
    indices, loss = listed_pairs(labels, ref_labels), getattr(losses, name)()
    function = compiled(loss)
    assert_same(
        value_and_grads(lambda x, ref: function(x, None, indices, ref), x, ref),
        value_and_grads(lambda x, ref: loss(x, None, indices, ref), x, ref),
    )


@pytest.mark.parametrize("distance", [distances.LpDistance(p=1), distances.SNRDistance()], ids=["manhattan", "snr"])
def test_listed_with_a_distance(distance):
    x, labels, loss = embeddings(20), unbalanced_labels(20), losses.ContrastiveLoss(distance=distance)
    indices, function = listed_pairs(labels), compiled(loss)
    assert_same(value_and_grads(lambda x: function(x, None, indices), x), value_and_grads(lambda x: loss(x, None, indices), x))


@pytest.mark.parametrize("name", ["LiftedStructureLoss", "MultiSimilarityLoss"])
def test_inductor(name):
    """A layer before it and a scaled sum after it, in one graph, in float32."""
    layer = torch.nn.Linear(8, 6)
    loss = getattr(losses, name)()
    x, labels = embeddings(20, 8, dtype=torch.float32), unbalanced_labels(20)

    def step(x):
        return 3.0 * loss(layer(x).relu(), labels) + x.square().mean()

    actual = value_and_grads(torch.compile(step, fullgraph=True), x)
    expected = value_and_grads(step, x)
    torch.testing.assert_close(actual[0], expected[0], rtol=1e-5, atol=0)
    torch.testing.assert_close(actual[1][0], expected[1][0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_half_precision_and_autocast(dtype):
    x, labels, loss = embeddings(20, 16, dtype=dtype), unbalanced_labels(20), losses.NTXentLoss()
    with torch.autocast("cpu", torch.bfloat16):
        actual = value_and_grads(lambda x: compiled(loss)(x, labels), x)
        expected = value_and_grads(lambda x: loss(x, labels), x)
    assert actual[0].dtype == expected[0].dtype == torch.float32 and actual[1][0].dtype == dtype
    torch.testing.assert_close(actual[0], expected[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(actual[1][0], expected[1][0], rtol=1e-5 if dtype == torch.float32 else 1e-2, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"distance": distances.LpDistance(normalize_embeddings=False)},
        {"distance": distances.SNRDistance()},
        {"distance": distances.LpDistance(p=1)},
        {"reducer": reducers.ThresholdReducer(low=0.1, high=3.0)},
        {"reducer": reducers.PerAnchorReducer()},
        {"backend": "reference"},
    ],
    ids=["euclidean", "snr", "manhattan", "threshold", "per_anchor", "reference"],
)
def test_options(options):
    x, labels, loss = embeddings(20), unbalanced_labels(20), losses.ContrastiveLoss(**options)
    function = compiled(loss)
    assert_same(value_and_grads(lambda x: function(x, labels), x), value_and_grads(lambda x: loss(x, labels), x))


def test_sizes_may_change():
    loss = losses.SupConLoss()
    function = compiled(loss, dynamic=True)
    for size in (8, 21, 30):
        x, labels = embeddings(size), unbalanced_labels(size)
        actual, expected = (value_and_grads(lambda x, f=f, y=labels: f(x, y), x) for f in (function, loss))
        assert_same(actual, expected)


def test_a_parameter_may_change():
    loss, x, labels = losses.SupConLoss(temperature=0.1), embeddings(20), unbalanced_labels(20)
    function = compiled(loss)
    for temperature in (0.1, 0.5, 0.7):
        loss.temperature = temperature
        assert_accurate(function(x, labels), loss(x, labels))


def test_without_gradients():
    loss, x, labels = losses.CircleLoss(), embeddings(20), unbalanced_labels(20)
    with torch.no_grad():
        value = compiled(loss)(x, labels)
    assert not value.requires_grad
    assert_accurate(value, loss(x, labels))


def test_row_extremes():
    x, labels = embeddings(20), unbalanced_labels(20)

    def hardest(x):
        found = row_extremes(x, labels)
        kept = found.indices[0] >= 0
        return torch.where(kept, found.largest_positive - found.smallest_negative + 1, 0).relu().sum()

    assert_same(value_and_grads(compiled(hardest), x), value_and_grads(hardest, x))


def op_arguments(name, x, y, labels, ref_labels, metric=Dot, given=False, backend=""):
    """Arguments of the operator, as torch.compile would pass them."""
    if name == "row_extremes":
        formula, params = FORMULA, ((),)
    else:
        loss = getattr(losses, name)()
        formula, params = loss.formula, loss._params()
    op = Op(formula, metric, params)
    flat = [p for stage in op.params for p in stage]
    options = metric is Dot, y is None, given, False, None, backend
    return x, y, labels, ref_labels, None, formula.key, metric.__name__, flat, *options


SAMPLES = {
    "one_stage": ("MultiSimilarityLoss", Dot, False, False, torch.float32),
    "one_stage_reference": ("CircleLoss", Dot, True, False, torch.float64),
    "two_stages": ("NTXentLoss", Euclidean, False, False, torch.float32),
    "two_sided": ("LiftedStructureLoss", Euclidean, False, False, torch.float64),
    "two_sided_reference": ("LiftedStructureLoss", Euclidean, True, False, torch.float32),
    "extremes": ("row_extremes", Euclidean, False, False, torch.float32),
    "given_matrix": ("SupConLoss", Dot, False, True, torch.float32),
    "half": ("SupConLoss", Dot, False, False, torch.bfloat16),
}


def sample(name, metric, with_ref, given, dtype):
    labels = torch.tensor([0, 0, 1, 1, 2])
    ref = embeddings(4, 3, seed=1, dtype=dtype).requires_grad_() if with_ref else None
    x = embeddings(5, 5 if given else 3, dtype=dtype).requires_grad_()
    ref_labels = torch.tensor([0, 1, 1, 3]) if with_ref else labels
    return op_arguments(name, x, ref, labels, ref_labels, metric, given)


@pytest.mark.parametrize("case", SAMPLES)
def test_opcheck(case):
    arguments = sample(*SAMPLES[case])
    torch.library.opcheck(torch.ops.metric_kernels.row_stats.default, arguments)


@pytest.mark.parametrize("case", SAMPLES)
def test_opcheck_of_the_backward(case):
    x, y, *others = sample(*SAMPLES[case])
    values, *rest = torch.ops.metric_kernels.row_stats(x, y, *others)
    grads = torch.where(values.isfinite(), torch.randn_like(values), 0).detach()
    x, y = x.detach(), None if y is None else y.detach()
    arguments = (grads, values.detach(), *(t.detach() for t in rest), x, y, *others, True, y is not None)
    # Its gradient is not defined: a second derivative raises.
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.metric_kernels.row_stats_backward.default, arguments, test_utils=tests)


TERMS = {
    "triplets": BatchAllTriplets("hinge", 1.0, 0.0, float("inf"), (0.2,)),
    "histogram": PairHistogram(-1.0, 0.5, 5, False),
    "histograms": PairHistogram(-1.0, 0.5, 5, True),
    "histogram_of_lone_points": PairHistogram(-1.0, 0.5, 5, False, True),
}


@pytest.mark.parametrize("term", TERMS.values(), ids=TERMS)
def test_opcheck_of_terms(term):
    batch = Batch(embeddings(5, 3).requires_grad_(), torch.tensor([0, 0, 1, 1, -1]), None, None, None)
    arguments = spelled(Call.of(term, (term.flat,), distances.CosineSimilarity(), batch, None))
    torch.library.opcheck(torch.ops.metric_kernels.term.default, arguments)
    x, y, *others = (t.detach() if isinstance(t, torch.Tensor) else t for t in arguments)
    grads = torch.randn_like(torch.ops.metric_kernels.term(x, y, *others)[0])
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.metric_kernels.term_backward.default, (grads, x, y, *others, True, False), test_utils=tests)


@pytest.mark.parametrize("metric", METRICS, ids=lambda m: m.__name__)
def test_the_operator_has_the_gradient_of_the_loss(metric):
    x, labels = embeddings(7, 3).requires_grad_(), torch.tensor([0, 0, 1, 1, 1, 2, 2])
    with use_workspace(0):
        values, *_ = torch.ops.metric_kernels.row_stats(*op_arguments("SupConLoss", x, None, labels, labels, metric))
    assert torch.autograd.gradcheck(
        lambda x: torch.ops.metric_kernels.row_stats(*op_arguments("SupConLoss", x, None, labels, labels, metric))[0], x
    )
    assert values.shape == (4, 7)


def test_fake_shapes():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        x, y = torch.empty(6, 3, dtype=torch.bfloat16), torch.empty(4, 3)
        labels, ref_labels = torch.empty(6, dtype=torch.int64), torch.empty(4, dtype=torch.int64)
        arguments = op_arguments("NTXentLoss", x, y, labels, ref_labels)
        values, index, scale = torch.ops.metric_kernels.row_stats(*arguments)
        assert (values.shape, values.dtype) == ((3, 6), torch.float32)
        assert (index.shape, index.dtype) == ((0, 6), torch.int64)
        assert (scale.shape, scale.dtype) == ((3, 6), torch.float32)
        _, index, scale = torch.ops.metric_kernels.row_stats(*op_arguments("row_extremes", x, y, labels, ref_labels))
        assert index.shape == (4, 6) and scale.shape == (0, 6)
        gx, gy = torch.ops.metric_kernels.row_stats_backward(values, values, index, scale, *arguments, True, False)
        assert (gx.shape, gx.dtype) == ((6, 3), torch.bfloat16) and gy.numel() == 0
