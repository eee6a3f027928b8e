"""Learning: from prompts to an intervention; one method, one file."""

from lineas.learning.act import GaussianAcT, LinAcT, MeanAcT
from lineas.learning.aura import AurA
from lineas.learning.caa import CAA
from lineas.learning.gamma_path import Solution, gamma_path
from lineas.learning.gating import gate
from lineas.learning.iti import ITIc
from lineas.learning.learn import check_sides, learn
from lineas.learning.lineas import DivergedError, LinEAS
from lineas.learning.lofit_rl import LoFITRL
from lineas.learning.lora import LoRA
from lineas.learning.method import Fit, Method, Task
from lineas.learning.neutral import check_takes_neutral

__all__ = [
    "CAA",
    "AurA",
    "DivergedError",
    "Fit",
    "GaussianAcT",
    "ITIc",
    "LinAcT",
    "LinEAS",
    "LoFITRL",
    "LoRA",
    "MeanAcT",
    "Method",
    "Solution",
    "Task",
    "check_sides",
    "check_takes_neutral",
    "gamma_path",
    "gate",
    "learn",
]
