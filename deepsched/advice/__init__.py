"""Which scheduler, how many streams and cores: measured for one model, on this machine.

* **settings**: what is recommended, and the figures behind it.
* **choosing**: the best of the figures, and the reason in words; pure.
* **measuring**: `advise`: the few settings worth trying, under the load that is asked for.
* **memory**: answers are kept for the same question.
"""

from deepsched.advice.measuring import advise
from deepsched.advice.settings import Advice, BatchFigures, Figures, Setting

__all__ = ["Advice", "BatchFigures", "Figures", "Setting", "advise"]
