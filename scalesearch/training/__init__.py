"""Training a network on images: decode once (data, sources, store), recipes, and the loop.

    DataSettings ── load_data ──→ Dataset ── split(fold, folds) ──→ Split ──┐
                                                                            ├── train(…) → EpochStats, one an epoch
    Recipe ─────────────────────────────────────────────────────────────────┘
"""

from scalesearch.plugins import Table

DATASETS = Table("dataset", {
    "digits": "scalesearch.training.sources:digits",
    "folder": "scalesearch.training.sources:folder",
    "parquet": "scalesearch.training.sources:parquet",
    "imagenet": "scalesearch.training.sources:imagenet",
    "cifar10": "scalesearch.training.torchvision_sets:cifar10",
    "cifar100": "scalesearch.training.torchvision_sets:cifar100",
    "mnist": "scalesearch.training.torchvision_sets:mnist",
    "fashion_mnist": "scalesearch.training.torchvision_sets:fashion_mnist",
    "flowers102": "scalesearch.training.torchvision_sets:flowers102",
    "pets": "scalesearch.training.torchvision_sets:pets",
    "food101": "scalesearch.training.torchvision_sets:food101",
    "cars": "scalesearch.training.torchvision_sets:cars",
    "aircraft": "scalesearch.training.torchvision_sets:aircraft",
    "imagenette": "scalesearch.training.torchvision_sets:imagenette",
})
"""name → function(DataSettings) → Source; a row of your own is such a function."""
