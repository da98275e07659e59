"""What ``fid-score`` does once its options are known: plan the networks, read both sides, compute, report."""

from metrics.scoring.run import run, score

__all__ = ["run", "score"]
