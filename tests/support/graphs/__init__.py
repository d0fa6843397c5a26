"""Random ONNX graphs: a draft grows step by step, and plain onnxruntime says whether a step stands.

draft: a graph under way · growing: which step comes next · elementwise, layout, layers, indices,
sequences, others: the operators, as functions (draw, draft) · control_flow: If, Loop, Scan,
functions · borrowed: the cases of onnx's own suite and of tests.support.rewrite_patterns
"""
