from .convolution import prepare_kernels as prepare_kernels
from .projection import Features as Features
from .projection import ProjectedFeatures as ProjectedFeatures
from .projection import compact as compact
from .projection import dense as dense
from .vgg import VGG19 as VGG19
from .vgg import features as features
from .vgg import init_variables as init_variables
from .vgg import network_features as network_features

__all__ = [
    "Features",
    "ProjectedFeatures",
    "VGG19",
    "compact",
    "dense",
    "features",
    "init_variables",
    "network_features",
    "prepare_kernels",
]
