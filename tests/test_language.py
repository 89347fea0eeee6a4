"""The language of formulas: derivatives of every stage and metric, what is refused, and a loss of a user."""

import pytest
import torch
from accuracy import assert_accurate
from cases import LOSSES, PARAMS, QUICK_BACKENDS, backend_params, embeddings, unbalanced_labels, value_and_grads
from torch.nn.functional import normalize, softplus

from metric_kernels import extremes, fn, losses
from metric_kernels.language import Formula, Op, bind, count, formula, largest, lse, smallest, stages_of, total
from metric_kernels.losses import PairLoss
from metric_kernels.metrics import METRICS

STAGES = [
    pytest.param(name, number, id=f"{name}-{number}")
    for name in LOSSES
    for number in range(len(getattr(losses, name).formula.stages))
]
SAMPLES = 200


def samples(number=SAMPLES):
    return torch.randn(number, dtype=torch.float64).mul(1.5).requires_grad_()


def derivative(value, of):
    """d value / d of, sample by sample."""
    if not (isinstance(value, torch.Tensor) and value.requires_grad):
        return torch.zeros_like(of)
    return torch.autograd.grad(value.sum(), of, retain_graph=True, materialize_grads=True)[0]


def expanded(value):
    return torch.as_tensor(value, dtype=torch.float64).expand(SAMPLES)


def params_of(name, number, options):
    """Parameters of a stage as the loss would pass them."""
    return getattr(losses, name)(**options)._params()[number]


@pytest.mark.parametrize("options", ["defaults", "params"])
@pytest.mark.parametrize("name, number", STAGES)
def test_derivatives_of_stages(name, number, options):
    """dpair, drow and dcol against autograd of pair, where fn.stop detaches."""
    stage = getattr(losses, name).formula.stages[number]
    params = params_of(name, number, PARAMS[name] if options == "params" else {})
    v, rows, cols = samples(), [samples() for _ in stage.rows], [samples() for _ in stage.cols]
    arguments = (v, *rows, *cols, *params)
    values = [expanded(t) if not isinstance(t, torch.Tensor) else t for t in stage.pair(*arguments)]
    assert len(values) == len(stage.stats)
    # A count has no gradient: whatever its value, its derivative is 0.
    counted = [stat.kind == "count" for stat in stage.stats]

    slopes = stage.dpair(*arguments)
    assert len(slopes) == len(values)
    for value, slope, is_count in zip(values, slopes, counted, strict=True):
        expected = torch.zeros_like(v) if is_count else derivative(value, v)
        torch.testing.assert_close(expanded(slope).detach(), expected, rtol=1e-12, atol=1e-13)

    for inputs, function in ((rows, stage.drow), (cols, stage.dcol)):
        if not inputs:
            assert function is None
            continue
        slopes = function(*arguments)
        assert len(slopes) == len(values) * len(inputs)
        for k, (value, is_count) in enumerate(zip(values, counted, strict=True)):
            for r, one in enumerate(inputs):
                expected = torch.zeros_like(v) if is_count else derivative(value, one)
                slope = expanded(slopes[k * len(inputs) + r]).detach()
                torch.testing.assert_close(slope, expected, rtol=1e-12, atol=1e-13)


def has_kink(stage):
    return bool({"relu", "step"} & set(stage.dpair.__code__.co_names))


@pytest.mark.parametrize(
    "name, number", [p for p in STAGES if has_kink(getattr(losses, p.values[0]).formula.stages[p.values[1]])]
)
def test_random_values_reach_both_sides_of_every_kink(name, number):
    """Otherwise the test above would see one branch only."""
    stage = getattr(losses, name).formula.stages[number]
    v, rows, cols = samples(), [samples() for _ in stage.rows], [samples() for _ in stage.cols]
    slopes = stage.dpair(v, *rows, *cols, *params_of(name, number, PARAMS[name]))
    # The derivative of a count is the number 0.
    assert all(0 < (slope == 0).sum() < SAMPLES for slope in slopes if isinstance(slope, torch.Tensor))


