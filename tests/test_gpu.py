"""What only a GPU shows: streams, devices, CUDA graphs, who waits, bits that repeat, and matrices of more than 2**31 pairs.

Mixed devices and scaled gradients are tested on the CPU as well.
"""

import pytest
import torch
from cases import ALL_LOSSES, WITH_REF, reason_against
from term_cases import ALL_PARAMS
from term_cases import WITH_REF as TERM_WITH_REF

from metric_kernels import functional, losses, ops, pairwise_distance, row_extremes, use_workspace
from metric_kernels.backends.triton_tiles import FORMS, use_form
from metric_kernels.language import Formula

GPU = torch.cuda.is_available()
NEEDS_GPU = pytest.mark.skipif(not GPU, reason="no CUDA device")
NEEDS_TWO = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices")
DEVICES = ["cpu", pytest.param("cuda", marks=NEEDS_GPU)]
# Operations of torch in a graph or on another device may add up in another order.
CLOSE = {"rtol": 2e-5, "atol": 2e-6}


def runs():
    """Every loss, on every backend of a GPU that has its kernels."""
    for name in ALL_LOSSES:
        formula = isinstance(getattr(losses, name).kernels, Formula)
        for backend in ("triton", "cuda") if formula else ("cuda",):
            reason = reason_against(backend) if GPU else "no CUDA device"
            skipped = pytest.mark.skipif(reason is not None, reason=f"{backend}: {reason}")
            yield pytest.param(name, backend, id=f"{name}-{backend}", marks=skipped)


ON_EVERY_BACKEND = pytest.mark.parametrize("name, backend", list(runs()))


def build(name, backend=None, device="cuda"):
    return getattr(losses, name)(**ALL_PARAMS[name], backend=backend).to(device)


def batch(seed, size=96, dim=32, device="cuda"):
    """Embeddings, and labels of four samples a class with some points alone in theirs."""
    generator = torch.Generator(device="cpu").manual_seed(seed)
    x = torch.randn(size, dim, generator=generator, device="cpu")
    labels = torch.arange(size, device="cpu") // 4
    labels[-5:] += torch.arange(5, device="cpu") + 1
    order = torch.randperm(size, generator=generator, device="cpu")
    return x.to(device), labels[order].to(device)


def step(loss, x, labels):
    """Value and gradient."""
    value = loss(x, labels)
    return value.detach(), *torch.autograd.grad(value, x)


@ON_EVERY_BACKEND
def test_a_graph_is_replayed_with_other_data(name, backend):
    captured, eager, (x, labels) = build(name, backend), build(name, backend), batch(0)
    x.requires_grad_()
    # Kernels are compiled and loaded, and libraries get their workspaces, before the capture, which must not see that.
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step(captured, x, labels)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step(captured, x, labels)
    for mine, fresh in zip(captured.buffers(), eager.buffers(), strict=True):
        mine.copy_(fresh)  # as if there had been no batch
    for seed in (1, 2, 3):
        other, other_labels = batch(seed)
        with torch.no_grad():
            x.copy_(other)
        labels.copy_(other_labels)
        graph.replay()
        torch.testing.assert_close(found, step(eager, other.requires_grad_(), other_labels), **CLOSE)
    for mine, expected in zip(captured.buffers(), eager.buffers(), strict=True):
        torch.testing.assert_close(mine, expected)


@ON_EVERY_BACKEND
def test_nothing_waits(name, backend):
    loss, (x, labels) = build(name, backend), batch(0)
    expected = step(build(name, backend), x.requires_grad_(), labels)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = step(loss, x, labels)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@ON_EVERY_BACKEND
def test_work_is_queued_on_the_current_stream(name, backend):
    """The embeddings arrive late on another stream; what does not queue there reads zeros."""
    loss, (x, labels) = build(name, backend).eval(), batch(0)
    expected = step(loss, x.requires_grad_(), labels)
    late, side = torch.zeros_like(x), torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(100_000_000)
        late.copy_(x.detach())
        found = step(loss, late.requires_grad_(), labels)
        queued = not side.query()
    side.synchronize()
    torch.testing.assert_close(found, expected, **CLOSE)
    assert queued


@NEEDS_TWO
@ON_EVERY_BACKEND
def test_tensors_of_a_device_that_is_not_the_current_one(name, backend):
    x, labels = batch(0)
    expected = step(build(name, backend), x.requires_grad_(), labels)
    there = x.detach().to("cuda:1").requires_grad_(), labels.to("cuda:1")
    found = step(build(name, backend, "cuda:1"), *there)
    assert all(t.device == torch.device("cuda:1") for t in found)
    assert torch.cuda.current_device() == 0
    torch.testing.assert_close([t.cpu() for t in found], [t.cpu() for t in expected], **CLOSE)


