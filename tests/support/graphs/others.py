"""Sequences, strings, and the operators of ai.onnx.ml."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from tests.support.graphs.draft import Draft, Value
from tests.support.graphs.picking import FLOAT32, INT64, tensor

_STRINGS = (np.dtype(object),)


def _index(draft: Draft, number: int) -> Value:
    return draft.constant(np.array(number, np.int64))


def sequence(draw: st.DrawFn, draft: Draft) -> None:
    """Made, changed, and taken apart again."""
    x = tensor(draw, draft, ranks=(1, 4))
    if draw(st.booleans()):
        (items,) = draft.add("SequenceConstruct", [x] * draw(st.integers(1, 3)))
    else:
        (items,) = draft.add("SplitToSequence", [x], keepdims=1)
    how = draw(st.sampled_from(("insert", "erase", "at", "length", "join", "nothing")))
    if how == "insert":
        draft.add("SequenceInsert", [items, x])
    elif how == "erase":
        draft.add("SequenceErase", [items])
    elif how == "at":
        draft.add("SequenceAt", [items, _index(draft, draw(st.integers(-1, 0)))])
    elif how == "length":
        draft.add("SequenceLength", [items])
    elif how == "join":
        draft.add("ConcatFromSequence", [items], axis=0, new_axis=draw(st.integers(0, 1)))


def strings(draw: st.DrawFn, draft: Draft) -> None:
    x = tensor(draw, draft, _STRINGS, (1, 2))
    how = draw(st.sampled_from(("concat", "match", "split", "encode", "equal", "number")))
    if how == "concat":
        draft.add("StringConcat", [x, draft.constant(np.array(["-"], dtype=object))])
    elif how == "match":
        draft.add("RegexFullMatch", [x], pattern=r"[a-z]*")
    elif how == "split":
        draft.add("StringSplit", [x], 2, delimiter=" ")
    elif how == "encode":
        draft.add(
            "LabelEncoder",
            [x],
            domain="ai.onnx.ml",
            keys_strings=["a", "12"],
            values_int64s=[5, 6],
        )
    elif how == "equal":
        draft.add("Equal", [x, draft.constant(np.array(["a"], dtype=object))])
    else:
        draft.add("Cast", draft.add("Cast", [tensor(draw, draft, INT64)], to=8), to=1)


def learned(draw: st.DrawFn, draft: Draft) -> None:
    """What tools of classical machine learning export."""
    x = tensor(draw, draft, FLOAT32, (2, 2))
    width = x.sizes[1]
    how = draw(st.sampled_from(("Scaler", "Normalizer", "Binarizer", "linear", "trees", "Imputer")))
    ml = {"domain": "ai.onnx.ml"}
    if how == "Scaler":
        draft.add(how, [x], offset=[0.5] * width, scale=[2.0] * width, **ml)
    elif how == "Normalizer":
        draft.add(how, [x], norm=draw(st.sampled_from(("MAX", "L1", "L2"))), **ml)
    elif how == "Binarizer":
        draft.add(how, [x], threshold=0.25, **ml)
    elif how == "Imputer":
        draft.add(how, [x], imputed_value_floats=[1.0], replaced_value_float=float("nan"), **ml)
    elif how == "linear":
        factors = draft.rng.standard_normal(2 * width).tolist()
        if draw(st.booleans()):
            draft.add(
                "LinearRegressor",
                [x],
                coefficients=factors,
                intercepts=[0.5, 0.25],
                targets=2,
                **ml,
            )
        else:
            draft.add(
                "LinearClassifier",
                [x],
                2,
                coefficients=factors,
                intercepts=[0.5, 0.25],
                classlabels_ints=[3, 4],
                post_transform=draw(st.sampled_from(("NONE", "SOFTMAX", "LOGISTIC"))),
                **ml,
            )
    else:
        draft.add(
            "TreeEnsembleRegressor",
            [x],
            n_targets=1,
            nodes_treeids=[0, 0, 0],
            nodes_nodeids=[0, 1, 2],
            nodes_featureids=[0, 0, 0],
            nodes_values=[0.1, 0.0, 0.0],
            nodes_modes=["BRANCH_LEQ", "LEAF", "LEAF"],
            nodes_truenodeids=[1, 0, 0],
            nodes_falsenodeids=[2, 0, 0],
            target_treeids=[0, 0],
            target_nodeids=[1, 2],
            target_ids=[0, 0],
            target_weights=[1.5, -2.5],
            **ml,
        )


STEPS = (sequence, strings, learned)