def test_formulas_with_a_kink():
    stages = {name: getattr(losses, name).formula.stages for name in LOSSES}
    assert {name for name in LOSSES if any(map(has_kink, stages[name]))} == {
        "CircleLoss",
        "ContrastiveLoss",
        "LiftedStructureLoss",
    }


@pytest.mark.parametrize("empty", [torch.finfo(torch.float64).min, torch.finfo(torch.float32).min], ids=["float64", "float32"])
def test_lifted_structure_of_points_without_negatives(empty):
    """An empty log-sum-exp comes as the lowest number: the logarithm counts as 0 then, and nothing is infinite."""
    stage = losses.LiftedStructureLoss.formula.stages[1]
    v = torch.tensor([0.7], dtype=torch.float64)
    none, some = torch.full_like(v, empty), torch.full_like(v, -0.3)
    params = params_of("LiftedStructureLoss", 1, {})
    assert stage.pair(v, none, none, *params)[0] == 0.5 * 0.7**2
    assert stage.drow(v, none, none, *params)[0] == stage.dcol(v, none, none, *params)[0] == 0
    torch.testing.assert_close(stage.pair(v, some, none, *params)[0], 0.5 * (v - 0.3) ** 2)
    assert stage.dcol(v, some, none, *params)[0] == 0 and stage.drow(v, some, none, *params)[0] > 0


