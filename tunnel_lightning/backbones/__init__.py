"""Networks for small images, any network of timm or torchvision, and one cut at a layer, behind one base class."""

from .base import Backbone, rebuild
from .cut import Cut
from .early import EarlyExit
from .mlp import MLP
from .named import Named
from .resnet import ResNet
from .vgg import VGG

__all__ = ["MLP", "VGG", "Backbone", "Cut", "EarlyExit", "Named", "ResNet", "rebuild"]
