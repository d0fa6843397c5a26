"""Coverage-guided fuzzing of what deepsched reads: see __main__ for how to run it.

A target (targets/NAME.py) states in its docstring a property that holds for all bytes, and `check`
raises where it does not: an exception that is none of errors.py, an answer that is not of the
protocol, a file outside of a folder, a round trip that changes something. Also a failure: a crash,
an input that takes 20 s, or more than 3 GB. The rules:

* Only what a user or a client can send, or what can lie on disk, is an input. What a target leaves
  out, its docstring says.
* Inputs are mutated in the terms of their format where it has one (messages, json_values, or
  hypothesis' strategies), or else nearly all would be refused by the first parser.
* Seeds are made in code. corpus/NAME holds what fuzzing has found: inputs that once failed, named
  after what they did. `--seconds 0` checks all of these without atheris.
* What fails is mended in its kind, with a test of its own in the suite, named after what a user
  sees.
* Where plain onnxruntime dies of a model as well, that is ONNX Runtime's own: it is counted, its
  input is kept out of the corpus, and the target goes on.

Coverage is that of deepsched's Python. The native core is compiled without libFuzzer's
instrumentation: it is run, but does not guide.
"""
