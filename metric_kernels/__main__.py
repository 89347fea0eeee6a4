import sys

from metric_kernels.cli import main

sys.exit(main(sys.argv[1:] or ["report"]))
