"""Methods: the meaning of a stage, that is, what is read, what is written, and what is minimised."""

from stepwise_pl.methods.auxiliary import Auxiliary
from stepwise_pl.methods.base import LATENT, Losses, Method, own
from stepwise_pl.methods.coconut import Coconut
from stepwise_pl.methods.codi import Codi
from stepwise_pl.methods.icot_kd import ICoTKD
from stepwise_pl.methods.pause import Pause
from stepwise_pl.methods.sim_cot import SimCoT
from stepwise_pl.methods.stepwise import Stepwise

__all__ = ["LATENT", "Auxiliary", "Coconut", "Codi", "ICoTKD", "Losses", "Method", "Pause", "SimCoT", "Stepwise", "own"]
