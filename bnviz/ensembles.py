"""Errors of networks and of their ensemble: the arithmetic mean of their class probabilities
(Section 4.2.3, Figure 4)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pandas as pd

from bnviz.predictions import Predictions

TOP = (1, 5)
"""An example is right where its class is among so many of the most probable ones."""


class MembersError(ValueError):
    """These runs make no ensemble; the message says why."""


def error(
    probabilities: npt.NDArray[np.floating], labels: npt.NDArray[np.integer], top: int
) -> float:
    """Share of the examples whose class is not among the `top` most probable ones.

    Args:
        probabilities: (examples, classes).
        labels: (examples,).
    """
    own = probabilities[np.arange(len(labels)), labels][:, None]
    # Of classes that are as probable, those with lower numbers come first.
    before = (probabilities > own) | (
        (probabilities == own) & (np.arange(probabilities.shape[1]) < labels[:, None])
    )
    return float((before.sum(1) >= top).mean())


def table(members: Mapping[str, Predictions]) -> pd.DataFrame:
    """Errors by single and by many crops: of each member, of the mean member (the mean of their
    errors), and of the ensemble; columns model, networks, crops, top1, top5.

    Raises:
        MembersError: no members, or they are not of the same examples.
    """
    if not members:
        raise MembersError("there are no members")
    everyone = list(members.values())
    labels = everyone[0].labels
    for one in everyone:
        if not np.array_equal(one.labels, labels) or one.crops != everyone[0].crops:
            raise MembersError("the members are of different test examples or crops")
    rows = []
    for crops, name in ((1, "single"), (everyone[0].crops, "many")):
        of_members = []
        for member, own in members.items():
            errors = [error(getattr(own, name), labels, top) for top in TOP]
            of_members.append(errors)
            rows.append((member, 1, crops, *errors))
        rows.append(("mean member", 1, crops, *np.mean(of_members, axis=0).tolist()))
        together = np.stack([getattr(own, name) for own in everyone]).mean(0, dtype=np.float64)
        errors = [error(together, labels, top) for top in TOP]
        rows.append(("ensemble", len(everyone), crops, *errors))
    return pd.DataFrame(rows, columns=["model", "networks", "crops", *(f"top{k}" for k in TOP)])
