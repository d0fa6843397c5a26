"""Random ONNX graphs: a draft grows step by step, and plain onnxruntime says whether a step stands.

draft: a graph under way · growing: which step comes next, and what the model is in the end ·
picking: which value a step works on · elementwise, layout, layers, others: operators, as functions
(draw, draft) · control_flow: If, Loop, Scan, functions · borrowed: steps that others wrote ·
settings: options of engines · checking: whether an engine gives plain onnxruntime's bits

`python -m tests.support.graphs` tries them for minutes.
"""
