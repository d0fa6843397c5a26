"""Recommends scheduler, streams and cores for a model, from measurements on this machine.

* **settings**: the recommendation, and the figures behind it.
* **choosing**: picks the best setting from the figures and explains it; pure.
* **planning**: how long to measure each setting, so that the figures tell; pure.
* **replicas**: how many processes serve a rate, on **balancing**, a simulation; pure.
* **states**: which measurements compare: those of one state of the machine; pure.
* **measuring**: `advise`, which measures the few promising settings under the given load.
* **answer_cache**: keeps answers for the same question.
"""

from deepsched.advice.measuring import advise
from deepsched.advice.settings import (
    Advice,
    BatchFigures,
    Figures,
    Replicas,
    Setting,
    StateAnswer,
)

__all__ = ["Advice", "BatchFigures", "Figures", "Replicas", "Setting", "StateAnswer", "advise"]
