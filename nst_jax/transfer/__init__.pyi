from .batch import each_result as each_result
from .batch import problem_maker as problem_maker
from .batch import run_batch as run_batch
from .batch import stylize_batch as stylize_batch
from .problem import check_inputs as check_inputs
from .problem import make_problem as make_problem
from .sharding import make_mesh as make_mesh
from .sharding import rows_mesh as rows_mesh
from .single import run_inputs as run_inputs
from .single import stylize as stylize
from .types import Callback as Callback
from .types import Custom as Custom
from .types import Execution as Execution
from .types import ExecutionPlan as ExecutionPlan
from .types import Inputs as Inputs
from .types import Position as Position
from .types import Progress as Progress
from .types import Result as Result

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
