"""The checked arguments of a loss."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from metric_kernels import tuples
from metric_kernels.core import arithmetic


class Batch:
    """The checked arguments of a call, the embeddings in the type that they are computed in.

    ``pairs`` are those of an indices_tuple of ``listed`` parts.
    """

    def __init__(self, embeddings, labels, indices_tuple, ref_emb, ref_labels, labels_required=True):
        self.x = _checked_embeddings("embeddings", embeddings)
        self.labels = _checked_labels("labels", labels, embeddings, "embeddings")
        self.y, self.ref_labels, self.exclude_self = self.x, self.labels, True
        self.targets = self.labels
        self.anchors = None
        self.same = ref_emb is None or (ref_emb is embeddings and ref_labels is labels)
        if ref_emb is None:
            if ref_labels is not None and ref_labels is not labels:
                raise ValueError("ref_labels: expected ref_emb along with it, got None")
        else:
            if ref_emb is not embeddings:
                self.y = _checked_embeddings("ref_emb", ref_emb)
                if ref_emb.shape[1] != embeddings.shape[1]:
                    raise ValueError(
                        f"ref_emb: expected shape (R, {embeddings.shape[1]}) to match embeddings, got {tuple(ref_emb.shape)}"
                    )
                if ref_emb.device != embeddings.device:
                    raise ValueError(f"ref_emb: expected device {embeddings.device}, got {ref_emb.device}")
            self.exclude_self = labels is not None and ref_labels is labels
            if not self.exclude_self:
                self.ref_labels = _checked_labels("ref_labels", ref_labels, ref_emb, "ref_emb")
            elif len(ref_emb) != len(embeddings):
                raise ValueError(f"ref_labels: expected shape ({len(ref_emb)},), got {tuple(labels.shape)}")
        self.dtype = embeddings.dtype
        self._widen()
        self.pairs, self.listed = None, 0
        if indices_tuple is not None:
            self.pairs = tuples.listed(indices_tuple, len(self.x), len(self.y), embeddings.device)
            self.listed = len(indices_tuple)
        if self.pairs is None and (self.labels is None or self.ref_labels is None) and (labels_required or labels is not None):
            raise ValueError("labels, ref_labels: expected both, or an indices_tuple, got None")

    def _widen(self) -> None:
        """Half precision becomes float32 at once, so that the gradient is rounded once, whatever it is the sum of.

        ``half`` is the type that both sides had, for a backend that multiplies what can still be given in that type.
        """
        x, y = self.x, self.y
        self.half = x.dtype if x.dtype == y.dtype and x.dtype in (torch.float16, torch.bfloat16) else None
        self.x = x.to(arithmetic(x.dtype))
        self.y = self.x if y is x else y.to(arithmetic(y.dtype))

    def pairing(self, pairs: Tensor) -> Batch:
        """The batch in which each anchor, a row of ``pairs[0]``, matches its positive in ``pairs[1]`` and no other."""
        batch = copy.copy(self)
        rows = self.x.index_select(0, pairs.flatten()).unflatten(0, pairs.shape)
        batch.x, batch.y = rows.unbind(0)
        batch.same, batch.exclude_self, batch.pairs = False, False, None
        batch.anchors = pairs[0]
        batch.labels = self.labels.index_select(0, batch.anchors)
        batch.targets = batch.ref_labels = torch.arange(len(batch.anchors), device=self.x.device)
        return batch

    def numbers(self) -> tuple[Tensor, Tensor]:
        """How many positives and how many negatives each anchor has, (B,) int64."""
        ordered = self.ref_labels.sort().values
        same = torch.searchsorted(ordered, self.labels, right=True) - torch.searchsorted(ordered, self.labels)
        return same - int(self.exclude_self), len(self.y) - same

    def merged(self) -> Batch:
        """This batch, with itself, with the numbers of its classes as labels, and -1 for all points alone in theirs."""
        batch = copy.copy(self)
        ordered = self.labels.sort().values
        number = torch.searchsorted(ordered, self.labels)
        alone = torch.searchsorted(ordered, self.labels, right=True) - number == 1
        batch.targets = batch.ref_labels = torch.where(alone, -1, number)
        return batch

    def nothing(self) -> Tensor:
        """0, connected to the graph; NaN if an embedding is not finite."""
        zero = (self.x * 0.0).sum()
        return zero if self.same else zero + (self.y * 0.0).sum()

    def rows(self) -> Tensor:
        """The index in the batch of each row of x."""
        return torch.arange(len(self.x), device=self.x.device) if self.anchors is None else self.anchors

    @property
    def result_type(self) -> torch.dtype:
        half = self.dtype in (torch.float16, torch.bfloat16)
        return torch.float32 if half and torch.is_autocast_enabled(self.x.device.type) else self.dtype


def _checked_embeddings(name: str, x: object) -> Tensor:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(x).__name__}")
    if x.ndim != 2:
        raise ValueError(f"{name} must be a 2D tensor of shape (batch_size, embedding_size), got {tuple(x.shape)}")
    if not x.is_floating_point():
        raise TypeError(f"{name}: expected a floating type, got {x.dtype}")
    return x


def _checked_labels(name: str, labels: object, x: Tensor, of: str) -> Tensor | None:
    if labels is None:
        return None
    if not isinstance(labels, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(labels).__name__}")
    if labels.ndim != 1:
        raise ValueError(f"{name} must be a 1D tensor of shape (batch_size,), got {tuple(labels.shape)}")
    if len(labels) != len(x):
        raise ValueError(
            f"Number of {of} must equal number of {name}: expected {name} of shape ({len(x)},), got {tuple(labels.shape)}"
        )
    if labels.is_floating_point() or labels.is_complex():
        raise TypeError(f"{name}: expected an integer or bool type, got {labels.dtype}")
    # A copy, so that labels may be changed in place between forward and backward.
    return labels.to(x.device, torch.int64, copy=True, memory_format=torch.contiguous_format)
