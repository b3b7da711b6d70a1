from .content import laplacian as laplacian
from .content import self_similarity_loss as self_similarity_loss
from .gaussian import covariance as covariance
from .gaussian import mean_std_loss as mean_std_loss
from .gaussian import wasserstein_loss as wasserstein_loss
from .gram import content_loss as content_loss
from .gram import gram_matrix as gram_matrix
from .gram import style_loss as style_loss
from .guides import layer_guides as layer_guides
from .objective import loss_weights as loss_weights
from .objective import make_loss as make_loss
from .style_term import mixed_losses as mixed_losses
from .style_term import moment_loss as moment_loss
from .variation import total_variation as total_variation

__all__ = [
    "content_loss",
    "covariance",
    "gram_matrix",
    "laplacian",
    "layer_guides",
    "loss_weights",
    "make_loss",
    "mean_std_loss",
    "mixed_losses",
    "moment_loss",
    "self_similarity_loss",
    "style_loss",
    "total_variation",
    "wasserstein_loss",
]
