from .lbfgs import scale_by_torch_lbfgs as scale_by_torch_lbfgs
from .optimizers import make_optimizer as make_optimizer
from .optimizers import set_learning_rate as set_learning_rate
from .solver import make_solver as make_solver
from .solver import run as run

__all__ = [
    "make_optimizer",
    "make_solver",
    "run",
    "scale_by_torch_lbfgs",
    "set_learning_rate",
]
