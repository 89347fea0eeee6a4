from metric_kernels.report import report

print(report())
