"""Methods: the meaning of a stage, that is, what is read, what is written, and what is minimised."""

from stepwise_pl.methods.auxiliary import Auxiliary
from stepwise_pl.methods.base import Losses, Method
from stepwise_pl.methods.icot_kd import ICoTKD
from stepwise_pl.methods.stepwise import Stepwise

__all__ = ["Auxiliary", "ICoTKD", "Losses", "Method", "Stepwise"]
