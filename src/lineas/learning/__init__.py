"""Learning: from prompts to an intervention; one method, one file."""

from lineas.learning.aura import AurA
from lineas.learning.caa import CAA
from lineas.learning.fitting import Fit, Method, Task
from lineas.learning.gating import gate
from lineas.learning.gaussian_act import GaussianAcT
from lineas.learning.iti import ITIc
from lineas.learning.lin_act import LinAcT
from lineas.learning.lineas import LinEAS
from lineas.learning.lofit_rl import LoFITRL
from lineas.learning.mean_act import MeanAcT
from lineas.learning.paths import Solution, path
from lineas.learning.run import check_sides, learn

__all__ = [
    "CAA",
    "AurA",
    "Fit",
    "GaussianAcT",
    "ITIc",
    "LinAcT",
    "LinEAS",
    "LoFITRL",
    "MeanAcT",
    "Method",
    "Solution",
    "Task",
    "check_sides",
    "gate",
    "learn",
    "path",
]
