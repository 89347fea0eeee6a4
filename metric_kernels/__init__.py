from metric_kernels.backends import use_backend
from metric_kernels.core import set_workspace, use_workspace, workspace
