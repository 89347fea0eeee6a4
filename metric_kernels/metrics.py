"""Pair values from inner products: v_ij as a function of s_ij = z_i . z_j and the squared norms p_i, q_j.

``value`` gives v, ``dvalue`` gives (dv/ds, dv/dp). Every metric depends on q through q - 2 s, so dv/dq = -1/2 dv/ds.
``eps`` is a small multiple of the rounding error of a float: a Euclidean distance below the noise of the Gram identity is
zero, and so is its subgradient.
"""

from metric_kernels import fn


class Metric:
    """``norms``: whether v needs p and q. ``symmetric``: whether v_ij = v_ji when both sides hold the same points."""

    norms = True
    symmetric = True
    centred = False


class Dot(Metric):
    """v = s. Given unit vectors it is the cosine; given a whole matrix in place of s it is that matrix."""

    norms = False

    def value(s, p, q, eps):
        return s

    def dvalue(s, p, q, eps):
        return 1.0, 0.0


class Euclidean(Metric):
    """v = ||z_i - z_j||."""

    def value(s, p, q, eps):
        squared = p + q - 2.0 * s
        zero = (squared < eps * (p + q)) | (squared <= 0.0)
        return fn.sqrt(fn.where(zero, 0.0, squared))

    def dvalue(s, p, q, eps):
        squared = p + q - 2.0 * s
        zero = (squared < eps * (p + q)) | (squared <= 0.0)
        slope = fn.where(zero, 0.0, 1.0 / fn.sqrt(fn.where(zero, 1.0, squared)))
        return -slope, 0.5 * slope


class SquaredEuclidean(Metric):
    """v = ||z_i - z_j||^2."""

    def value(s, p, q, eps):
        return fn.relu(p + q - 2.0 * s)

    def dvalue(s, p, q, eps):
        return -2.0, 1.0


class SNR(Metric):
    """v = ||z_i - z_j||^2 / ||z_i||^2 on centred z: var(x_i - x_j) / var(x_i), 0 for an anchor of zero variance."""

    symmetric = False
    centred = True

    def value(s, p, q, eps):
        variance = fn.where(p <= 0.0, 1.0, p)
        return fn.where(p <= 0.0, 0.0, fn.relu(p + q - 2.0 * s) / variance)

    def dvalue(s, p, q, eps):
        variance = fn.where(p <= 0.0, 1.0, p)
        noise = fn.relu(p + q - 2.0 * s) / variance
        return fn.where(p <= 0.0, 0.0, -2.0 / variance), fn.where(p <= 0.0, 0.0, (1.0 - noise) / variance)


METRICS = (Dot, Euclidean, SquaredEuclidean, SNR)
