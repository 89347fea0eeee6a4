"""What makes a processor wait for a GPU, seen without one."""

from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# Operations that ask for numbers or for sizes that only these tell, or bring a number from the processor ("lift_fresh").
ASKING = {
    *("_local_scalar_dense", "equal", "is_nonzero", "lift_fresh", "masked_select", "nonzero", "bincount"),
    *("_unique", "_unique2", "unique_dim", "unique_consecutive"),
}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}


class Waiting(TorchDispatchMode):
    """Records what waits, in a forward pass and in a backward pass of the same thread."""

    def __init__(self):
        super().__init__()
        self.found = set()

    def __enter__(self):
        tolist = torch.Tensor.tolist  # no operation on a CPU
        self.patch = mock.patch.object(torch.Tensor, "tolist", lambda t: self.found.add("tolist") or tolist(t))
        self.patch.start()
        return super().__enter__()

    def __exit__(self, *error):
        self.patch.stop()
        return super().__exit__(*error)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result, name = function(*args, **(kwargs or {})), function.overloadpacket.__name__
        by_mask = name in INDEXING and any(t is not None and t.dtype == torch.bool for t in args[1])
        devices = {t.device for t in (result, *args[:2]) if isinstance(t, torch.Tensor)}
        moved = name in ("_to_copy", "copy_") and len(devices) > 1
        repeated = name == "repeat_interleave" and (kwargs or {}).get("output_size") is None
        if name in ASKING or by_mask or moved or repeated:
            self.found.add(name)
        return result
