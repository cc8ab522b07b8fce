"""Runs of the toy module."""

from collections.abc import Callable
from typing import Any

import pytest
from lightning.pytorch import Trainer, seed_everything
from toys import Data, Lit


@pytest.fixture
def train(tmp_path: Any) -> Callable[..., tuple[Trainer, Lit]]:
    """Train a fresh, seeded Lit and return Trainer and module."""

    def run(
        callbacks: Any = (), *, epochs: int = 2, data: Any = None, module: Any = None, **options: Any
    ) -> tuple[Trainer, Any]:
        seed_everything(7)
        module = module or Lit()
        options = {"logger": False, "enable_checkpointing": False, **options}
        fit = {key: options.pop(key) for key in ("ckpt_path", "weights_only") if key in options}
        trainer = Trainer(
            max_epochs=epochs,
            callbacks=list(callbacks),
            accelerator="cpu",
            devices=1,
            enable_progress_bar=False,
            enable_model_summary=False,
            log_every_n_steps=2,
            default_root_dir=tmp_path,
            **options,
        )
        trainer.fit(module, datamodule=data or Data(), **fit)
        return trainer, module

    return run
