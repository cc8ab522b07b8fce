"""Image sets as LightningDataModules, and the loaders that feed them."""

from tunnel_lightning.data.arrays import Arrays
from tunnel_lightning.data.base import ImageData
from tunnel_lightning.data.digits import Digits
from tunnel_lightning.data.folder import CINIC10, ImageFolder
from tunnel_lightning.data.fonts import ALPHABETS
from tunnel_lightning.data.glyphs import Glyphs
from tunnel_lightning.data.loader import DeviceLoader, ImageLoader, WorkerLoader
from tunnel_lightning.data.torchvision_sets import (
    CIFAR10,
    CIFAR100,
    MNIST,
    STL10,
    SUN397,
    SVHN,
    FashionMNIST,
    Flowers102,
    Food101,
    OxfordIIITPet,
    Places365,
)

__all__ = [
    "ALPHABETS",
    "CIFAR10",
    "CIFAR100",
    "CINIC10",
    "MNIST",
    "STL10",
    "SUN397",
    "SVHN",
    "Arrays",
    "DeviceLoader",
    "Digits",
    "FashionMNIST",
    "Flowers102",
    "Food101",
    "Glyphs",
    "ImageData",
    "ImageFolder",
    "ImageLoader",
    "OxfordIIITPet",
    "Places365",
    "WorkerLoader",
]
