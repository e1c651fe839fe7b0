"""Class probabilities of the test examples by a finished run: `predictions.parquet`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from bnviz.files import replace_aside

ABOUT = b"bnviz"
"""Where the metadata of the file tell `step` and `crops`, as JSON."""

SUM_ERROR = 1e-3
"""By how much the probabilities of an example may differ from 1 in all."""


MOST_VALUES = 200_000_000
"""Examples times classes. ImageNet has 50 million."""


class PredictionsError(ValueError):
    """The file is not one of predictions; the message says why."""


@dataclass(frozen=True)
class Predictions:
    """What a network of `step` updates makes of the test examples, in their order.

    Raises:
        PredictionsError: shapes that do not fit, or numbers that are no probabilities.
    """

    step: int
    crops: int
    """Of each image, over which `many` is the mean."""
    labels: npt.NDArray[np.int32]  # (examples,)
    single: npt.NDArray[np.float32]  # (examples, classes)
    many: npt.NDArray[np.float32]  # (examples, classes)

    def __post_init__(self) -> None:
        examples, classes = len(self.labels), self.single.shape[1]
        if self.crops < 2:
            raise PredictionsError("many crops are two at least")
        if not examples or self.single.shape != self.many.shape or len(self.single) != examples:
            raise PredictionsError("labels and probabilities are of different examples")
        if self.labels.min() < 0 or self.labels.max() >= classes:
            raise PredictionsError(f"a label is not one of {classes} classes")
        for values in (self.single, self.many):
            # Written so that what is not a number is refused, too.
            if not (values.min() >= 0 and (abs(values.sum(1) - 1) <= SUM_ERROR).all()):
                raise PredictionsError("the probabilities of an example do not add up to 1")


def write(path: Path, predictions: Predictions) -> None:
    """Replace the file in one step."""
    about = json.dumps({"step": predictions.step, "crops": predictions.crops})
    table = pa.table(
        {
            "label": predictions.labels,
            "single": _lists(predictions.single),
            "many": _lists(predictions.many),
        }
    ).replace_schema_metadata({ABOUT: about})
    replace_aside(path, lambda aside: pq.write_table(table, aside), durable=True)


def read(path: Path) -> Predictions:
    """Raises:
    FileNotFoundError: there is none.
    PredictionsError: it is damaged, or another kind of file.
    """
    try:
        with pq.ParquetFile(path) as file:
            # Before anything is read: a small file can unfold to more than there is memory.
            lists = [file.schema_arrow.field(name).type for name in ("single", "many")]
            if not all(map(pa.types.is_fixed_size_list, lists)):
                raise PredictionsError("not a list of probabilities for each example")
            if file.metadata.num_rows * max(kind.list_size for kind in lists) > MOST_VALUES:
                raise PredictionsError("more probabilities than a data set has")
            table = file.read(columns=["label", "single", "many"])
        about = json.loads((table.schema.metadata or {})[ABOUT])
        step, crops = (_whole(about[name]) for name in ("step", "crops"))
        single, many = (_array(table[name]) for name in ("single", "many"))
        labels = table["label"].to_numpy().astype(np.int32, casting="same_kind")
    except (FileNotFoundError, PredictionsError):
        raise
    except (OSError, ValueError, LookupError, TypeError, pa.ArrowException) as error:
        raise PredictionsError("it is damaged, or no file of predictions") from error
    return Predictions(step, crops, labels, single, many)


def _whole(value: object) -> int:
    if type(value) is not int or not 0 <= value < 2**31:
        raise PredictionsError("steps and crops are whole numbers")
    return value


def _lists(values: npt.NDArray[np.float32]) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])


def _array(column: pa.ChunkedArray) -> npt.NDArray[np.float32]:
    if column.null_count:
        raise PredictionsError("not a list of probabilities for each example")
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return flat.astype(np.float32, casting="same_kind").reshape(len(column), column.type.list_size)