@ON_EVERY_BACKEND
def test_bits_repeat(name, backend):
    """With torch told to raise where it has no fixed order."""
    x, labels = batch(0, size=1000)
    x.requires_grad_()
    before = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        first, *others = (step(build(name, backend), x, labels) for _ in range(5))
    finally:
        torch.use_deterministic_algorithms(True, warn_only=before)
    assert all(torch.equal(a, b) for other in others for a, b in zip(first, other, strict=True))


@ON_EVERY_BACKEND
def test_one_compiled_graph(name, backend):
    torch._dynamo.reset()
    x, labels = batch(0)
    found = step(torch.compile(build(name, backend), fullgraph=True, backend="aot_eager"), x.requires_grad_(), labels)
    torch.testing.assert_close(found, step(build(name, backend), x, labels), **CLOSE)


# A matrix of 8.6 GB, and two more for the terms.
LARGE = 46400
GIB = 1 << 30


@pytest.mark.parametrize("name", ["ContrastiveLoss", "MultiSimilarityLoss", "HistogramLoss", "TripletMarginLoss"])
@pytest.mark.parametrize("backend, form", [("triton", form) for form in FORMS] + [("cuda", "a")])
def test_more_pairs_than_an_int_counts(name, backend, form):
    """The whole matrix at once is what its tiles are, each of which has fewer than 2**31 entries."""
    if reason := reason_against(backend) if GPU else "no CUDA device":
        pytest.skip(f"{backend}: {reason}")
    if backend == "triton" and not isinstance(getattr(losses, name).kernels, Formula):
        pytest.skip("no Triton kernels for terms")
    if torch.cuda.mem_get_info()[0] < 32 * GIB:
        pytest.skip("less than 32 GiB of free GPU memory")
    assert LARGE**2 > 2**31
    loss, (x, labels) = build(name, backend), batch(0, LARGE, 16)
    x.requires_grad_()
    with use_workspace(9 * GIB), use_form(form):
        found = step(loss, x, labels)
    with use_workspace(GIB), use_form("a"):
        expected = step(loss, x, labels)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-4, atol=0)
    # The last rows are those beyond 2**31. A similarity that is rounded to the other side of a node has another slope.
    for rows in (slice(None), slice(-64, None)):
        assert (found[1][rows] - expected[1][rows]).norm() < 1e-3 * expected[1][rows].norm()


# ---- on the CPU too ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ALL_LOSSES)
def test_autocast_and_a_gradient_scaler(name, device, dtype):
    """A training step of a network in half precision; a step whose loss is NaN is left out."""
    network, loss = torch.nn.Linear(12, 8).to(device), build(name, device=device).eval()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler(device, init_scale=256.0, growth_interval=1)
    inputs, labels = batch(0, size=40, dim=12, device=device)

    def scaled():
        optimizer.zero_grad()
        with torch.autocast(device, dtype):
            z = network(inputs)
            value = loss(z, labels)
        assert z.dtype == dtype and value.dtype == torch.float32
        scaler.scale(value).backward()
        return z.detach().float().requires_grad_()

    _, grad = step(loss, scaled(), labels)
    scaler.unscale_(optimizer)
    expected, found = grad.t() @ inputs, network.weight.grad
    assert expected.norm() > 0
    assert (found - expected).norm() < 0.02 * expected.norm()
    before = network.weight.detach().clone()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 512.0
    after = network.weight.detach().clone()
    assert not torch.equal(after, before)
    inputs[0, 0] = torch.nan
    scaled()
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(network.weight, after) and scaler.get_scale() == 256.0


HERE, ELSEWHERE = ("cuda", "cpu") if GPU else ("cpu", "meta")
X, LABELS = batch(0, size=12, dim=4, device=HERE)
AWAY = X.to(ELSEWHERE)
MIXED = {
    **{
        name: ("ref_emb", lambda name=name: build(name, device=HERE)(X, LABELS, None, AWAY, LABELS.clone()))
        for name in WITH_REF + TERM_WITH_REF
    },
    "pair_histogram": ("ref_emb", lambda: ops.pair_histogram(X, LABELS, AWAY, LABELS.clone())),
    "row_extremes": ("ref_emb", lambda: row_extremes(X, LABELS, AWAY, LABELS.clone())),
    "pairwise_distance": ("y", lambda: pairwise_distance(X, AWAY)),
    "triplet_margin": ("negative", lambda: functional.triplet_margin(X, X, AWAY)),
}


@pytest.mark.parametrize("case", MIXED)
def test_mixed_devices(case):
    argument, call = MIXED[case]
    with pytest.raises(ValueError, match=f"^{argument}: expected device {X.device}, got {AWAY.device}$"):
        call()


@NEEDS_GPU
@pytest.mark.parametrize("name", ALL_LOSSES)
def test_what_is_moved_to_the_embeddings(name):
    """Labels, and the parameters and buffers of a loss that stayed on the CPU."""
    loss = build(name, device="cpu")
    value = loss(X, LABELS.cpu())
    torch.testing.assert_close(value, build(name)(X, LABELS))
