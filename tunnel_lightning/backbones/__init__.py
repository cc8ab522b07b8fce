"""Networks for small images, and any network of timm or torchvision, behind one base class."""

from .base import Backbone, rebuild
from .mlp import MLP
from .named import Named
from .resnet import ResNet
from .vgg import VGG

__all__ = ["MLP", "VGG", "Backbone", "Named", "ResNet", "rebuild"]