@pytest.mark.parametrize("metric", METRICS, ids=lambda m: m.__name__)
def test_derivatives_of_metrics(metric):
    """dvalue is (dv/ds, dv/dp), and q enters through q - 2 s."""
    z, w = embeddings(SAMPLES, 3), embeddings(SAMPLES, 3, seed=1)
    s, p, q = ((z * w).sum(1), z.square().sum(1), w.square().sum(1))
    s, p, q = (t.requires_grad_() for t in (s, p, q))
    value = metric.value(s, p, q, 1e-15)
    slope, norm_slope = map(expanded, metric.dvalue(s, p, q, 1e-15))
    torch.testing.assert_close(slope, derivative(value, s), rtol=1e-11, atol=1e-13)
    if metric.norms:
        torch.testing.assert_close(norm_slope, derivative(value, p), rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(-0.5 * slope, derivative(value, q), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("metric", METRICS, ids=lambda m: m.__name__)
def test_metrics_at_distance_zero(metric):
    """Rounding may leave p + q - 2 s on either side of 0."""
    p = torch.tensor([1.0, 1.0, 1.0, 4.0, 0.0], dtype=torch.float64)
    s = p + torch.tensor([0.0, 1e-16, -1e-16, -4e-16, 0.0], dtype=torch.float64)
    value, slopes = metric.value(s, p, p, 1e-15), metric.dvalue(s, p, p, 1e-15)
    assert value.isfinite().all() and all(
        expanded(t[:1] if isinstance(t, torch.Tensor) else t).isfinite().all() for t in slopes
    )
    if metric.__name__ == "Euclidean":
        assert not value.any() and not any(t.any() for t in slopes)
    elif metric.norms:
        assert value.abs().max() < 1e-14


class BinomialDevianceLoss(PairLoss):
    """What a user writes: softplus terms of positives and negatives, averaged by anchor."""

    stats = (total("pos"), count("pos"), total("neg"), count("neg"))

    def pair(v, alpha, base):
        return fn.softplus(alpha * (base - v)), 1.0, fn.softplus(25.0 * alpha * (v - base)), 1.0

    def dpair(v, alpha, base):
        return -alpha * fn.sigmoid(alpha * (base - v)), 0.0, 25.0 * alpha * fn.sigmoid(25.0 * alpha * (v - base)), 0.0

    def row(pull, positives, push, negatives):
        return pull / fn.maximum(positives, 1.0) + push / fn.maximum(negatives, 1.0)

    alpha, base = 2.0, 0.5


def dense_binomial_deviance(x, labels, ref=None, ref_labels=None):
    s = normalize(x) @ normalize(x if ref is None else ref).T
    same = labels[:, None] == (labels if ref is None else ref_labels)
    positive = same & ~torch.eye(len(x), dtype=torch.bool) if ref is None else same
    pull = torch.where(positive, softplus(2 * (0.5 - s), threshold=60), 0).sum(1) / positive.sum(1).clamp_min(1)
    push = torch.where(~same, softplus(50 * (s - 0.5), threshold=60), 0).sum(1) / (~same).sum(1).clamp_min(1)
    return (pull + push).mean()


@pytest.mark.parametrize("with_ref", [False, True], ids=["self", "reference"])
@pytest.mark.parametrize("backend", backend_params("numba", "reference"))
def test_a_loss_of_the_user(backend, with_ref):
    labels, x = unbalanced_labels(30), embeddings(30, 16, dtype=torch.float32)
    ref, ref_labels = None, None
    if with_ref:
        ref, ref_labels = embeddings(19, 16, seed=1, dtype=torch.float32), unbalanced_labels(19, seed=1)
    loss = BinomialDevianceLoss(backend=backend)
    value, grads = value_and_grads(lambda x, ref=None: loss(x, labels, None, ref, ref_labels), x, ref)
    exact, exact_grads = value_and_grads(
        lambda x, ref=None: dense_binomial_deviance(x, labels, ref, ref_labels),
        x.double(),
        None if ref is None else ref.double(),
    )
    assert_accurate(value, exact)
    for grad, exact_grad in zip(grads, exact_grads, strict=True):
        assert_accurate(grad, exact_grad)


def test_a_loss_of_the_user_on_listed_pairs():
    labels, x = unbalanced_labels(12), embeddings(12)
    same = labels[:, None] == labels
    negatives = (~same).nonzero().unbind(1)
    positives = same.fill_diagonal_(False).nonzero().unbind(1)
    value, (grad,) = value_and_grads(lambda x: BinomialDevianceLoss()(x, None, (*positives, *negatives)), x)
    exact, (exact_grad,) = value_and_grads(lambda x: dense_binomial_deviance(x, labels), x)
    assert_accurate(value, exact)
    assert_accurate(grad, exact_grad)


@pytest.mark.parametrize("backend", backend_params("native"))
def test_native_refuses_a_loss_of_the_user(backend):
    loss = BinomialDevianceLoss(backend=backend)
    with pytest.raises(RuntimeError, match="native: .*BinomialDevianceLoss is not among the formulas compiled"):
        loss(embeddings(4), torch.tensor([0, 0, 1, 1]))


def test_a_loss_of_the_user_is_not_in_the_registry():
    assert "BinomialDevianceLoss" not in losses.REGISTRY
    assert isinstance(BinomialDevianceLoss.formula, Formula)


def test_a_subclass_inherits_the_formula():
    class Sharper(losses.MultiSimilarityLoss):
        def __init__(self):
            super().__init__(beta=100)

    x, labels = embeddings(9), unbalanced_labels(9)
    assert torch.equal(Sharper()(x, labels), losses.MultiSimilarityLoss(beta=100)(x, labels))


def test_a_parameter_may_change_between_calls():
    x, labels = embeddings(9), unbalanced_labels(9)
    loss = losses.SupConLoss(temperature=0.1)
    before = loss(x, labels)
    loss.temperature = torch.tensor(0.5)
    assert torch.equal(loss(x, labels), losses.SupConLoss(temperature=0.5)(x, labels))
    assert loss(x, labels) != before


def test_a_parameter_that_wants_a_gradient_is_refused():
    loss = losses.SupConLoss()
    loss.temperature = torch.tensor(0.5, requires_grad=True)
    with pytest.raises(TypeError, match="temperature: expected a number, got a tensor that requires grad"):
        loss(embeddings(4), torch.tensor([0, 0, 1, 1]))


def stage(**body):
    return stages_of(type("Stage", (), body))


def identity(v):
    return (v,)


def identity_of_row(v, row0):
    return (row0 - v,)


def identity_of_column(v, col0):
    return (col0 - v,)


@pytest.mark.parametrize(
    "body, message",
    [
        ({"stats": ()}, "stats: expected a non-empty tuple such as"),
        ({"stats": ("lse",)}, "stats: expected a non-empty tuple such as"),
        ({"dpair": None}, "expected dpair, the derivative of pair with respect to v, beside pair"),
        ({"dpair": identity_of_row}, r"dpair: expected the arguments of pair, \['v'\]"),
        ({"drow": identity_of_row}, r"drow: expected the arguments of pair, \['v'\]"),
    ],
    ids=["no_stats", "a_string", "no_dpair", "dpair", "drow"],
)
def test_stages_that_are_refused(body, message):
    whole = {"stats": (lse("pos"),), "pair": identity, "dpair": identity, **body}
    with pytest.raises(TypeError, match=message):
        stage(**{k: v for k, v in whole.items() if v is not None})


@pytest.mark.parametrize("make", [total, lse, count, largest, smallest])
def test_a_side_is_pos_or_neg(make):
    assert make("pos").side == "pos"
    with pytest.raises(ValueError, match="side: expected one of .*, got 'both'"):
        make("both")


def test_one_stage_may_read_the_other_point():
    (first,) = stage(stats=(lse("neg"),), pair=identity, dpair=identity)
    (second,) = stage(stats=(lse("pos"),), pair=identity_of_column, dpair=identity_of_column)
    assert Formula("two stages", (first, second)).two_sided
    with pytest.raises(TypeError, match="at most one stage to read statistics of the other point"):
        Formula("three stages", (first, second, second))


def test_a_loss_must_say_what_it_is():
    with pytest.raises(TypeError, match=r"expected a formula \(stats, pair and dpair\) in the class body"):
        type("Nothing", (PairLoss,), {})
    body = {"stats": (lse("pos"),), "pair": identity, "dpair": identity}
    with pytest.raises(TypeError, match=r"NoRow: expected row\(.*\), or as last statistics a total and a"):
        type("NoRow", (PairLoss,), body)


def test_structure_of_a_formula():
    found = losses.LiftedStructureLoss.formula
    assert found is formula(found.key) and repr(found) == f"Formula('{found.key}')"
    assert found.two_sided and not found.extremes and extremes.FORMULA.extremes
    assert found.first == (0, 1) and [s.kind for s in found.stats] == ["lse", "total", "count"]
    # A stage that reads the other point waits for all rows; one that reads its own row does not.
    assert found.groups == ([0], [1]) and losses.NTXentLoss.formula.groups == ([0, 1],)
    assert found.stages[1].params == ("sign", "pos_margin", "low0", "high0")


def test_binding_to_another_vocabulary():
    import types

    doubled = types.ModuleType("doubled")
    doubled.relu = lambda x: 2 * x
    pair = losses.ContrastiveLoss.formula.stages[0].pair

    def half(v):
        return (fn.relu(v) / 2,)

    assert bind(half, doubled)(3.0) == (3.0,)
    assert bind(half, doubled).__globals__["fn"] is doubled and pair.__globals__["fn"] is fn
    assert bind(half, doubled) is bind(half, doubled)


@pytest.mark.parametrize("backend", QUICK_BACKENDS)
def test_op_is_all_that_a_backend_is_told(backend):
    loss = losses.NTXentLoss(temperature=0.25, backend=backend)
    op = Op(loss.formula, loss.distance.metric, loss._params())
    assert op.params == ((-1.0, 0.25), (-1.0, 0.25, -torch.inf, torch.inf))
    assert hash(op) == hash(Op(loss.formula, loss.distance.metric, loss._params()))


def factory(scale):
    class Scaled(PairLoss):
        stats = (total("pos"),)

        def pair(v):
            return (scale * v,)

        def dpair(v):
            return (scale,)

        def row(positive):
            return positive

    return Scaled


def test_classes_of_one_name_have_formulas_of_their_own():
    x, labels = torch.randn(9, 4, dtype=torch.float64), torch.arange(9) % 3
    one, minus_three = factory(1.0)(), factory(-3.0)()
    assert one.formula.key != minus_three.formula.key
    compiled = [torch.compile(loss, fullgraph=True, backend="aot_eager") for loss in (one, minus_three)]
    torch.testing.assert_close(compiled[1](x, labels), -3 * compiled[0](x, labels))


def body(**functions):
    return lambda: type(
        "Wrong", (PairLoss,), {"__module__": __name__, "row": lambda p: p, "stats": (total("pos"),), **functions}
    )


@pytest.mark.parametrize(
    "define, message",
    [
        (body(pair=lambda v: v, dpair=lambda v: (1.0,)), "Wrong.pair: expected a tuple of 1 values, got Tensor"),
        (body(pair=lambda v: (v,), dpair=lambda v: (1.0, 2.0)), "Wrong.dpair: expected a tuple of 1 values, got 2 values"),
        (body(pair=lambda v: (v.nothing,), dpair=lambda v: (1.0,)), "Wrong.pair: cannot be run on tensors: .*nothing"),
        (body(pair=lambda v, row0: (v,), dpair=lambda v, row0: (1.0,)), "stage 0 to read statistics of earlier .* got row0"),
        (body(pair=staticmethod(lambda v: (v,)), dpair=lambda v: (1.0,)), "Wrong.pair: expected a plain function"),
        (lambda: type("Wrong", (losses.SupConLoss,), {"dpair": lambda v: (1.0,)}), "Wrong: expected pair beside dpair"),
    ],
    ids=["no_tuple", "too_many", "fails", "later_statistic", "static", "half"],
)
def test_a_wrong_formula_is_refused_where_it_is_defined(define, message):
    with pytest.raises(TypeError, match=message):
        define()


def test_a_parameter_must_be_a_number():
    for value, given in (("hot", "'hot'"), (None, "None")):
        with pytest.raises(TypeError, match=f"temperature: the formula of SupConLoss expects a number, got {given}"):
            losses.SupConLoss(temperature=value)(torch.randn(4, 2), torch.tensor([0, 0, 1, 1]))


class Relative(PairLoss):
    """Log-sum-exps of similarities less those of the other point's negatives, which count as constants."""

    class Negatives:
        stats = (lse("neg"),)

        def pair(v):
            return (v,)

        def dpair(v):
            return (1.0,)

    class Positives:
        stats = (lse("pos"),)

        def pair(v, col0):
            return (2.0 * v - col0,)

        def dpair(v, col0):
            return (2.0,)

    def row(negatives, positives):
        return positives


@pytest.mark.parametrize("backend", backend_params("numba", "reference"))
def test_a_log_sum_exp_of_statistics_of_the_other_point(backend):
    labels, ref_labels, x, ref = torch.arange(12) % 3, torch.arange(9) % 3, embeddings(12), embeddings(9, seed=1)
    actual = value_and_grads(lambda x, ref: Relative(backend=backend)(x, labels, None, ref, ref_labels), x, ref)

    def dense(x, ref):
        s, same = normalize(x) @ normalize(ref).T, labels[:, None] == ref_labels
        others = s.masked_fill(same, -torch.inf).logsumexp(0).detach()
        return (2 * s - others).masked_fill(~same, -torch.inf).logsumexp(1).mean()

    expected = value_and_grads(dense, x, ref)
    assert_accurate(actual[0], expected[0])
    for grad, exact in zip(actual[1], expected[1], strict=True):
        assert_accurate(grad, exact)


def test_gradients_through_statistics_need_totals():
    functions = {"pair": lambda v, row0: (v + row0,), "dpair": lambda v, row0: (1.0,), "drow": lambda v, row0: (1.0,)}
    first = type("First", (), {"stats": (total("neg"),), "pair": lambda v: (v,), "dpair": lambda v: (1.0,)})
    second = type("Second", (), {"stats": (lse("pos"),), **functions})
    with pytest.raises(TypeError, match=r"expected .* totals and counts.*, got \['lse'\]"):
        type("Wrong", (PairLoss,), {"first": first, "second": second, "row": lambda a, b: a})
