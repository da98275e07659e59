"""How the outputs of rvq parity files follow from their inputs."""

from __future__ import annotations

from outputs import Given, Table

SOURCE = "rvq"


def outputs(given: Given) -> Table:
    """The table of outputs."""
    model, vectors, ids = given.model, given.inputs["vectors"], given.inputs["given_ids"]
    found = model.quantize(vectors)
    return {
        "ids": found.ids,
        "cumulative": found.cumulative,
        "residual": found.residuals[-1] - found.codes[-1],
        "mse_per_depth": (found.cumulative - vectors).square().mean(dim=(1, 2)),
        r"given_decoded(?:_first(\d+))?": lambda depth: model.embed(ids[:, : int(depth) if depth else None]),
    }
