from .batch import each_result as each_result
from .batch import problem_maker as problem_maker
from .batch import run_batch as run_batch
from .batch import stylize_batch as stylize_batch
from .loop import Callback as Callback
from .loop import Progress as Progress
from .plan import Execution as Execution
from .plan import ExecutionPlan as ExecutionPlan
from .problem import Custom as Custom
from .problem import Inputs as Inputs
from .problem import check_inputs as check_inputs
from .problem import make_problem as make_problem
from .sharding import make_mesh as make_mesh
from .sharding import rows_mesh as rows_mesh
from .single import Result as Result
from .single import run_inputs as run_inputs
from .single import stylize as stylize
from .state import Position as Position

__all__ = [
    "Callback",
    "Custom",
    "Execution",
    "ExecutionPlan",
    "Inputs",
    "Position",
    "Progress",
    "Result",
    "check_inputs",
    "each_result",
    "make_mesh",
    "make_problem",
    "problem_maker",
    "rows_mesh",
    "run_batch",
    "run_inputs",
    "stylize",
    "stylize_batch",
]
